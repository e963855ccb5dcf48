"""The interactive session without its keyboard: which session is attached, what was chosen, what is known.

Knows neither prompt_toolkit nor what commands are called. Invariant: from `begin` on there is exactly one conversation,
connected or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from llm_cli import exits
from llm_cli.bookmark import Bookmarks
from llm_cli.conversation import Conversation, shown_of
from llm_cli.render import Renderer, clean_line
from llm_cli.screen import Screen
from llm_cli.show import Shown, TextDisplay
from llm_cli.target import Target
from llm_cli.view import View, notice, reduce
from llmws.client import Client, ClientError, Connected, Disconnected, RequestRejectedError
from llmws.protocol.messages import Image, ModelEntry, Sampling, SessionEntry

PATIENT_S = 3600.0
"""How long the chat tries to reach a server: a person sees the state and decides when to leave."""
MOMENT_S = 0.3
"""How long the first attempt to connect is waited for, so that what was missed comes before the prompt."""


class Draft(NamedTuple):
    """A question that the person is to change before it is asked.

    Attributes:
        text: the question as it was.
        parent_id: the message that it follows; empty for none.
    """

    text: str
    parent_id: str


class Chat:
    """A session that a person talks in.

    Args:
        target: the server.
        screen: where answers go.
        renderer: makes a renderer that goes on in the given state.
        say: shows lines that the person asked for, whatever is on the screen.
        note: shows a line that the person did not ask for.
        wait: shows a request's place in the queue, until it is called again; empty when it is its turn.
        confirm: asks the person a question; whether the answer is yes.
        changed: called when `view` has changed.
        bookmarks: where what was shown is recorded.
        is_temporary: whether new sessions are deleted when they are left.

    Attributes:
        view: what the person knows of the session.
        model: which model the person chose; None for the server's.
        system: the system message for the next prompts.
        config: sampling parameters of the command line.
        images: what the model is shown with the next question.
        models: the server's models, as last listed.
        sessions: the person's sessions, as last asked for.
        shown_sessions: the list of them that the person saw last, which numbers refer to.
        is_admin: whether the token is an admin's, as far as is known.
        draft: what the next prompt begins with, if anything.
    """

    conversation: Conversation
    _opening: asyncio.Task[None]

    def __init__(
        self,
        target: Target,
        *,
        screen: Screen,
        renderer: Callable[[str], Renderer],
        say: Callable[[str], None],
        note: Callable[[str], None],
        wait: Callable[[str], None],
        confirm: Callable[[str], Awaitable[bool]],
        changed: Callable[[], None],
        bookmarks: Bookmarks,
        is_temporary: bool = False,
    ) -> None:
        self.view = View()
        self.model: str | None = None
        self.system: str | None = None
        self.config: Sampling | None = None
        self.images: list[Image] = []
        self.models: list[ModelEntry] = []
        self.sessions: list[SessionEntry] = []
        self.shown_sessions: list[SessionEntry] = []
        self.is_admin = True
        self.draft: Draft | None = None
        self.say = say
        self.note = note
        self.confirm = confirm
        self._wait = wait
        self._is_temporary = is_temporary
        self._left: dict[str, Shown] = {}
        self._target = target
        self._screen = screen
        self._renderer = renderer
        self._changed = changed
        self._bookmarks = bookmarks
        self._was_attempted = asyncio.Event()

    @property
    def client(self) -> Client:
        """The present session's client."""
        return self.conversation.client

    @property
    def way_back(self) -> str:
        """The command by which a later `llm` goes on with the present session."""
        return clean_line(shlex.join(["llm", "--session", self.client.session_id or "", *self._target.arguments]))

    @property
    def is_online(self) -> bool:
        """Whether the session is attached."""
        return self.view.connection == "online"

    @property
    def is_behind(self) -> bool:
        """Whether what was missed could be shown now."""
        return self.is_online and self.conversation.is_behind

    def begin(self, session_id: str | None, shown: Shown) -> None:
        """Takes up a session, or a new one, and begins to connect; `shown`: what of it was shown before."""
        self.view = View()
        self.draft = None
        self._was_attempted.clear()
        client = Client(
            self._target.url,
            self._target.token,
            tls=self._target.tls,
            session_id=session_id,
            position=shown.position,
            when_taken_over="observe",
            name="llm",
            connect_timeout_s=PATIENT_S,
            reconnect_timeout_s=PATIENT_S,
            listen=self._listen,
        )
        self.conversation = Conversation(
            client,
            self._screen,
            shown,
            display=lambda record: TextDisplay(
                self._screen,
                self._renderer(shown.fence),
                note=self.note,
                wait=self._wait,
                record=record,
                shown=shown,
            ),
            note=self.note,
            failed=lambda error: self.note(exits.explain(error)),
            is_temporary=self._is_temporary and session_id is None,
            is_discovered=self._target.is_discovered,
        )
        self._opening = asyncio.create_task(self._open(client))

    async def attempted(self) -> None:
        """Waits, for a moment, until the first attempt to connect has an end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOMENT_S):
                await self._was_attempted.wait()

    async def close(self) -> None:
        """Leaves the session."""
        await self.conversation.forget()
        await self.client.close()
        await self._opening
        if self.client.session_id is not None:
            self._left[self.client.session_id] = self.conversation.shown

    async def ask(self, prompt: str | None, *, parent_id: str | None = None) -> None:
        """Asks and shows the answer; takes the session over if another client has it.

        Args:
            prompt: None to answer the question `parent_id` once more.
            parent_id: the message that the prompt follows; None for the newest, empty for a new beginning.

        Raises:
            ClientError: there is none.
        """
        self.conversation.take_over()
        if not self.is_online:
            self.note("not connected; the question is sent as soon as that changes")
        images: list[Image] = []
        if prompt is not None:
            images, self.images = self.images, []
        try:
            done = await self.conversation.ask(
                prompt,
                system=None if prompt is None else self.system,
                model=self.model,
                config=self.config,
                images=images,
                parent_id=parent_id,
            )
        except RequestRejectedError:
            self.images = images + self.images  # the question was not taken; they go with the next one
            raise
        self._listen(done)

    async def go_to(self, session_id: str | None) -> None:
        """Leaves the present session for another, or a new one."""
        await self.close()
        self.begin(session_id, await self._shown_of(session_id))
        await self.attempted()

    def deleted(self, session_id: str) -> None:
        """Forgets what was kept here of a session that the server no longer has."""
        self._left.pop(session_id, None)
        self._bookmarks.delete(session_id)

    async def title_of(self, session_id: str | None) -> str | None:
        """What a session is called now."""
        return next((each.title for each in await self.list_sessions() if each.session_id == session_id), None)

    async def list_models(self) -> list[ModelEntry]:
        """The server's models; kept, so that what is typed can be checked and completed."""
        self.models = await self.client.models()
        return self.models

    async def list_sessions(self) -> list[SessionEntry]:
        """The person's sessions; kept, so that what is typed can be completed."""
        self.sessions = await self.client.sessions()
        return self.sessions

    async def _shown_of(self, session_id: str | None) -> Shown:
        if session_id is None:
            return Shown()
        if session_id in self._left:
            return self._left.pop(session_id)
        return shown_of(await asyncio.to_thread(self._bookmarks.read, session_id))

    @staticmethod
    async def _open(client: Client) -> None:
        # A failure stays in `client.failure`, where everything that needs the connection meets it.
        with contextlib.suppress(ClientError):
            await client.open()

    def _listen(self, message: object) -> None:
        line = notice(self.view, message)
        self.view = reduce(self.view, message)
        if isinstance(message, Connected | Disconnected):
            self._was_attempted.set()
        if isinstance(message, Connected):
            self.is_admin = message.welcome.role != "user"
        if isinstance(message, Connected) and message.welcome.status == "new":
            self.conversation.restarted()
        if line is not None:
            self.note(line)
        self._changed()
