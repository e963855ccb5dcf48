"""Rates, failures, and who is let go when there are too many."""

import pytest

from llmws.server.limits import MAX_TRACKED_NETWORKS, Admission, FailureLimiter, TokenBucket, network_of


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(rate_per_s=2, burst=3, now_s=0.0)
    waits = []
    for now_s in (0.0, 0.0, 0.0, 0.0, 0.5):
        waits.append(bucket.wait_s(now_s))
        if not waits[-1]:
            bucket.spend()
    assert waits == [0.0, 0.0, 0.0, 0.5, 0.0]


def test_a_bucket_never_holds_more_than_its_burst_and_survives_a_clock_that_stands_still() -> None:
    bucket = TokenBucket(rate_per_s=1, burst=2, now_s=0.0)
    assert bucket.wait_s(1000.0) == 0.0
    bucket.spend()
    bucket.spend()
    assert bucket.wait_s(999.0) == 1.0


def test_failures_are_counted_for_each_network_and_forgotten_with_time() -> None:
    limiter = FailureLimiter()
    for _ in range(10):
        assert limiter.wait_s("a", 0.0) == 0.0
        limiter.failed("a", 0.0)
    assert limiter.wait_s("a", 0.0) == pytest.approx(6.0)
    assert limiter.wait_s("b", 0.0) == 0.0
    assert limiter.wait_s("a", 6.0) == pytest.approx(0.0)


def test_a_flood_of_addresses_costs_bounded_memory_and_forgets_the_longest_silent() -> None:
    limiter = FailureLimiter()
    for _ in range(10):
        limiter.failed("first", 0.0)
    for n in range(MAX_TRACKED_NETWORKS):
        limiter.failed(f"n{n}", 0.0)
    assert limiter.wait_s("first", 0.0) == 0.0


def admission(*, max_connections: int = 100, max_unauthenticated: int = 100) -> Admission[str]:
    return Admission(max_connections=max_connections, max_unauthenticated=max_unauthenticated)


def test_above_the_limit_of_an_address_its_oldest_unauthenticated_connection_goes() -> None:
    door = admission(max_unauthenticated=2)
    assert [door.enter(name, "net") for name in ("a", "b")] == [None, None]
    assert door.enter("other", "elsewhere") is None
    assert door.enter("c", "net") == "a"
    assert len(door) == 3


def test_one_that_has_signed_in_is_never_let_go() -> None:
    door = admission(max_unauthenticated=1, max_connections=2)
    door.enter("a", "net")
    door.sign_in("a")
    assert door.enter("b", "net") is None
    assert door.enter("c", "net") == "b"
    door.sign_in("c")
    assert door.enter("d", "net") == "d"
    assert len(door) == 2


def test_above_the_limit_of_all_the_oldest_unauthenticated_of_any_address_goes() -> None:
    door = admission(max_connections=2)
    door.enter("a", "one")
    door.enter("b", "two")
    assert door.enter("c", "three") == "a"


def test_leaving_makes_room_and_may_be_said_twice() -> None:
    door = admission(max_unauthenticated=1)
    door.enter("a", "net")
    door.leave("a")
    door.leave("a")
    assert door.enter("b", "net") is None
    door.sign_in("b")
    door.leave("b")
    door.sign_in("b")
    assert len(door) == 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_limits_count_as_one(address: str, expected: str) -> None:
    assert network_of(address) == expected
