"""The questions that a client may ask of its server, each with one reply.

Knows no socket; how a question travels is the client's. Invariant: every method here ends within its timeout, with the
reply or with a `ClientError`.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from llmws.client import requests
from llmws.client.requests import SamplingValue
from llmws.protocol import messages as m

CALL_TIMEOUT_S: Final = 30.0
SWITCH_TIMEOUT_S: Final = 3600.0
HISTORY_LIMIT: Final = 200
"""Most messages in one page of the conversation. Source: `llmws.protocol.messages.History`."""

Reply = TypeVar("Reply", bound=m.Message)


class Questions(abc.ABC):
    """What of a client is not about answers.

    Each may raise `RequestRejectedError`, `NoReplyError`, or whatever else the client gave up for.
    """

    @property
    @abc.abstractmethod
    def session_id(self) -> str | None:
        """The session's id; None before the first welcome of a new one."""

    async def resources(self) -> m.Resources:
        """Device, model and load."""
        return await self._ask(m.GetResources(), m.Resources)

    async def status(self) -> m.Status:
        """The server's state in short."""
        return await self._ask(m.GetStatus(), m.Status)

    async def models(self) -> list[m.ModelEntry]:
        """The models on the server."""
        return (await self._ask(m.ListModels(), m.ModelsList)).models

    async def switch_model(
        self,
        name: str,
        on_progress: Callable[[m.Log], None] | None = None,
        *,
        timeout_s: float = SWITCH_TIMEOUT_S,
    ) -> m.ModelSwitched:
        """Loads another model; running answers finish first. Needs an admin's token.

        Args:
            name: as `models` lists it.
            on_progress: called with `Log(code="loading", bytes, total_bytes)` while it loads.
            timeout_s: for the whole load.
        """
        return await self._ask(m.SwitchModel(name=name), m.ModelSwitched, timeout_s=timeout_s, on_log=on_progress)

    async def delete_model(self, name: str) -> m.ModelDeleted:
        """Deletes a model's files; never the loaded one's. Needs an admin's token."""
        return await self._ask(m.DeleteModel(model_name=name), m.ModelDeleted)

    async def config(self, **sampling: SamplingValue) -> m.Sampling:
        """Sets the session's sampling defaults, merged over the present ones, and gives all that are in force."""
        return (await self._ask(m.Config(data=requests.sampling(sampling)), m.ConfigAck)).config

    async def history(self, *, before_id: str | None = None, limit: int = 50) -> m.HistoryReply:
        """A page of the session's conversation, oldest first; the newest page without `before_id`."""
        return await self._ask(m.History(before_id=before_id, limit=limit), m.HistoryReply)

    async def conversation(self) -> list[m.HistoryMessage]:
        """The session's whole conversation, a tree, oldest message first; `branch` follows one of its branches."""
        page = await self.history(limit=HISTORY_LIMIT)
        messages = page.messages
        while page.more and page.messages:
            page = await self.history(before_id=page.messages[0].id, limit=HISTORY_LIMIT)
            messages = page.messages + messages
        return messages

    async def import_messages(self, messages: Sequence[m.ChatMessage | dict[str, str]]) -> m.SessionUpdated:
        """Adds messages to the conversation, oldest first, as a branch of its own, which the next prompt continues.

        Should the connection be lost before the reply, the branch may be there twice.
        """
        checked = msgspec.convert(messages, list[m.ChatMessage])
        return await self._ask(m.Import(messages=checked), m.SessionUpdated)

    async def sessions(self) -> list[m.SessionEntry]:
        """One's own sessions on the server, the most recently used first."""
        return (await self._ask(m.ListSessions(), m.Sessions)).sessions

    async def update_session(self, *, title: str | None) -> m.SessionUpdated:
        """Sets what lists call the session; None: how its conversation begins."""
        return await self._ask(m.UpdateSession(title=title), m.SessionUpdated)

    async def end_session(self, session_id: str | None = None) -> None:
        """Deletes a session of one's own and everything in it for good.

        Args:
            session_id: None for this client's own session; the server then closes the connection.
        """
        session_id = session_id or self.session_id
        assert session_id is not None, "a client that was never connected has no session"
        await self._ask(m.EndSession(session_id=session_id), m.SessionEnded)

    async def ping(self) -> float:
        """Seconds to the server and back, through its message loop."""
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        await self._ask(m.Ping(t=sent_s), m.Pong)
        return loop.time() - sent_s

    @abc.abstractmethod
    async def _ask(
        self,
        question: m.ClientMessage,
        reply_type: type[Reply],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        on_log: Callable[[m.Log], None] | None = None,
    ) -> Reply:
        """Asks, and waits for the reply."""
