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


@pytest.mark.parametrize("status", [403, 421])
def test_a_name_that_the_server_does_not_answer_to_says_what_to_do(status):
    error = _refusal("ws://h", status)
    assert type(error) is ProtocolError
    assert "list it in server.hosts" in str(error)
