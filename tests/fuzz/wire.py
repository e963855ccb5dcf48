"""What comes over the network, as functions of its bytes: frames both ways, names, credentials, addresses."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
from collections.abc import Coroutine
from typing import Any

import msgspec

from llmws.client.cursor import StoryFaultError
from llmws.client.discovery import LocalServer, local_servers
from llmws.client.errors import ClientError
from llmws.client.link import Link, LostError, websocket_url
from llmws.client.session import Session
from llmws.protocol import ErrorCode, FrameError, decode, decode_server, encode
from llmws.protocol import messages as m
from llmws.server.auth import BEARER_SUBPROTOCOL, credential
from llmws.server.hosts import HostPolicy
from tests.fuzz.target import PART, Target, check_refusal, scratch

SESSION_ID = "6f1c2d3e-4a5b-4c6d-8e7f-901122334455"


def wire_first(data: bytes) -> None:
    """A connection's first frame is a client's message, or refused with a code."""
    _decode(data, first=True)


def wire_later(data: bytes) -> None:
    """So is every later one; the message says what it is when it is written again."""
    _decode(data, first=False)


def _decode(data: bytes, *, first: bool) -> None:
    try:
        message = decode(data.decode(errors="surrogateescape"), first=first)
    except FrameError as error:
        _check_answer(error)
        return
    assert isinstance(message, m.ClientMessage)
    assert decode(encode(message).decode()) == message


def _check_answer(error: FrameError) -> None:
    assert error.code in ErrorCode
    answer = error.to_message()
    assert decode_server(encode(answer)) == answer


class _Socket:
    """The end of a hostile server's connection."""

    def __init__(self, frame: str | bytes) -> None:
        self._frame = frame

    async def recv(self) -> str | bytes:
        return self._frame


def client_story(data: bytes) -> None:
    """Whatever a server sends, the client takes it, reconnects or tells its user, and says only what is a message."""
    session = Session(session_id=SESSION_ID, position=None, window=8, mode="takeover", client_name="fuzz")
    session.ask(m.Inference(request_id="a", prompt="hi"))
    for part in data.split(PART)[:64]:
        frame = part.decode(errors="replace")
        try:
            message = _ended(Link(_Socket(frame)).receive())  # type: ignore[arg-type]
            if isinstance(message, m.Welcome):
                session.welcomed(message)
            elif isinstance(message, m.ServerMessage):
                session.receive(message)
            else:
                session.receive_unknown(message)
        except (LostError, StoryFaultError, ClientError):
            session.hello("token")
        for answer in session.open_answers():
            with contextlib.suppress(ClientError):
                while answer.take() is not None:
                    pass
        session.settle()
        while session.outbox:
            said = session.outbox.popleft()
            assert decode(encode(said).decode()) == said


def _ended(coroutine: Coroutine[Any, Any, m.ServerMessage | m.Event]) -> m.ServerMessage | m.Event:
    """What a coroutine that waits for nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: m.ServerMessage | m.Event = end.value
        return result
    raise AssertionError("it waits, and nothing comes")


def bearer(data: bytes) -> None:
    """A subprotocol carries a token in one spelling only, and a token is printable or no token at all."""
    text = data.decode("latin-1")
    offers = [offer.strip() for offer in text.split(",")]
    token = credential(authorization=(), subprotocols=offers, hello_auth=None)
    if token is not None:
        assert token.isascii()
        spelling = base64.urlsafe_b64encode(token.encode()).rstrip(b"=").decode()
        assert BEARER_SUBPROTOCOL + spelling in offers
    shown = credential(authorization=[text])
    assert shown is None or text.lower().startswith("bearer")


def host_and_origin(data: bytes) -> None:
    """A name that is not this server's is refused, and an origin that is not its own with it."""
    host, _, origin = data.decode("latin-1").partition("\x1e")
    policy = HostPolicy(bind_host="192.0.2.7", port=8765, hosts=("box.example",), origins=("https://box.example",))
    refusal = policy.refusal(hosts=[host], origins=[origin] if origin else [], trust_null=False)
    if refusal is not None:
        assert refusal.status in (403, 421)
        return
    name = host.lower().rpartition(":")[0] if host.count(":") == 1 or "]:" in host else host.lower()
    assert name in ("localhost", "192.0.2.7", "box.example") or _is_loopback(name.strip("[]")), host
    plain = origin.lower().removesuffix(":443" if origin.lower().startswith("https:") else ":80")
    assert plain in ("", f"http://{host.lower()}".removesuffix(":80"), "https://box.example"), origin


def _is_loopback(text: str) -> bool:
    try:
        ip = ipaddress.ip_address(text)
        return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
    except ValueError:
        return False


def server_address(data: bytes) -> None:
    """What somebody calls a server's address becomes a WebSocket URL, or a `ValueError` that says what it should be."""
    try:
        url = websocket_url(data.decode(errors="replace"))
    except ValueError as error:
        check_refusal(error, "is not the address of a server")
        return
    assert url.startswith(("ws://", "wss://"))
    assert websocket_url(url) == url


def ready_object(data: bytes) -> None:
    """A ready file that is broken is passed over."""
    folder = scratch() / "xdg" / "llmws" / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "8765.json"
    path.touch(mode=0o600)
    path.write_bytes(data)
    found = local_servers({"XDG_STATE_HOME": str(scratch() / "xdg")})
    for server in found:
        assert msgspec.json.decode(msgspec.json.encode(server), type=LocalServer) == server


WIRE = (
    Target(run=wire_first, share=200),
    Target(run=wire_later, share=200),
    Target(run=client_story, share=70, on_loop=False),
    Target(run=bearer, share=60, max_bytes=512),
    Target(run=host_and_origin, share=120, max_bytes=256),
    Target(run=server_address, share=30, on_loop=False, max_bytes=256),
    Target(run=ready_object, share=8, on_loop=False, max_bytes=65_536),
)
