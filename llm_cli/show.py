"""Shows answers: their text piece by piece, each with the record that it was shown.

Knows neither connections nor how text is styled. Invariant: every character of an answer is handed to the screen once,
in order, whatever an earlier process had shown of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llm_cli.bookmark import Record
from llm_cli.render import Renderer, clean, clean_line
from llm_cli.screen import Screen
from llm_cli.view import place
from llmws.client import AnswerEvent, Done, Log, Position, Queue, Reset, Start, Token
from llmws.protocol import messages as m

PIECE_CHARS: Final = 512
"""Largest piece between two records: what a kill of `llm` and its scribe together can make the next run repeat."""


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
        wait: shows a request's place in the queue, until it is called again; empty when it is its turn.
        record: what to keep on disk when so much was shown.
        shown: what an earlier process has shown.
    """

    def __init__(
        self,
        screen: Screen,
        renderer: Renderer,
        *,
        note: Callable[[str], None],
        wait: Callable[[str], None],
        record: Callable[[Shown], Record | None],
        shown: Shown,
    ) -> None:
        self._screen = screen
        self._renderer = renderer
        self._note = note
        self._wait = wait
        self._record = record
        self._position = shown.position
        # Tokens can arrive cut differently than the first time, so this counts down across events.
        self._skip_chars = shown.chars

    async def show(self, event: AnswerEvent) -> None:
        """Shows what of an event is for a person to read."""
        match event:
            case Start():
                self._wait("")
                self._renderer.restart()
                self._skip_chars = 0  # what was counted belonged to the answer before, or to a session that is lost
            case Token():
                await self._continue(event.data)
            case Reset():
                self._renderer.restart()
                self._skip_chars = 0
                self._note("the answer could not be continued; what there is of it, from its start:")
                await self._screen.write(self._renderer.feed(clean(event.text)))
            case Log():
                self._note(clean_line(event.message))
            case Queue():
                self._wait(place(event))
            case Done():
                self._wait("")
                await self._end()
                if event.finish_reason == "interrupted":
                    self._note("the server gave this answer up")
                elif event.finish_reason == "length":
                    self._note("the answer is cut: it reached its longest allowed length")
            case _:
                pass
        await self._has_shown(event)

    async def fail(self, error: m.Error) -> None:
        """Ends the line."""
        self._wait("")
        await self._end()
        await self._has_shown(error)

    async def _continue(self, text: str) -> None:
        shown = min(self._skip_chars, len(text))
        self._skip_chars -= shown
        while shown < len(text):
            piece = text[shown : shown + PIECE_CHARS]
            shown += len(piece)
            await self._write(self._renderer.feed(clean(piece)), chars=shown)

    async def _end(self) -> None:
        self._skip_chars = 0
        if not self._screen.at_line_start:
            await self._screen.write("\n")

    async def _write(self, text: str, *, chars: int) -> None:
        shown = Shown(position=self._position, chars=chars, fence=self._renderer.state)
        await self._screen.write(text, self._record(shown))

    async def _has_shown(self, event: m.Message) -> None:
        if (position := _position(event)) is not None:
            self._position = position
            await self._write("", chars=self._skip_chars)


class JsonDisplay:
    """Prints events as JSON lines, in ASCII: no character of an answer reaches a terminal raw."""

    def __init__(self, screen: Screen, *, record: Callable[[Shown], Record | None]) -> None:
        self._screen = screen
        self._record = record

    async def show(self, event: m.Message) -> None:
        """Prints a message."""
        position = _position(event)
        record = None if position is None else self._record(Shown(position=position))
        await self._screen.write(json.dumps(msgspec.to_builtins(event)) + "\n", record)

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
