"""A session that is being shown: asks, shows the answers, and says what to record.

What the one-shot call and the interactive chat have in common. Knows no keyboard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from llm_cli.bookmark import Record
from llm_cli.render import clean_line
from llm_cli.screen import Screen
from llm_cli.show import Display, Shown
from llmws.client import (
    Client,
    ClientError,
    Done,
    Generation,
    GenerationError,
    IntegrityError,
    Position,
    RequestRejectedError,
    SessionLostError,
    Start,
    question,
)
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Image, Sampling

PATIENCE_S: Final = 600.0
"""How long a request is offered again to a server that is loading its model or restarting."""
FORGET_TIMEOUT_S: Final = 5.0
"""How long deleting a temporary session may hold up leaving it."""
_RECENT: Final = 20
_RETRY_S: Final = 1.0
_PASSING: Final = (ErrorCode.MODEL_LOADING, ErrorCode.RATE_LIMITED)


def shown_of(record: Record | None) -> Shown:
    """What a bookmark says was shown."""
    if record is None or record.epoch is None:
        return Shown()
    position = Position(epoch=record.epoch, last_seq=record.last_seq)
    return Shown(position=position, chars=record.chars, fence=record.fence)


class Conversation:
    """A session and what of it was shown.

    Attributes:
        client: the session's client.
        is_caught_up: whether everything of earlier requests was shown.
        is_temporary: whether nothing is recorded, and `forget` deletes the session.
        is_watching: whether another person's answer is being shown.

    Args:
        shown: what an earlier process has shown.
        display: makes the place where answers go, from what it calls for a record of what it has shown.
        note: shows a line that is not part of an answer.
        failed: called with what an earlier request ended in, if not in `Done`.
        is_temporary: as the attribute.
        is_discovered: whether the server was found, not named.
    """

    def __init__(
        self,
        client: Client,
        screen: Screen,
        shown: Shown,
        *,
        display: Callable[[Callable[[Shown], Record | None]], Display],
        note: Callable[[str], None],
        failed: Callable[[ClientError], None],
        is_temporary: bool = False,
        is_discovered: bool = False,
    ) -> None:
        self.client = client
        self.is_temporary = is_temporary
        self._is_discovered = is_discovered
        self.is_caught_up = client.session_id is None
        self._was_used = shown.position is not None
        self._screen = screen
        self._shown = shown
        self._display = display(self.record)
        self._note = note
        self._failed = failed
        self._running: Generation | None = None
        self.is_watching = False

    @property
    def is_behind(self) -> bool:
        """Whether there is something to catch up with, once there is a connection."""
        return not self.is_caught_up or self.client.has_collectable

    @property
    def shown(self) -> Shown:
        """What of the session was shown."""
        return self._shown

    @property
    def was_used(self) -> bool:
        """Whether there is anything in the session to come back to."""
        return self._was_used and self.client.welcome is not None and not self.is_temporary

    def take_over(self) -> None:
        """Takes the session from the client that has it; what that asked comes before the next question.

        Raises:
            ClientError: the client has given up.
        """
        self.is_caught_up = self.is_caught_up and not self.client.is_observer
        self.client.take_over()

    async def catch_up(self) -> None:
        """Shows what of other requests was not shown, waiting for those that still run.

        Raises:
            ClientError: the session cannot be attached.
        """
        async for generation in self.client.collect():
            self._was_used = True
            try:
                await self._show(generation, is_watched=self.client.is_observer)
            except (GenerationError, IntegrityError, SessionLostError) as error:
                self._failed(error)
        self.is_caught_up = True

    def restarted(self) -> None:
        """The session is a new one, where nothing was shown yet."""
        self._shown = Shown()

    async def ask(
        self,
        prompt: str | None,
        *,
        system: str | None,
        model: str | None,
        config: Sampling | None = None,
        images: Sequence[Image] = (),
        parent_id: str | None = None,
    ) -> Done:
        """Asks and shows the answer, after what is missing of earlier ones: the bookmark would skip that.

        Args:
            prompt: None to answer the question `parent_id` once more.
            system: replaces the conversation's system message.
            model: which model answers; None for the server's present one.
            config: sampling parameters.
            images: shown to the model with the prompt.
            parent_id: the message that the prompt follows; None for the newest, empty for a new beginning.

        Raises:
            ClientError: as `Generation`.
        """
        if self.is_behind:
            await self.catch_up()
        self._was_used = True
        deadline_s = asyncio.get_running_loop().time() + PATIENCE_S
        noted = ""
        while True:
            await self._screen.write("", self.record(self._shown))
            generation = self.client.generate(
                prompt, system=system, images=images, model=model, config=config, parent_id=parent_id
            )
            try:
                return await self._show(generation)
            except RequestRejectedError as error:
                if error.code not in _PASSING or asyncio.get_running_loop().time() > deadline_s:
                    raise
                if error.message != noted:
                    noted = error.message
                    self._note(f"{clean_line(noted)}; trying again")
                await asyncio.sleep((error.retry_after_ms or 0) / 1000 or _RETRY_S)

    def cancel(self) -> bool:
        """Ends the answer that is being shown; whether there is one, and not another person's that is only watched."""
        if self._running is None or self.is_watching:
            return False
        self._running.cancel()
        if not self.client.is_connected and self._running.request_id in self.client.running():
            self._note("not connected; the answer is ended as soon as that changes")
        return True

    async def forget(self) -> None:
        """Deletes the session if it is a temporary one, whoever has it now; says so if that fails."""
        session_id = self.client.session_id
        if not self.is_temporary or session_id is None:
            return
        try:
            async with asyncio.timeout(FORGET_TIMEOUT_S):
                self.client.take_over()
                await self.client.end_session()
        except (ClientError, TimeoutError):
            self._note(f"this temporary session could not be deleted; /forget {session_id}")

    def record(self, shown: Shown) -> Record | None:
        """What to keep on disk when so much was shown; None while there is no session."""
        self._shown = shown
        if self.client.session_id is None or self.is_temporary:
            return None
        position = shown.position or self.client.position
        return Record(
            session_id=self.client.session_id,
            url=self.client.url,
            is_discovered=self._is_discovered,
            epoch=None if position is None else position.epoch,
            last_seq=0 if position is None else position.last_seq,
            chars=shown.chars,
            fence=shown.fence,
        )

    async def _show(self, generation: Generation, *, is_watched: bool = False) -> Done:
        done: Done | None = None
        is_introduced = not is_watched
        with self._as_running(generation, is_watched=is_watched):
            try:
                async for event in generation:
                    if is_watched and isinstance(event, Start):
                        is_introduced = await self._tell_question(event.request_id, "another client asks")
                        if not is_introduced:
                            self._note("another client asked; the answer:")
                    await self._display.show(event)
                    done = event if isinstance(event, Done) else None
            except GenerationError as error:
                await self._display.fail(error.error)
                raise
        if not is_introduced:
            await self._tell_question(generation.request_id, "the question was")
        assert done is not None, "an answer that ends without Done raises"
        if done.finish_reason == "cancelled" and not generation.is_cancel_requested:
            self._note("the answer was cancelled")
        return done

    async def _tell_question(self, request_id: str, lead: str) -> bool:
        """Shows what another client asked; whether the server knows: it may keep a turn only once it has ended."""
        try:
            asked = question((await self.client.history(limit=_RECENT)).messages, request_id)
        except ClientError:
            return False
        if asked is not None:
            self._note(f"{lead}: {clean_line(asked.content)}")
        return asked is not None

    @contextlib.contextmanager
    def _as_running(self, generation: Generation, *, is_watched: bool) -> Iterator[None]:
        self._running, self.is_watching = generation, is_watched
        try:
            yield
        finally:
            self._running, self.is_watching = None, False
