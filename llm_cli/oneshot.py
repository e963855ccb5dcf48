"""One question, one answer, and out: `llm "question"`, `cat file | llm "summarise"`, `llm --session UUID`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from llm_cli import exits
from llm_cli.arguments import Options
from llm_cli.bookmark import Record
from llm_cli.conversation import Conversation
from llm_cli.interrupts import on_interrupt, on_termination
from llm_cli.render import clean, for_output
from llm_cli.screen import UNRECORDED, Screen
from llm_cli.show import Display, JsonDisplay, Shown, TextDisplay
from llm_cli.target import Target
from llm_cli.view import View, notice, reduce
from llmws.client import Client, ClientError, Connected, RequestRejectedError, branch
from llmws.protocol import messages as m


class SessionLine(m.Message, frozen=True, kw_only=True, tag="session"):
    """The first line of `--json`: where the answers are."""

    session_id: str
    status: Literal["new", "resumed", "reset"]
    model: str | None


class OneShot:
    """A run of `llm` that ends by itself."""

    def __init__(
        self,
        options: Options,
        target: Target,
        prompt: str,
        config: m.Sampling | None,
        shown: Shown,
        *,
        images: Sequence[m.Image],
        scribe: socket.socket,
    ) -> None:
        self._options = options
        self._images = images
        self._prompt = prompt
        self._config = config
        self._screen = Screen(scribe, unrecorded=lambda: self._note(UNRECORDED))
        self._view = View()
        self._is_interrupted = False
        self._signal: int | None = None
        self._status = exits.OK
        client = Client(
            target.url,
            target.token,
            tls=target.tls,
            session_id=options.session_id,
            position=shown.position,
            # Who is taken over for good cannot delete the session.
            when_taken_over="observe" if options.temporary else "leave",
            name="llm",
            connect_timeout_s=options.wait_s,
            listen=self._listen,
        )
        # What is no event of the session has no place in it to record.
        self._lines = JsonDisplay(self._screen, record=lambda _shown: None) if options.json else None
        self._conversation = Conversation(
            client,
            self._screen,
            shown,
            display=lambda record: self._display(shown, record),
            note=self._note,
            failed=self._failed,
            is_temporary=options.temporary,
            is_discovered=target.is_discovered,
        )

    async def run(self) -> int:
        """Asks, shows and returns the exit status."""
        task = asyncio.current_task()
        assert task is not None
        with (
            on_interrupt(lambda: self._interrupt(task), task.cancel),
            on_termination(lambda number: self._terminate(number, task)),
        ):
            try:
                async with self._conversation.client as client:
                    if self._lines is not None:
                        await self._lines.show(_session_line(client))
                    try:
                        await self._talk()
                    finally:
                        await self._conversation.forget()
            except ClientError as error:
                if self._lines is not None and isinstance(error, RequestRejectedError):
                    await self._lines.fail(error.error)
                self._failed(error)
            except asyncio.CancelledError:
                if self._signal is None:
                    raise
                return exits.SIGNALLED + self._signal
        return exits.INTERRUPTED if self._is_interrupted else self._status

    async def _talk(self) -> None:
        if self._options.session_id is not None:
            await self._conversation.catch_up()
            if not (self._prompt or self._images) and self._lines is None:
                await self._recall()
        if (self._prompt or self._images) and not self._is_interrupted:
            self._status = exits.OK
            await self._conversation.ask(
                self._prompt,
                system=self._options.system,
                model=self._options.model,
                config=self._config,
                images=self._images,
            )

    async def _recall(self) -> None:
        """Shows the last answer where its events, which were not seen here, are dropped."""
        client = self._conversation.client
        if client.welcome is None or client.welcome.reason != "below_floor" or client.welcome.requests:
            return
        messages = branch(await client.conversation())
        if messages and messages[-1].role == "assistant":
            text = for_output("").feed(clean(messages[-1].content))
            await self._screen.write(f"{text}\n", self._conversation.record(Shown()))

    def _display(self, shown: Shown, record: Callable[[Shown], Record | None]) -> Display:
        if self._options.json:
            return JsonDisplay(self._screen, record=record)
        return TextDisplay(
            self._screen,
            for_output(shown.fence),
            note=self._note,
            wait=lambda place: self._note(place) if place else None,
            record=record,
            shown=shown,
        )

    def _interrupt(self, task: asyncio.Task[int]) -> None:
        self._is_interrupted = True
        if not self._conversation.cancel():
            task.cancel()

    def _terminate(self, number: int, task: asyncio.Task[int]) -> None:
        self._signal = number
        task.cancel()

    def _failed(self, error: ClientError) -> None:
        self._status = exits.status_of(error)
        self._note(exits.explain(error))

    def _listen(self, message: object) -> None:
        line = notice(self._view, message)
        self._view = reduce(self._view, message)
        if isinstance(message, Connected) and message.welcome.status == "new":
            self._conversation.restarted()
        if line is not None:
            self._note(line)

    def _note(self, line: str) -> None:
        lead = "" if self._screen.at_line_start or not os.isatty(1) else "\n"
        print(f"{lead}llm: {line}", file=sys.stderr, flush=True)


def _session_line(client: Client) -> SessionLine:
    assert client.welcome is not None
    return SessionLine(session_id=client.welcome.session_id, status=client.welcome.status, model=client.welcome.model)
