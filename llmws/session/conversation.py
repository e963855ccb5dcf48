"""A session's conversation: the messages that become the context of its next request.

Knows neither tokens nor templates. Invariant: messages are immutable, and each is recorded once, at the terminal
event of its request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from llmws.engine_api import Turn
from llmws.protocol import messages as m
from llmws.session.journal import Journal
from llmws.session.records import MessageBody, SettingsBody, encode_body
from llmws.session.request import Request
from llmws.store_api import Record

PAGE_CHARS: Final = 256 * 1024
"""Text in one `history` reply; a frame of several times that is still below what clients take."""

_MESSAGE = msgspec.json.Decoder(MessageBody)
_SETTINGS = msgspec.json.Decoder(SettingsBody)


class Conversation:
    """The messages, oldest first, and the session's settings, with the log that keeps them."""

    def __init__(self, session_id: str, *, records: Iterable[Record] = (), next_n: int = 1) -> None:
        self.journal = Journal(session_id, "conversation", next_n=next_n)
        self.settings = SettingsBody()
        self.messages: list[MessageBody] = []
        self._requests: set[str] = set()
        for record in records:
            if record.kind == "message":
                self._keep(_MESSAGE.decode(record.value))
            elif record.kind == "config":
                self.settings = _SETTINGS.decode(record.value)

    def configure(self, sampling: m.Sampling) -> None:
        """Replaces the session's sampling defaults."""
        if sampling != self.settings.sampling:
            self._set(msgspec.structs.replace(self.settings, sampling=sampling))

    def context(self, request: Request) -> tuple[Turn, ...]:
        """The turns that the request's prompt is rendered from."""
        if request.message.messages is not None:
            return tuple(Turn(role=each.role, content=each.content) for each in request.message.messages)
        system, user = _prompt_parts(request.message, self.settings.system)
        turns = [Turn(role="system", content=system)] if system else []
        answered = {each.request_id for each in self.messages if each.role == "assistant"}
        # A question that ended in an error stays in the history only: templates want turns to alternate, and what was
        # too long once would be too long in every later prompt.
        turns += [Turn(role=each.role, content=each.content) for each in self.messages if each.request_id in answered]
        return (*turns, Turn(role="user", content=user))

    def finish(
        self, request: Request, *, finish_reason: str | None, model: str | None, now_s: float, new_id: Callable[[], str]
    ) -> None:
        """Records a finished request's turn: the question always, the answer unless it ended in an error.

        Does nothing for a request that brought its own context, or whose turn is recorded already.
        """
        if not request.uses_conversation or request.id in self._requests:
            return
        system, content = _prompt_parts(request.message, self.settings.system)
        if finish_reason is not None and system != self.settings.system:
            self._set(msgspec.structs.replace(self.settings, system=system))
        question = MessageBody(
            id=new_id(),
            parent_id=self.messages[-1].id if self.messages else None,
            role="user",
            content=content,
            request_id=request.id,
            created_s=now_s,
        )
        self._record(question)
        if finish_reason is not None and request.is_started:
            answer = msgspec.structs.replace(
                question,
                id=new_id(),
                parent_id=question.id,
                role="assistant",
                content=request.text,
                model=model,
                finish_reason=finish_reason,
            )
            self._record(answer)

    def page(self, *, before_id: str | None, limit: int) -> m.HistoryReply | None:
        """The newest messages before the one named (or of all), oldest first; None if there is no such message.

        At most `limit` of them and about `PAGE_CHARS` of text, but at least one.
        """
        ids = [each.id for each in self.messages]
        if before_id is not None and before_id not in ids:
            return None
        end = len(ids) if before_id is None else ids.index(before_id)
        start, room = end, PAGE_CHARS
        while start > max(0, end - limit) and (start == end or room >= len(self.messages[start - 1].content)):
            start -= 1
            room -= len(self.messages[start].content)
        page = [
            m.HistoryMessage(
                id=each.id,
                parent_id=each.parent_id,
                role=each.role,
                content=each.content,
                request_id=each.request_id,
                model=each.model,
                created_at=each.created_s,
                finish_reason=each.finish_reason,
            )
            for each in self.messages[start:end]
        ]
        return m.HistoryReply(messages=page, more=start > 0)

    def _record(self, message: MessageBody) -> None:
        self._keep(message)
        self.journal.add("message", encode_body(message), sync=True)

    def _keep(self, message: MessageBody) -> None:
        self.messages.append(message)
        self._requests.add(message.request_id)

    def _set(self, settings: SettingsBody) -> None:
        self.settings = settings
        self.journal.add("config", encode_body(settings), sync=True)


def _prompt_parts(message: m.Inference, system: str | None) -> tuple[str | None, str]:
    """System and user text of a prompt. An empty system message, which original clients always send, means none."""
    if isinstance(message.prompt, m.Prompt):
        return (system if message.prompt.system is None else message.prompt.system or None), message.prompt.user
    return system, message.prompt or ""
