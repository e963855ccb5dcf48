"""Which Host and Origin headers pass: one table, each row an attack or a client that must work."""

import pytest

from llmws.server.hosts import HostPolicy, is_loopback

PORT = 8765
LAN = HostPolicy(
    bind_host="192.168.1.5",
    port=PORT,
    hosts=("llm.example.org", "Box.lan:9000"),
    origins=("https://llm.example.org", "http://app.lan:3000"),
)


def status(*, hosts: list[str], origins: list[str], trust_null: bool = False, policy: HostPolicy = LAN) -> int | None:
    refusal = policy.refusal(hosts=hosts, origins=origins, trust_null=trust_null)
    return None if refusal is None else refusal.status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:8765", None),
        ("LOCALHOST:8765", None),
        ("127.0.0.1:8765", None),
        ("127.9.9.9:8765", None),
        ("[::1]:8765", None),
        ("192.168.1.5:8765", None),
        ("llm.example.org", None),
        ("llm.example.org:443", None),
        ("box.lan:9000", None),
        ("box.lan", 421),
        ("box.lan:9001", 421),
        ("localhost", None),
        ("localhost:9999", None),
        ("localhost:08765x", 421),
        ("localhost.:8765", 421),
        ("localhost.evil.example:8765", 421),
        ("evil.example:8765", 421),
        ("llm.example.org.evil.example", 421),
        ("user@localhost:8765", 421),
        ("localhost:8765, evil.example", 421),
        ("127.1:8765", 421),
        ("2130706433:8765", 421),
        ("0x7f000001:8765", 421),
        ("0.0.0.0:8765", 421),
        ("::1:8765", 421),
        ("[::1]", None),
        ("[::2]:8765", 421),
        ("[::ffff:8.8.8.8]:8765", 421),
        ("192.168.1.6:8765", 421),
        ("localhost:8765\n", 421),
        ("", 421),
    ],
)
def test_host(host: str, expected: int | None) -> None:
    assert status(hosts=[host], origins=[]) == expected


@pytest.mark.parametrize(
    ("bind_host", "host", "expected"),
    [
        ("0.0.0.0", "0.0.0.0:8765", 421),
        ("::", "[::]:8765", 421),
        ("::", "[::1]:8765", None),
        ("fd00::7", "[fd00::7]:8765", None),
        ("fd00::7", "[fd00::8]:8765", 421),
        ("gpu.lan", "gpu.lan:8765", None),
        ("127.0.0.1", "192.168.1.5:8765", 421),
    ],
)
def test_the_address_bound_to_is_a_name_and_a_wildcard_is_none(bind_host: str, host: str, expected: int | None) -> None:
    assert status(hosts=[host], origins=[], policy=HostPolicy(bind_host=bind_host, port=PORT)) == expected


def test_on_port_80_the_host_needs_no_port() -> None:
    policy = HostPolicy(bind_host="127.0.0.1", port=80)
    assert status(hosts=["localhost"], origins=["http://localhost"], policy=policy) is None


def test_an_origin_is_the_same_with_and_without_the_port_that_goes_without_saying() -> None:
    for host in ("llm.example.org", "llm.example.org:443"):
        for origin in ("https://llm.example.org", "https://llm.example.org:443"):
            assert LAN.refusal(hosts=[host], origins=[origin], trust_null=False, scheme="https") is None
    policy = HostPolicy(bind_host="127.0.0.1", port=8765, origins=("https://llm.example.org:443",))
    assert status(hosts=["localhost:8765"], origins=["https://llm.example.org"], policy=policy) is None
    assert status(hosts=["localhost:8765"], origins=["http://llm.example.org:443"], policy=policy) == 403


def test_no_host_and_two_hosts_are_refused() -> None:
    assert status(hosts=[], origins=[]) == 421
    assert status(hosts=["localhost:8765", "localhost:8765"], origins=[]) == 421


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8765", None),
        ("HTTP://LOCALHOST:8765", None),
        ("https://llm.example.org", None),
        ("http://app.lan:3000", None),
        ("http://127.0.0.1:8765", 403),
        ("https://localhost:8765", 403),
        ("http://localhost", 403),
        ("http://localhost:3000", 403),
        ("http://localhost:8765/", 403),
        ("http://localhost:8765.evil.example", 403),
        ("https://llm.example.org:443", None),
        ("https://llm.example.org:443:443", 403),
        ("https://llm.example.org:80", 403),
        ("http://evil.example", 403),
        ("http://llm.example.org", 403),
        ("https://llm.example.org:8443", 403),
        ("file://", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_origin_is_exactly_the_host_asked_for_or_a_listed_one(origin: str, expected: int | None) -> None:
    assert status(hosts=["localhost:8765"], origins=[origin]) == expected


def test_origin_null_passes_with_a_token_in_the_request_and_two_origins_never() -> None:
    assert status(hosts=["localhost:8765"], origins=["null"], trust_null=True) is None
    assert status(hosts=["localhost:8765"], origins=["null", "null"], trust_null=True) == 403
    assert status(hosts=["localhost:8765"], origins=["http://evil.example"], trust_null=True) == 403


def test_a_foreign_host_is_refused_whatever_the_origin() -> None:
    assert status(hosts=["evil.example:8765"], origins=["http://evil.example:8765"], trust_null=True) == 421


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.168.1.5", False),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("gpu.lan", False),
    ],
)
def test_which_bind_addresses_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
