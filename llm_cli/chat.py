"""The interactive session without its keyboard: which session is attached, what was chosen, what is known.

Knows neither prompt_toolkit nor what commands are called. Invariant: from `begin` on there is exactly one conversation,
connected or not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from llm_cli import exits
from llm_cli.bookmark import Bookmarks
from llm_cli.conversation import Conversation, shown_of
from llm_cli.render import Renderer
from llm_cli.screen import Screen
from llm_cli.show import TextDisplay
from llm_cli.target import Target
from llm_cli.view import View, notice, reduce
from llmws.client import Client, ClientError, Connected, Disconnected
from llmws.protocol.messages import Sampling

PATIENT_S = 3600.0
"""How long the chat tries to reach a server: a person sees the state and decides when to leave."""
MOMENT_S = 0.3
"""How long the first attempt to connect is waited for, so that what was missed comes before the prompt."""


class Chat:
    """A session that a person talks in.

    Args:
        target: the server.
        screen: where answers go.
        renderer: makes a renderer that goes on in the given state.
        say: shows lines that the person asked for, whatever is on the screen.
        note: shows a line that the person did not ask for.
        confirm: asks the person a question; whether the answer is yes.
        changed: called when `view` has changed.
        bookmarks: where what was shown is recorded.

    Attributes:
        view: what the person knows of the session.
        model: which model the person chose; None for the server's.
        system: the system message for the next prompts.
        config: sampling parameters of the command line.
        model_names: the server's models, as last listed.
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
        confirm: Callable[[str], Awaitable[bool]],
        changed: Callable[[], None],
        bookmarks: Bookmarks,
    ) -> None:
        self.view = View()
        self.model: str | None = None
        self.system: str | None = None
        self.config: Sampling | None = None
        self.model_names: list[str] = []
        self.say = say
        self.note = note
        self.confirm = confirm
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
    def is_online(self) -> bool:
        """Whether the session is attached."""
        return self.view.connection == "online"

    @property
    def is_behind(self) -> bool:
        """Whether what was missed could be shown now."""
        return self.is_online and not self.conversation.is_caught_up

    def begin(self, session_id: str | None) -> None:
        """Takes up a session, or a new one, and begins to connect."""
        shown = shown_of(self._bookmarks.read(session_id) if session_id else None)
        self.view = View()
        client = Client(
            self._target.url,
            self._target.token,
            session_id=session_id,
            position=shown.position,
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
                self._screen, self._renderer(shown.fence), note=self.note, record=record, shown=shown
            ),
            note=self.note,
            failed=lambda error: self.note(exits.explain(error)),
        )
        self._opening = asyncio.create_task(self._open(client))

    async def attempted(self) -> None:
        """Waits, for a moment, until the first attempt to connect has an end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOMENT_S):
                await self._was_attempted.wait()

    async def close(self) -> None:
        """Leaves the session."""
        await self.client.close()
        await self._opening

    async def ask(self, prompt: str) -> None:
        """Asks and shows the answer.

        Raises:
            ClientError: there is none.
        """
        if not self.is_online:
            self.note("not connected; the question is sent as soon as that changes")
        elif self.view.model is None and self.model is None:
            self.note("no model is loaded yet; the answer begins when there is one")
        done = await self.conversation.ask(prompt, system=self.system, model=self.model, config=self.config)
        self._listen(done)

    async def new_session(self) -> None:
        """Leaves the present session for a new one."""
        await self.close()
        self.begin(None)

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
        if isinstance(message, Connected) and message.welcome.status == "new":
            self.conversation.restarted()
        if line is not None:
            self.note(line)
        self._changed()
