"""Shows an answer: its text piece by piece, recording after each piece that it was shown.

Knows neither connections nor how text is styled. Invariant: at every moment the record says that a character was shown
only if it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llm_cli.render import Renderer, clean, clean_line
from llm_cli.screen import Screen
from llmws.client import AnswerEvent, Done, Log, Position, Queue, Reset, Token
from llmws.protocol import messages as m

PIECE_CHARS: Final = 512
"""Largest piece between two records."""


class Shown(m.Value, frozen=True, kw_only=True):
    """How far a session was shown.

    Attributes:
        position: the last event that was shown whole; None before any.
        chars: characters of answer text after it that were shown too.
        fence: the Markdown code fence that was open there.
    """

    position: Position | None = None
    chars: int = 0
    fence: str = ""


class Display(Protocol):
    """Where the events of a session's answers go."""

    async def show(self, event: AnswerEvent) -> None:
        """Shows one event."""

    async def fail(self, error: m.Error) -> None:
        """Shows the event that ends an answer in an error; the caller says what it means."""


class TextDisplay:
    """Shows the text of answers.

    Args:
        note: shows a line that is not part of an answer.
        save: records what was shown.
        shown: what an earlier process has shown.
    """

    def __init__(
        self,
        screen: Screen,
        renderer: Renderer,
        *,
        note: Callable[[str], None],
        save: Callable[[Shown], None],
        shown: Shown,
    ) -> None:
        self._screen = screen
        self._renderer = renderer
        self._note = note
        self._save = save
        self._position = shown.position
        # Tokens can arrive cut differently than the first time, so this counts down across events.
        self._skip_chars = shown.chars

    async def show(self, event: AnswerEvent) -> None:
        """Shows what of an event is for a person to read."""
        match event:
            case Token():
                await self._continue(event.data)
            case Reset():
                self._skip_chars = 0
                self._note("the answer could not be continued; what there is of it, from its start:")
                await self._write(event.text)
            case Log():
                self._note(clean_line(event.message))
            case Queue() if event.position > 0:
                self._note(f"{event.position} to be answered before")
            case Done():
                await self._end()
                if event.finish_reason == "interrupted":
                    self._note("the server gave this answer up")
                elif event.finish_reason == "length":
                    self._note("the answer is cut: it reached its longest allowed length")
            case _:
                pass
        self._has_shown(event)

    async def fail(self, error: m.Error) -> None:
        """Ends the line."""
        await self._end()
        self._has_shown(error)

    async def _continue(self, text: str) -> None:
        shown = min(self._skip_chars, len(text))
        self._skip_chars -= shown
        while shown < len(text):
            piece = text[shown : shown + PIECE_CHARS]
            await self._write(piece)
            shown += len(piece)
            self._save(Shown(position=self._position, chars=shown, fence=self._renderer.state))

    async def _end(self) -> None:
        self._skip_chars = 0
        if not self._screen.at_line_start:
            await self._screen.write("\n")

    async def _write(self, text: str) -> None:
        await self._screen.write(self._renderer.feed(clean(text)))

    def _has_shown(self, event: m.Message) -> None:
        if (position := _position(event)) is not None:
            self._position = position
            self._save(Shown(position=position, chars=self._skip_chars, fence=self._renderer.state))


class JsonDisplay:
    """Prints events as JSON lines, in ASCII: no character of an answer reaches a terminal raw."""

    def __init__(self, screen: Screen, *, save: Callable[[Shown], None]) -> None:
        self._screen = screen
        self._save = save

    async def show(self, event: m.Message) -> None:
        """Prints a message."""
        await self._screen.write(json.dumps(msgspec.to_builtins(event)) + "\n")
        if (position := _position(event)) is not None:
            self._save(Shown(position=position))

    async def fail(self, error: m.Error) -> None:
        """Prints the error."""
        await self.show(error)


def _position(event: m.Message) -> Position | None:
    """The position after an event; None for what is not part of the session's story."""
    match event:
        case m.Event(seq=int(seq), epoch=int(epoch)):
            return Position(epoch=epoch, last_seq=seq)
        case _:
            return None
