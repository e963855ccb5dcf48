"""The chat's keyboard and prompt.

Owns prompt_toolkit. Invariant: while the prompt is shown nothing is written but above it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app_or_none, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from llm_cli import actions, commands, exits
from llm_cli.arguments import Options
from llm_cli.bookmark import Bookmarks
from llm_cli.chat import Chat, Draft
from llm_cli.interrupts import on_interrupt, on_termination
from llm_cli.render import clean_line, dim, for_output, wants_colour, wrap
from llm_cli.screen import UNRECORDED, Screen
from llm_cli.sessions import shortened
from llm_cli.show import Shown
from llm_cli.target import Target
from llm_cli.transcript import SUFFIXES, file_words
from llm_cli.view import toolbar
from llmws.client import ClientError
from llmws.client.discovery import state_dir
from llmws.protocol.messages import Image, Sampling

LOOK_UP_S: Final = 1.0
"""How long completion waits for the server; what was known before is offered then."""


class Repl:
    """Reads prompts and commands until the person leaves."""

    def __init__(
        self,
        options: Options,
        target: Target,
        config: Sampling | None,
        shown: Shown,
        *,
        images: Sequence[Image],
        scribe: socket.socket,
    ) -> None:
        self._options = options
        self._shown = shown
        self._screen = Screen(scribe, unrecorded=lambda: self._note(UNRECORDED))
        self._chat = Chat(
            target,
            screen=self._screen,
            renderer=for_output,
            say=self._say,
            note=self._note,
            wait=self._wait,
            confirm=self._confirm,
            changed=self._changed,
            bookmarks=Bookmarks(),
            is_temporary=options.temporary,
        )
        self._chat.model = options.model
        self._chat.system = options.system
        self._chat.config = config
        self._chat.images = list(images)
        self._draft: Draft | None = None
        self._prompt: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            history=InMemoryHistory() if options.temporary else _history(state_dir() / "llm" / "history"),
            completer=CommandCompleter(self._chat),
            complete_while_typing=False,
            key_bindings=_keys(cleared=self._drop_draft),
            bottom_toolbar=lambda: toolbar(self._chat.view),
            enable_open_in_editor=True,
            tempfile_suffix=".md",
        )
        self._above: set[asyncio.Future[None]] = set()
        self._wants_to_leave = False
        self._was_warned = False
        self._signal: int | None = None
        self._status = exits.OK

    async def run(self) -> int:
        """Chats; returns the exit status."""
        task = asyncio.current_task()
        assert task is not None
        self._chat.begin(self._options.session_id, self._shown)
        with on_termination(lambda number: self._terminate(number, task)):
            try:
                await self._talk()
            except asyncio.CancelledError:
                if self._signal is None:
                    raise
            finally:
                failure = self._chat.client.failure
                # Before anything more is said: the terminal may be gone.
                await self._chat.close()
        return self._leave(failure) if self._signal is None else exits.SIGNALLED + self._signal

    # --- one turn --------------------------------------------------------------------------------------------------

    async def _talk(self) -> None:
        if self._options.session_id is not None:
            await self._chat.attempted()
            await self._catch_up()
        while not self._wants_to_leave and self._chat.client.failure is None:
            self._draft, self._chat.draft = self._chat.draft, None
            text = await self._read(self._draft.text if self._draft else "")
            if text.strip():
                await self._attend(self._act(text, self._draft))
            await self._catch_up()

    async def _read(self, beginning: str) -> str:
        """The next input, which begins as given; empty when there is none to act on."""
        self._prompt.app.erase_when_done = False
        try:
            text = (await self._prompt.prompt_async(default=beginning)).strip("\n")
        except KeyboardInterrupt:
            # The Ctrl-C that was meant for an answer may come just after its end.
            if self._was_warned:
                self._interrupted()
            else:
                self._note("Ctrl-C again, or Ctrl-D, to leave")
            self._was_warned = True
            return ""
        except EOFError:
            self._wants_to_leave = True
            return ""
        self._was_warned = False
        return text

    def _drop_draft(self) -> None:
        """What is typed from now on is a question of its own."""
        if self._draft is not None:
            self._draft = None
            self._note("the conversation stays as it is")

    @staticmethod
    async def _confirm(question: str) -> bool:
        try:
            answer = await PromptSession[str](question).prompt_async(handle_sigint=False)
        except (KeyboardInterrupt, EOFError):
            return False
        return answer.strip().lower() in ("y", "yes")

    async def _catch_up(self) -> None:
        if self._chat.is_behind and not self._wants_to_leave:
            await self._attend(self._chat.conversation.catch_up())

    async def _act(self, text: str, draft: Draft | None) -> None:
        call = commands.parse(text)
        if call is None:
            await self._chat.ask(text, parent_id=draft.parent_id if draft else None)
        elif isinstance(call, str):
            self._say(call)
        else:
            await actions.run(self._chat, call)

    async def _attend(self, work: Coroutine[None, None, None]) -> None:
        """Does something that Ctrl-C ends: first gently, then by leaving."""
        task = asyncio.create_task(work)
        is_watching = False

        def gently() -> None:
            nonlocal is_watching
            is_watching = self._chat.conversation.is_watching
            if not self._chat.conversation.cancel():
                task.cancel()

        def leave() -> None:
            self._interrupted()
            task.cancel()

        with on_interrupt(gently, leave):
            try:
                await task
            except asyncio.CancelledError:
                if self._signal is None:
                    self._note("not watching any more; /cancel ends the answer" if is_watching else "interrupted")
            except actions.LeaveError:
                self._wants_to_leave = True
            except ClientError as error:
                if error is not self._chat.client.failure:
                    self._say(exits.explain(error))
            except ValueError as error:
                self._say(clean_line(str(error)))

    def _interrupted(self) -> None:
        self._wants_to_leave = True
        self._status = exits.INTERRUPTED

    def _terminate(self, number: int, task: asyncio.Task[int]) -> None:
        self._signal = number
        self._wants_to_leave = True
        task.cancel()

    def _leave(self, failure: ClientError | None) -> int:
        if failure is not None:
            self._status = exits.status_of(failure)
            self._say(exits.explain(failure))
        if self._chat.conversation.was_used:
            self._say(dim(f"to come back: {self._chat.way_back}"))  # not wrapped: it is to be pasted
        return self._status

    # --- the screen ------------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self._say(dim(wrap(text, shutil.get_terminal_size().columns)))

    def _say(self, text: str) -> None:
        """Shows text on lines of its own: above the prompt, or between the lines of an answer."""
        if (app := get_app_or_none()) is not None and app.is_running:
            above = asyncio.ensure_future(run_in_terminal(lambda: print(text, flush=True)))
            self._above.add(above)
            above.add_done_callback(self._above.discard)
            return
        self._screen.say(text)

    def _wait(self, place: str) -> None:
        if wants_colour() and self._screen.at_line_start:
            self._screen.passing(dim(shortened(place, shutil.get_terminal_size().columns - 1)) if place else "")
        elif place:
            self._note(place)

    def _changed(self) -> None:
        app = self._prompt.app
        if not app.is_running or app.is_done:
            return
        app.invalidate()
        if self._chat.client.failure is not None:
            app.exit(exception=EOFError())
        elif self._chat.is_behind and not self._prompt.default_buffer.text:
            # What was missed comes now that there is a connection; what is being typed is not taken away for it.
            app.erase_when_done = True
            app.exit(result="")


class CommandCompleter(Completer):
    """Completes commands and their arguments."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        """The words that may stand at the cursor, of what is known."""
        found = commands.complete(
            document.text_before_cursor,
            is_online=self._chat.is_online,
            is_admin=self._chat.is_admin,
            words=self._words,
        )
        for word, explanation, replaced in found:
            yield Completion(word, start_position=-replaced, display_meta=explanation)

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """The same, after a look at what the server has."""
        with contextlib.suppress(ClientError, TimeoutError):
            async with asyncio.timeout(LOOK_UP_S):
                await self._look_up(commands.completes(document.text_before_cursor))
        for completion in self.get_completions(document, complete_event):
            yield completion

    async def _look_up(self, kind: commands.Kind) -> None:
        if self._chat.is_online and kind == "models":
            await self._chat.list_models()
        elif self._chat.is_online and kind == "sessions":
            await self._chat.list_sessions()

    def _words(self, kind: commands.Kind, typed: str) -> Iterable[tuple[str, str]]:
        match kind:
            case "models":
                names = [model.name for model in self._chat.models]
                return [(name, "") for name in names if name == clean_line(name)]
            case "settings":
                return [(f"{name}=", "") for name in actions.SETTINGS]
            case "sessions":
                return [(each.session_id, shortened(each.title or "", 60)) for each in self._chat.sessions]
            case "exports":
                return file_words(typed, SUFFIXES)
            case "imports":
                return file_words(typed, (".json",))
            case "images":
                return file_words(typed, (".png", ".jpg", ".jpeg", ".webp", ".gif"))
            case "":
                return []


def _history(path: Path) -> FileHistory:
    """The history file, readable by its owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return FileHistory(str(path))


def _keys(*, cleared: Callable[[], None]) -> KeyBindings:
    """The keys; `cleared` is called when Ctrl-C throws away what was typed."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
            cleared()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    return keys
