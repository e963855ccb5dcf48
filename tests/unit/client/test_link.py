"""Addresses, and what the end of a connection means."""

import pytest

from llmws.client.errors import (
    ClosedError,
    ForbiddenError,
    ProtocolError,
    TakenOverError,
    UnauthorizedError,
    from_close,
)
from llmws.client.link import _refusal, websocket_url


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:8765", "ws://127.0.0.1:8765/v1/ws"),
        ("https://llm.example/", "wss://llm.example/v1/ws"),
        ("ws://h:1/other", "ws://h:1/other"),
        ("localhost:8765", "ws://localhost:8765/v1/ws"),
        ("[::1]:8765", "ws://[::1]:8765/v1/ws"),
    ],
)
def test_addresses(address, url):
    assert websocket_url(address) == url


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ftp://h",
        "http://",
        "http://user:pw@h",
        "http://h?token=x",
        "http://h:99999",
        "h:abc",
        "a..b",
        "a b",
        "http://[",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="address of a server"):
        websocket_url(address)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1000, ClosedError),
        (4400, ProtocolError),
        (4401, UnauthorizedError),
        (4403, ForbiddenError),
        (4408, ProtocolError),
        (4409, TakenOverError),
        (4426, ProtocolError),
        (4499, ProtocolError),
    ],
)
def test_final_close_codes_have_their_errors(code, kind):
    assert type(from_close(code, "why")) is kind


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (421, b"x", "ws://h: the server does not answer to this name; list it in server.hosts on the server"),
        (403, b"only proxies\x1b[2J\n", "ws://h: only proxies[2J (HTTP status 403)"),
        (403, b"", "ws://h: the server refuses the connection (HTTP status 403)"),
        (403, b"x" * 999, f"ws://h: {'x' * 200} (HTTP status 403)"),
    ],
)
def test_a_refusal_says_what_to_do_or_what_the_server_says(status, body, said):
    error = _refusal("ws://h", status, body)
    assert (type(error), str(error)) == (ProtocolError, said)
