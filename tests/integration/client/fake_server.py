"""A small server that speaks the protocol from memory, and misbehaves on request.

It runs no model: `answers` maps a prompt to the pieces that it is answered with. Real code, not a mock: everything a
client sees goes through a real socket.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from typing import Any, Self
from uuid import uuid4

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from llmws.protocol import SUBPROTOCOL, CloseCode, decode, encode
from llmws.protocol import messages as m

HELLO = ("He", "l", "lo")


class FakeSession:
    """The log of one session and the requests in it."""

    def __init__(self, session_id: str) -> None:
        self.id = session_id
        self.events: list[m.Event] = []
        self.floor = 0
        self.requests: dict[str, m.Inference] = {}
        self.open: list[str] = []
        self.started: set[str] = set()
        self.owner: Attached | None = None
        self.changed = asyncio.Condition()
        self.title: str | None = None
        self.messages: list[m.HistoryMessage] = []
        self.observers: set[Attached] = set()

    @property
    def head(self) -> int:
        return len(self.events)

    def add(self, role: Any, content: str, *, parent_id: str | None, request_id: str | None = None) -> str:
        """Adds a message to the conversation; its id."""
        message = m.HistoryMessage(
            id=f"m{len(self.messages) + 1}",
            parent_id=parent_id,
            role=role,
            content=content,
            request_id=request_id,
            model=None,
            created_at=0.0,
            finish_reason=None,
        )
        self.messages.append(message)
        return message.id

    def reply(self, message: m.ClientMessage) -> m.Message | None:
        """The answer to what is about the session itself."""
        match message:
            case m.Import(messages=messages):
                parent_id = None
                for each in messages:
                    parent_id = self.add(each.role, each.content, parent_id=parent_id)
                return m.SessionUpdated(session_id=self.id, title=self.title)
            case m.UpdateSession(title=title):
                self.title = title
                return m.SessionUpdated(session_id=self.id, title=title)
            case m.History(before_id=before_id, limit=limit):
                ids = [each.id for each in self.messages]
                end = len(ids) if before_id is None else ids.index(before_id)
                start = max(0, end - limit)
                return m.HistoryReply(messages=self.messages[start:end], more=start > 0)
            case _:
                return None


class Attached:
    """One connection and how far it has been sent."""

    def __init__(self, socket: ServerConnection, cursor: int, window: int | None) -> None:
        self.socket = socket
        self.cursor = self.base = cursor
        self.window = window
        self.is_observer = False


class FakeServer:
    """The server. Knobs are plain attributes; each one-shot knob forgets itself when it has acted.

    Attributes:
        answers: what a prompt is answered with; `HELLO` for any other.
        token: what a hello must carry, if not None.
        held: tokens are sent only as `step` releases them.
        cut_after: connections are torn down right after the event with such a seq was sent, once each.
        skip: events that are left out once.
        double: every event is sent twice.
        reset_reason: the next resume is answered with this reset.
        close_next: the next hello is answered with this close code.
        wrong_digest: `done` carries the SHA-256 of another text.
        fail_with: requests end in this error code after their tokens.
        reject_with: requests are refused with this error.
        is_admin: whether models may be switched and deleted.
        is_disk_full: sessions are not kept, and requests are answered by sending the client away.
        take_over_next_request: the next request is answered by closing, as if another client came just before it.
        unknown: messages that are answered as an older server would, by `type`.
        received: every message that came, oldest first.
        close_codes: what attached connections ended with, oldest first.
        tls: what it serves with; None without TLS.
    """

    def __init__(self, answers: dict[str, tuple[str, ...]] | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.answers = answers or {}
        self.tls = tls
        self.token: str | None = None
        self.model: str | None = "scripted"
        self.held = False
        self.cut_after: set[int] = set()
        self.skip: set[int] = set()
        self.double = False
        self.reset_reason: str | None = None
        self.snapshot_texts: dict[str, str] = {}
        self.close_next: int | None = None
        self.wrong_digest = False
        self.fail_with: str | None = None
        self.reject_with: list[m.Error] = []
        self.is_admin = True
        self.is_disk_full = False
        self.take_over_next_request = False
        self.unknown: set[str] = set()
        self.max_message_bytes = 2**20
        self.received: list[m.ClientMessage] = []
        self.sessions: dict[str, FakeSession] = {}
        self.epoch = 1
        self.connections = 0
        self.close_codes: list[int | None] = []
        self._released = asyncio.Semaphore(0)
        self._server: Server | None = None
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"{'ws' if self.tls is None else 'wss'}://127.0.0.1:{self.port}/v1/ws"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; a second start takes the same port, in a later epoch, and goes on with what is unfinished."""
        self._server = await serve(
            self._handle, "127.0.0.1", self.port, ssl=self.tls, subprotocols=[SUBPROTOCOL], compression=None
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        for session in self.sessions.values():
            if session.open:
                self._spawn(self._run(session))

    async def stop(self, code: int = CloseCode.RESTART) -> None:
        """Stops listening and closes every connection with `code`."""
        for task in list(self._tasks):
            task.cancel()
        if self._server is not None:
            self._server.close(code=code, reason="stopping")
            await self._server.wait_closed()
        self._server = None

    async def restart(self) -> None:
        """As a server that was killed and started again."""
        await self.stop()
        self.epoch += 1
        await self.start()

    def step(self, tokens: int = 1) -> None:
        """Releases held tokens."""
        for _ in range(tokens):
            self._released.release()

    def session(self) -> FakeSession:
        """The only session."""
        (session,) = self.sessions.values()
        return session

    def of_type(self, kind: type[m.Message]) -> list[Any]:
        """The received messages of a type."""
        return [message for message in self.received if isinstance(message, kind)]

    async def cut(self) -> None:
        """Tears every connection down without a close frame."""
        for session in self.sessions.values():
            for attached in [*session.observers, *([session.owner] if session.owner else [])]:
                attached.socket.transport.abort()

    async def close_all(self, code: int) -> None:
        """Closes every connection with `code`."""
        for session in self.sessions.values():
            if session.owner is not None:
                await session.owner.socket.close(code, "as asked")

    async def say(self, message: m.Message) -> None:
        """Says something to every owner of a session that is no event."""
        for session in self.sessions.values():
            if session.owner is not None:
                await self._send(session.owner.socket, message)

    async def append(self, session: FakeSession, event: m.Event) -> None:
        """Appends an event to a session's log."""
        async with session.changed:
            seq = session.head + 1
            session.events.append(type(event)(**{**_fields(event), "seq": seq, "epoch": self.epoch}))
            session.changed.notify_all()

    # --- connections -----------------------------------------------------------------------------------------------

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        try:
            hello = decode(await socket.recv(), first=True)
            assert isinstance(hello, m.Hello)
            self.received.append(hello)
            if self.token is not None and hello.auth != self.token:
                await socket.send(encode(_error("unauthorized", "the token is not valid")), text=True)
                await socket.close(CloseCode.UNAUTHORIZED, "unauthorized")
                return
            if (code := self.close_next) is not None:
                self.close_next = None
                await socket.close(code, "as asked")
                return
            await self._attach(socket, hello)
        except ConnectionClosed:
            pass

    async def _attach(self, socket: ServerConnection, hello: m.Hello) -> None:
        session = self.sessions.get(hello.session_id or "")
        reason = "session_unknown" if session is None and hello.session_id else None
        status = "resumed"
        if session is None:
            session = FakeSession(str(uuid4()))
            self.sessions[session.id] = session
            status = "new"
        elif hello.resume is not None and self.reset_reason is not None:
            status, reason, self.reset_reason = "reset", self.reset_reason, None
        cursor = hello.resume.last_seq if hello.resume is not None and status == "resumed" else session.floor
        cursor = session.head if status == "reset" else cursor
        attached = Attached(socket, cursor, hello.window)
        previous = None
        if hello.mode == "observe" and status != "new":
            attached.is_observer = True
            session.observers.add(attached)
        else:
            previous, session.owner = session.owner, attached
        await self._send(socket, self._welcome(session, status, reason))
        if previous is not None:
            self._spawn(previous.socket.close(CloseCode.TAKEN_OVER, "taken over"))
        if status == "reset":
            await self._send(socket, self._snapshot(session))
        pump = asyncio.create_task(self._pump(session, attached, caught_up=None if status == "new" else session.head))
        try:
            async for frame in socket:
                message = decode(frame)
                self.received.append(message)
                if attached.is_observer and not isinstance(message, _OBSERVER_MAY):
                    request_id = getattr(message, "request_id", None)
                    await self._send(socket, _error("forbidden", "an observer may not", request_id=request_id))
                elif attached.is_observer or session.owner is attached:
                    await self._receive(session, attached, message)
        finally:
            pump.cancel()
            self.close_codes.append(socket.close_code)
            session.observers.discard(attached)
            if session.owner is attached:
                session.owner = None

    async def _pump(self, session: FakeSession, attached: Attached, caught_up: int | None) -> None:
        while True:
            if caught_up is not None and attached.cursor >= caught_up:
                await self._send(attached.socket, m.Log(code="caught_up", message="", head_seq=caught_up))
                caught_up = None
            async with session.changed:
                await session.changed.wait_for(lambda: self._sendable(session, attached) > attached.cursor)
            event = session.events[attached.cursor]
            attached.cursor += 1
            if attached.cursor in self.skip:
                self.skip.discard(attached.cursor)
                continue
            await self._send(attached.socket, event)
            if self.double:
                await self._send(attached.socket, event)
            if attached.cursor in self.cut_after:
                self.cut_after.discard(attached.cursor)
                attached.socket.transport.write_eof()
                attached.socket.transport.abort()
                return

    @staticmethod
    def _sendable(session: FakeSession, attached: Attached) -> int:
        return session.head if attached.window is None else min(session.head, attached.base + attached.window)

    async def _send(self, socket: ServerConnection, message: m.Message) -> None:
        await socket.send(encode(message), text=True)

    # --- messages --------------------------------------------------------------------------------------------------

    async def _receive(self, session: FakeSession, attached: Attached, message: m.ClientMessage) -> None:
        match message:
            case _ if message.__struct_config__.tag in self.unknown:
                await self._send(attached.socket, _error("unknown_type", "this server does not know it"))
            case m.SwitchModel() | m.DeleteModel() if not self.is_admin:
                await self._send(attached.socket, _error("forbidden", "an admin token is needed"))
            case m.EndSession(session_id=session_id):
                await self._end(attached, session_id)
            case m.Inference() if self.is_disk_full:
                del self.sessions[session.id]
                await self._send(attached.socket, _error("storage_failed", "the server's disk failed: full"))
                await attached.socket.close(CloseCode.INTERNAL, "storage failed")
            case m.Inference() if self.take_over_next_request:
                self.take_over_next_request = False
                await attached.socket.close(CloseCode.TAKEN_OVER, "taken over")
            case m.Inference():
                await self._inference(session, attached, message)
            case m.Ack(seq=int(seq)):
                assert seq <= session.head, "acknowledges what does not exist"
                async with session.changed:
                    session.floor = session.floor if attached.is_observer else max(session.floor, seq)
                    attached.base = max(attached.base, seq)
                    attached.window = attached.window if message.window is None else message.window
                    session.changed.notify_all()
                await self._send(attached.socket, m.AckReceived(seq=seq, floor_seq=session.floor))
            case m.Cancel(request_id=request_id) if request_id in session.open:
                session.open.remove(request_id)
                self._say(session, request_id)
                await self.append(session, self._done(session, request_id, "cancelled"))
            case m.Cancel(request_id=request_id):
                error = _error("bad_request", "no such request", request_id=request_id)
                await self._send(attached.socket, error)
            case _ if (reply := self._reply(message) or session.reply(message)) is not None:
                await self._send(attached.socket, reply)
            case m.SwitchModel(name=str(name)):
                loading = m.Log(code="loading", message="loading", bytes=5, total_bytes=10)
                await self._send(attached.socket, loading)
                self.model = name
                switched = m.ModelSwitched(name=name, path=f"models/{name}", message="ready", max_context=64)
                await self.append(session, switched)

    async def _end(self, attached: Attached, session_id: str) -> None:
        ended = self.sessions.pop(session_id, None)
        if ended is None:
            await self._send(attached.socket, _error("bad_request", "there is no such session of yours"))
            return
        await self._send(attached.socket, m.SessionEnded(session_id=session_id))
        if ended.owner is not None:
            await ended.owner.socket.close(CloseCode.NORMAL, "the session was ended")

    async def _inference(self, session: FakeSession, attached: Attached, message: m.Inference) -> None:
        request_id = message.request_id
        assert request_id is not None
        if self.reject_with:
            error = self.reject_with.pop(0)
            await self._send(attached.socket, type(error)(**{**_fields(error), "request_id": request_id}))
        elif request_id in session.requests:
            same = session.requests[request_id] == message
            answer = (
                m.Queue(request_id=request_id, position=0) if same else _error("conflict", "", request_id=request_id)
            )
            await self._send(attached.socket, answer)
        else:
            session.requests[request_id] = message
            session.open.append(request_id)
            if len(session.open) > 1:
                await self._send(attached.socket, m.Queue(request_id=request_id, position=len(session.open) - 1))
            else:
                self._spawn(self._run(session))

    async def _run(self, session: FakeSession) -> None:
        """Answers the session's requests, one at a time."""
        while session.open:
            request_id = session.open[0]
            emitted = sum(isinstance(e, m.Token) and e.request_id == request_id for e in session.events)
            if request_id not in session.started:
                session.started.add(request_id)
                start = m.Start(request_id=request_id, model=self.model or "", tokens_in=1, max_tokens=99, seed=7)
                await self.append(session, start)
            else:
                log = m.Log(
                    code="resumed_after_restart", message="", request_id=request_id, from_index=emitted, exact=True
                )
                await self.append(session, log)
            pieces = self.answers.get(question_in(session, session.requests[request_id]), HELLO)
            for index, piece in enumerate(pieces):
                if index < emitted:
                    continue
                if self.held:
                    await self._released.acquire()
                if request_id not in session.open:
                    break
                await self.append(session, m.Token(request_id=request_id, index=index, data=piece, ids=[index + 1]))
            if request_id in session.open:
                session.open.remove(request_id)
                self._say(session, request_id)
                await self.append(session, self._done(session, request_id, "stop"))

    def _say(self, session: FakeSession, request_id: str) -> None:
        """Adds the question, unless it was there before, and its answer to the conversation."""
        request = session.requests[request_id]
        if request.messages is not None:
            return
        parent_id = request.parent_id
        if request.prompt is not None:
            newest = session.messages[-1].id if session.messages else None
            parent_id = newest if parent_id is None else parent_id or None
            parent_id = session.add("user", prompt_of(request), parent_id=parent_id, request_id=request_id)
        text = "".join(e.data for e in session.events if isinstance(e, m.Token) and e.request_id == request_id)
        session.add("assistant", text, parent_id=parent_id, request_id=request_id)

    # --- what it says ----------------------------------------------------------------------------------------------

    def _done(self, session: FakeSession, request_id: str, reason: Any) -> m.Event:
        if self.fail_with is not None and reason == "stop":
            return _error(self.fail_with, "as asked", request_id=request_id)
        tokens = [e for e in session.events if isinstance(e, m.Token) and e.request_id == request_id]
        text = "other" if self.wrong_digest else "".join(token.data for token in tokens)
        return m.Done(
            request_id=request_id,
            total_tokens=len(tokens),
            finish_reason=reason,
            usage=m.Usage(prompt_tokens=1, completion_tokens=len(tokens), cached_tokens=0),
            timing=m.Timing(queued_ms=0, ttft_ms=1.0, tokens_per_s=10.0),
            text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )

    def _welcome(self, session: FakeSession, status: Any, reason: str | None) -> m.Welcome:
        return m.Welcome(
            protocol=1,
            session_id=session.id,
            status=status,
            reason=reason,
            epoch=self.epoch,
            head_seq=session.head,
            floor_seq=session.floor,
            requests=[
                m.RequestState(request_id=each, state="queued" if index else "running")
                for index, each in enumerate(session.open)
            ],
            model=self.model,
            capabilities=m.Capabilities(vision=False, resume=True, flash_attention=False, max_context=64),
            resources=m.DeviceSummary(device="cpu", total_gb=1.0, free_gb=1.0),
            limits=m.Limits(max_message_bytes=self.max_message_bytes, max_queue=16),
            heartbeat=m.Heartbeat(interval_s=20),
            durability="os",
            server=m.ServerInfo(node_id="node-1", version="0"),
        )

    def _snapshot(self, session: FakeSession) -> m.Snapshot:
        states = []
        for request_id in session.requests:
            mine = [e for e in session.events if getattr(e, "request_id", None) == request_id]
            tokens = [e for e in mine if isinstance(e, m.Token)]
            done = next((e for e in mine if isinstance(e, m.Done | m.Error)), None)
            text = self.snapshot_texts.get(request_id, "".join(token.data for token in tokens))
            if done is not None and done.seq <= session.floor:
                continue
            states.append(
                m.RequestSnapshot(
                    request_id=request_id,
                    state="running" if done is None else "done",
                    text=text,
                    next_index=len(tokens),
                    terminal=None if done is None else _wire(done),
                )
            )
        return m.Snapshot(as_of=session.head, epoch=self.epoch, requests=states)

    def _reply(self, message: m.ClientMessage) -> m.Message | None:
        other = m.ModelEntry(name="other", path="var/models/other", size_mb=2.0, source="var")
        entry = m.ModelEntry(name="scripted", path="models/scripted", size_mb=1.0, source="models", loaded=True)
        device = m.DeviceSummary(device="cpu", total_gb=1.0, free_gb=1.0)
        match message:
            case m.Ping():
                return m.Pong(t=message.t)
            case m.Config():
                return m.ConfigAck(config=message.data)
            case m.ListModels():
                return m.ModelsList(models=[entry, other])
            case m.GetStatus():
                return m.Status(model=self.model, memory=device, sessions=1, queue=0, uptime_s=1.0)
            case m.ListSessions():
                return m.Sessions(sessions=[_entry(each) for each in reversed(self.sessions.values())])
            case m.GetResources():
                return m.Resources(
                    cuda=None,
                    model=m.ModelSummary(name=self.model, path=None, vision=False),
                    available_models=[entry],
                    engine=m.EngineResources(running=0, queued=0, tokens_per_s=0),
                    host=m.HostResources(cpu=2, ram_gb=8.0),
                )
            case m.DeleteModel(model_name=name):
                return _error("model_not_found", f"there is no {name}")
            case _:
                return None


_OBSERVER_MAY = m.Ack | m.Ping | m.GetResources | m.GetStatus | m.ListModels | m.ListSessions | m.History | m.Cancel


def question_in(session: FakeSession, inference: m.Inference) -> str:
    """What a request asks: its own prompt, or the message that it answers once more."""
    asked = {each.id: each.content for each in session.messages}
    return prompt_of(inference) if inference.prompt is not None else asked.get(inference.parent_id or "", "")


def _entry(session: FakeSession) -> m.SessionEntry:
    return m.SessionEntry(
        session_id=session.id,
        title=session.title or (session.messages[0].content if session.messages else None),
        created=0.0,
        last_activity=0.0,
        state="detached" if session.owner is None else "attached",
        messages=len(session.messages),
    )


def prompt_of(inference: m.Inference) -> str:
    """The user's turn of a request."""
    return inference.prompt.user if isinstance(inference.prompt, m.Prompt) else inference.prompt or ""


def _error(code: str, message: str, *, request_id: str | None = None) -> m.Error:
    return m.Error(code=code, message=message, retryable=False, request_id=request_id)


def _fields(message: m.Message) -> dict[str, Any]:
    return {name: getattr(message, name) for name in message.__struct_fields__}


def _wire(message: m.Message) -> dict[str, Any]:
    import json

    return json.loads(encode(message))
