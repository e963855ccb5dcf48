"""How long a client waits between attempts."""

from llmws.client.backoff import Backoff


def test_the_first_attempt_is_made_at_once():
    assert Backoff(jitter=lambda: 1.0).next_s() == 0.0


def test_the_bound_doubles_up_to_the_cap():
    backoff = Backoff(base_s=0.25, cap_s=10, jitter=lambda: 1.0)
    assert [backoff.next_s() for _ in range(9)] == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_the_jitter_is_full():
    backoff = Backoff(base_s=1, jitter=lambda: 0.5)
    assert [backoff.next_s() for _ in range(3)] == [0.0, 0.5, 1.0]


def test_a_good_connection_begins_anew():
    backoff = Backoff(jitter=lambda: 1.0)
    backoff.next_s()
    backoff.next_s()
    backoff.reset()
    assert backoff.next_s() == 0.0


def test_days_of_attempts_do_not_overflow():
    backoff = Backoff(jitter=lambda: 1.0)
    assert [backoff.next_s() for _ in range(5000)][-1] == 10.0
