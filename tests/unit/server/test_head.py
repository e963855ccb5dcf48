"""Who sent a request: what a proxy says is believed of a listed one only."""

import pytest

from llmws.server.head import Caller, Head, caller_of

PROXIES = frozenset({"10.0.0.1", "10.0.0.2", "127.0.0.1"})


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("192.0.2.1", ["203.0.113.9"], Caller("192.0.2.1", is_secure=False)),
        ("10.0.0.1", ["203.0.113.9"], Caller("203.0.113.9", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.9", "10.0.0.2"], Caller("203.0.113.9", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["2001:db8::7"], Caller("2001:db8::7", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", [], Caller("10.0.0.1", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["unknown"], Caller("10.0.0.1", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["203.0.113.9:4711"], Caller("203.0.113.9", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["[2001:DB8:0::7]:4711"], Caller("2001:db8::7", is_secure=True, is_by_proxy=True)),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], Caller("203.0.113.9", is_secure=True, is_by_proxy=True)),
        ("::ffff:10.0.0.9", ["203.0.113.9"], Caller("10.0.0.9", is_secure=False)),
        ("10.0.0.1", ["203.0.113.9", "::ffff:10.0.0.2"], Caller("203.0.113.9", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["203.0.113.9", "unknown"], Caller("10.0.0.1", is_secure=True, is_by_proxy=True)),
        ("127.0.0.1", ["203.0.113.9", "127.0.0.1"], Caller("127.0.0.1", is_secure=True, is_by_proxy=True)),
        ("10.0.0.1", ["10.0.0.2"], Caller("10.0.0.1", is_secure=True, is_by_proxy=True)),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxys(
    peer: str, forwarded_for: list[str], expected: Caller
) -> None:
    head = Head(forwarded_for=forwarded_for, forwarded_proto=["https"])
    assert caller_of(head, peer=peer, is_secure=False, proxies=PROXIES) == expected


def test_without_proxies_nothing_is_forwarded() -> None:
    head = Head(forwarded_for=["203.0.113.9"], forwarded_proto=["https"])
    assert caller_of(head, peer="10.0.0.1", is_secure=False, proxies=frozenset()) == Caller("10.0.0.1", is_secure=False)


def test_headers_that_come_twice_are_read_together() -> None:
    values = {"x-forwarded-for": ["a, b", "c"], "sec-websocket-protocol": ["llmws.v1 , x"], "host": ["h", "i"]}
    head = Head.of(lambda name: values.get(name, []))
    assert (head.forwarded_for, head.subprotocols, head.hosts) == (["a", "b", "c"], ["llmws.v1", "x"], ["h", "i"])
