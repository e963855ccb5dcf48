"""A session's conversation: a tree of messages, a branch of which becomes the context of its next request.

Knows neither tokens nor templates. Invariant: messages are immutable, and each is recorded once, at the terminal
event of its request.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final, Literal

import msgspec

from llmws.engine_api import Turn
from llmws.protocol import messages as m
from llmws.session.journal import Journal
from llmws.session.records import MessageBody, SettingsBody, encode_body
from llmws.session.request import Request
from llmws.session.rules import Durability
from llmws.store_api import Record

PAGE_CHARS: Final = 256 * 1024
"""Text in one `history` reply; a frame of several times that is still below what clients take."""

TITLE_CHARS: Final = 80
MAX_CHARS: Final = 32 * 2**20
HEAVY_CHARS: Final = 2**20

_MESSAGE = msgspec.json.Decoder(MessageBody)
_SETTINGS = msgspec.json.Decoder(SettingsBody)


class Conversation:
    """The messages, in the order recorded, and the session's settings, with the log that keeps them."""

    def __init__(
        self,
        session_id: str,
        *,
        durability: Durability = "os",
        records: Iterable[Record] = (),
        next_n: int = 1,
    ) -> None:
        self.journal = Journal(session_id, "conversation", durability=durability, next_n=next_n)
        self.settings = SettingsBody()
        self.messages: dict[str, MessageBody] = {}
        self._session_id = uuid.UUID(session_id)
        self._leaf_id: str | None = None
        self._chars = 0
        self._image_chars = 0
        for record in records:
            if record.kind == "message":
                self._keep(_MESSAGE.decode(record.value))
            elif record.kind == "config":
                self.settings = _SETTINGS.decode(record.value)

    # --- settings --------------------------------------------------------------------------------------------------

    def configure(self, sampling: m.Sampling) -> None:
        """Replaces the session's sampling defaults."""
        self._set(msgspec.structs.replace(self.settings, sampling=sampling))

    def rename(self, title: str | None) -> None:
        """Gives the session a title, or takes it away."""
        self._set(msgspec.structs.replace(self.settings, title=title))

    @property
    def title(self) -> str | None:
        """What lists show: the title that was given, else how the conversation begins."""
        if self.settings.title is not None:
            return self.settings.title
        first = next((each.content for each in self.messages.values() if each.role == "user"), "")
        words = " ".join(first[: 4 * TITLE_CHARS].split())[:TITLE_CHARS]
        return "".join(each for each in words if each.isprintable()) or None

    @property
    def is_full(self) -> bool:
        """Whether it takes no more messages: all of it is in memory while the session is."""
        return self._chars > MAX_CHARS

    @property
    def is_heavy(self) -> bool:
        """Whether it holds so many images that it stays in memory only while it is needed."""
        return self._image_chars > HEAVY_CHARS

    # --- branches --------------------------------------------------------------------------------------------------

    def wrong_parent(self, message: m.Inference) -> str | None:
        """Why the message cannot stand where its `parent_id` says, or None."""
        if not message.parent_id:
            return None
        parent = self.messages.get(message.parent_id)
        if parent is None:
            return "no such message in this session"
        if message.prompt is None and parent.role != "user":
            return "only a question can be answered again; name the message with role user"
        return None

    def context(self, request: Request) -> tuple[Turn, ...]:
        """The turns that the request's prompt is rendered from."""
        message = request.message
        if message.messages is not None:
            return tuple(Turn(role=each.role, content=each.content) for each in message.messages)
        system, user = _prompt_parts(message, self.settings.system)
        turns = [Turn(role="system", content=system)] if system else []
        if message.prompt is None:
            user = self.messages[message.parent_id or ""].content
        turns += [
            Turn(role=each.role, content=each.content, images=len(each.images))
            for each in self._branch(self.place(message))
        ]
        return (*turns, Turn(role="user", content=user, images=len(self.shown(message))))

    def images(self, request: Request) -> tuple[m.Image, ...]:
        """The images of the context, in the order of its turns."""
        if not request.uses_conversation:
            return ()
        earlier = (image for each in self._branch(self.place(request.message)) for image in each.images)
        return (*earlier, *self.shown(request.message))

    def shown(self, message: m.Inference) -> tuple[m.Image, ...]:
        """The images of the question itself."""
        if message.prompt is not None:
            return _images_of(message)
        question = self.messages.get(message.parent_id or "")
        return question.images if question else ()

    def place(self, message: m.Inference) -> str | None:
        """The message that the question follows: the one it names, or the newest answer; None: it is the first."""
        if message.prompt is None:
            question = self.messages.get(message.parent_id or "")
            return question.parent_id if question else None
        return self._leaf_id if message.parent_id is None else message.parent_id or None

    def _branch(self, leaf_id: str | None) -> list[MessageBody]:
        """The messages from the root down to one."""
        branch: list[MessageBody] = []
        # A damaged log may have lost what is above.
        while leaf_id is not None and (message := self.messages.get(leaf_id)) is not None:
            leaf_id = message.parent_id
            branch.append(message)
        branch.reverse()
        return branch

    # --- recording -------------------------------------------------------------------------------------------------

    def finish(self, request: Request, *, finish_reason: str | None, model: str | None, now_s: float) -> None:
        """Records a finished request's turn: the question always, the answer unless it ended in an error.

        What is recorded already is not recorded again. Does nothing for a request that brought its own context.
        """
        if not request.uses_conversation:
            return
        message = request.message
        if message.prompt is None:
            question_id = message.parent_id
        else:
            system, content = _prompt_parts(message, self.settings.system)
            question_id = self._id_of("user", request.id)
            if question_id not in self.messages and finish_reason is not None and request.is_started:
                self._set(msgspec.structs.replace(self.settings, system=system))
            # No answer was added and nothing imported since the question was rendered: it still has that place.
            follows = self.place(message)
            self._record(
                MessageBody(
                    id=question_id,
                    parent_id=follows if follows in self.messages else None,
                    role="user",
                    content=content,
                    request_id=request.id,
                    created_s=request.accepted_unix_s,
                    images=_images_of(message),
                )
            )
        if finish_reason is not None and request.is_started:
            self._record(
                MessageBody(
                    id=self._id_of("assistant", request.id),
                    parent_id=question_id if question_id in self.messages else None,
                    role="assistant",
                    content=request.text,
                    request_id=request.id,
                    created_s=now_s,
                    model=model,
                    finish_reason=finish_reason,
                )
            )

    def add(self, messages: list[m.ChatMessage], *, now_s: float, new_id: Callable[[], str]) -> None:
        """Records messages that came from elsewhere as a branch of their own; the next prompt follows the last one."""
        parent_id = None
        for each in messages:
            if each.role == "system":
                self._set(msgspec.structs.replace(self.settings, system=each.content or None))
                continue
            message = MessageBody(
                id=new_id(), parent_id=parent_id, role=each.role, content=each.content, request_id="", created_s=now_s
            )
            self._record(message)
            parent_id = message.id

    # --- reading ---------------------------------------------------------------------------------------------------

    def page(self, *, before_id: str | None, limit: int) -> m.HistoryReply | None:
        """The newest messages before the one named (or of all), oldest first; None if there is no such message.

        At most `limit` of them and about `PAGE_CHARS` of text, but at least one.
        """
        if before_id is not None and before_id not in self.messages:
            return None
        newest_first = reversed(self.messages.values())
        if before_id is not None:
            next(each for each in newest_first if each.id == before_id)
        page: list[MessageBody] = []
        room = PAGE_CHARS
        for each in islice(newest_first, limit + 1):
            if len(page) == limit or (page and room < len(each.content)):
                return m.HistoryReply(messages=_entries(page), more=True)
            page.append(each)
            room -= len(each.content)
        return m.HistoryReply(messages=_entries(page), more=False)

    def how_ended(self, request_id: str) -> Literal["done", "error"] | None:
        """How a request ended whose turn is recorded, None if there is none of this id."""
        if self._id_of("assistant", request_id) in self.messages:
            return "done"
        return "error" if self._id_of("user", request_id) in self.messages else None

    def _id_of(self, role: m.Role, request_id: str) -> str:
        """The id of a request's message: the same in every process, so that a turn is recorded once."""
        return str(uuid.uuid5(self._session_id, f"{role} {request_id}"))

    def _record(self, message: MessageBody) -> None:
        if message.id in self.messages:
            return
        self._keep(message)
        self.journal.add("message", encode_body(message), sync=True)

    def _keep(self, message: MessageBody) -> None:
        self.messages[message.id] = message
        image_chars = sum(len(each.data) for each in message.images)
        self._image_chars += image_chars
        self._chars += len(message.content) + image_chars
        # A question without an answer is followed by nothing that does not name it: templates want turns to alternate,
        # and what was too long once would be too long in every later prompt. Imported ones are taken as they are.
        if message.role == "assistant" or not message.request_id:
            self._leaf_id = message.id

    def _set(self, settings: SettingsBody) -> None:
        if settings != self.settings:
            self.settings = settings
            self.journal.add("config", encode_body(settings), sync=True)


def _entries(newest_first: list[MessageBody]) -> list[m.HistoryMessage]:
    return [
        m.HistoryMessage(
            id=each.id,
            parent_id=each.parent_id,
            role=each.role,
            content=each.content,
            request_id=each.request_id or None,
            model=each.model,
            created_at=each.created_s,
            finish_reason=each.finish_reason,
        )
        for each in reversed(newest_first)
    ]


def _prompt_parts(message: m.Inference, system: str | None) -> tuple[str | None, str]:
    """System and user text of a prompt. An empty system message, which original clients always send, means none."""
    if isinstance(message.prompt, m.Prompt):
        return (system if message.prompt.system is None else message.prompt.system or None), message.prompt.user
    return system, message.prompt or ""


def _images_of(message: m.Inference) -> tuple[m.Image, ...]:
    return tuple(message.prompt.images or ()) if isinstance(message.prompt, m.Prompt) else ()
