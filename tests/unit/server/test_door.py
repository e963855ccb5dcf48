"""The rules for one connection, as transcripts: what it says, what the door does."""

import json
from collections.abc import Callable

import pytest

from llmws.access import Identity, Role
from llmws.protocol import messages as m
from llmws.server.auth import Denied
from llmws.server.door import (
    BAD_MESSAGE_BURST,
    MAX_HELLO_BYTES,
    MESSAGE_BURST,
    Accepted,
    Close,
    Door,
    Forward,
    Outcome,
    Reply,
)

OWNER = Identity("local", "user")
LIMIT_BYTES = 20_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def identify(token: str | None) -> Identity | Denied:
    known: dict[str | None, Identity | Denied] = {
        "good": OWNER,
        "meter": Identity("local", "metrics"),
        "blocked": Denied(retry_after_s=1.5),
    }
    return known.get(token, Denied())


def new_door(
    *, identify: Callable[[str | None], Identity | Denied] = identify, needed: Role = "user", clock: Clock | None = None
) -> Door:
    return Door(identify=identify, needed=needed, max_message_bytes=LIMIT_BYTES, clock=clock or Clock())


def open_door(clock: Clock | None = None) -> Door:
    door = new_door(clock=clock)
    say(door, '{"type":"hello","auth":"good"}')
    return door


def say(door: Door, text: str) -> tuple[Outcome, ...]:
    return door.receive(text.encode(), text=True)


def heard(outcomes: tuple[Outcome, ...]) -> list[object]:
    """Replies as (type, code), closes as their code, the rest as it is."""
    return [_short(outcome) for outcome in outcomes]


def _short(outcome: Outcome) -> object:
    match outcome:
        case Reply(frame):
            message = json.loads(frame)
            return (message["type"], message.get("code"))
        case Close(code, _):
            return code
        case _:
            return outcome


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ('{"type":"ping"}', [("pong", None)]),
        ('{"type":"hello"}', [("error", "unauthorized"), 4401]),
        ("{}", [("error", "unauthorized"), 4401]),
        ('{"type":"hello","auth":"wrong"}', [("error", "unauthorized"), 4401]),
        ('{"auth":"blocked"}', [("error", "rate_limited"), 4401]),
        ('{"auth":"meter"}', [("error", "forbidden"), 4403]),
        ('{"auth":"good","protocol":[2,3]}', [("error", "unsupported_protocol"), 4426]),
        ('{"auth":"good","protocol":[]}', [("error", "unsupported_protocol"), 4426]),
        ('{"auth":"wrong","protocol":[2]}', [("error", "unauthorized"), 4401]),
        ('{"type":"inference","prompt":"hi"}', [("error", "bad_message"), 4400]),
        ('{"type":"inference","config":{"temperature":-1}}', [("error", "bad_message"), 4400]),
        ('{"type":"nonsense"}', [("error", "bad_message"), 4400]),
        ('{"auth":"good","window":-1}', [("error", "bad_message"), 4400]),
        ("not JSON", [("error", "bad_message"), 4400]),
        ("[]", [("error", "bad_message"), 4400]),
        ("", [("error", "bad_message"), 4400]),
        ('{"auth":"' + "x" * MAX_HELLO_BYTES + '"}', [("error", "too_large"), 4400]),
    ],
)
def test_before_the_hello_there_is_pong_or_one_error_and_a_close(first: str, expected: list[object]) -> None:
    assert heard(say(new_door(), first)) == expected


@pytest.mark.parametrize(
    "hello",
    [
        '{"type":"hello","auth":"good"}',
        '{"auth":"good"}',
        '{"type":"hello","auth":"good","protocol":[1]}',
        '{"type":"hello","auth":"good","protocol":[7,1],"unknown":{}}',
    ],
)
def test_a_hello_with_a_token_is_accepted_with_or_without_its_type(hello: str) -> None:
    door = new_door()
    (outcome,) = say(door, hello)
    assert isinstance(outcome, Accepted)
    assert outcome.identity == OWNER
    assert outcome.hello.auth == "good"
    assert door.accepted


def test_the_hello_may_come_after_pings() -> None:
    door = new_door()
    assert say(door, '{"type":"ping","t":7}') == (Reply(b'{"type":"pong","t":7}'),)
    assert say(door, '{"type":"ping","t":"x"}') == (Reply(b'{"type":"pong","t":"x"}'),)
    assert isinstance(say(door, '{"auth":"good"}')[0], Accepted)


def test_pings_without_end_before_the_hello_get_one_error_and_a_close() -> None:
    door = new_door()
    answers = [heard(say(door, '{"type":"ping"}')) for _ in range(MESSAGE_BURST + 1)]
    assert answers == [[("pong", None)]] * MESSAGE_BURST + [[("error", "rate_limited"), 4400]]


def test_a_binary_hello_is_refused() -> None:
    assert heard(new_door().receive(b'{"auth":"good"}', text=False)) == [("error", "bad_message"), 4400]


def test_text_that_is_not_utf8_ends_the_connection_before_and_after_the_hello() -> None:
    assert heard(new_door().receive(b'{"auth":"\xff"}', text=True)) == [1007]
    assert heard(open_door().receive(b"\xc3", text=True)) == [1007]


def test_no_hello_in_time_closes_without_a_word() -> None:
    assert new_door().timed_out().code == 4408


def test_the_retry_hint_of_a_blocked_address_is_in_milliseconds() -> None:
    reply, _ = say(new_door(), '{"auth":"blocked"}')
    assert isinstance(reply, Reply)
    error = json.loads(reply.frame)
    assert (error["retry_after_ms"], error["retryable"]) == (1500, True)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ('{"type":"ack","seq":3}', [Forward(m.Ack(seq=3))]),
        ('{"type":"cancel","request_id":"a"}', [Forward(m.Cancel(request_id="a"))]),
        ('{"type":"ping"}', [("pong", None)]),
        ('{"type":"hello","auth":"good"}', [("error", "bad_message")]),
        ("{}", [("error", "bad_message")]),
        ("not JSON", [("error", "bad_message")]),
        ('{"type":"nonsense"}', [("error", "unknown_type")]),
        ('{"type":"inference","config":{"temperature":-1}}', [("error", "bad_request")]),
        ("[" * 5000, [("error", "bad_message")]),
        ('{"type":"ping","t":"' + "x" * LIMIT_BYTES + '"}', [("error", "too_large")]),
    ],
)
def test_after_the_hello_nothing_said_ends_the_connection(frame: str, expected: list[object]) -> None:
    assert heard(say(open_door(), frame)) == expected


def test_a_binary_frame_after_the_hello_is_a_bad_message() -> None:
    assert heard(open_door().receive(b'{"type":"ping"}', text=False)) == [("error", "bad_message")]


def test_the_size_limit_counts_bytes_and_lets_its_own_value_through() -> None:
    shell = '{"type":"nonsense","x":""}'
    fits = shell.replace('""', '"' + "é" * ((LIMIT_BYTES - len(shell)) // 2) + '"')
    assert len(fits.encode()) == LIMIT_BYTES
    assert heard(say(open_door(), fits)) == [("error", "unknown_type")]
    assert heard(say(open_door(), fits + " ")) == [("error", "too_large")]


def test_messages_above_the_rate_are_dropped_and_say_when_to_come_back() -> None:
    clock = Clock()
    door = open_door(clock)
    for _ in range(MESSAGE_BURST - 1):  # the hello was the first
        assert heard(say(door, '{"type":"ack","seq":1}')) == [Forward(m.Ack(seq=1))]
    (limited,) = say(door, '{"type":"ack","seq":1}')
    assert isinstance(limited, Reply)
    error = json.loads(limited.frame)
    assert (error["code"], error["retry_after_ms"]) == ("rate_limited", 1)
    clock.now_s += 0.001
    assert heard(say(door, '{"type":"ack","seq":2}')) == [Forward(m.Ack(seq=2))]


def test_a_client_of_bad_messages_only_is_not_even_decoded_for_a_while() -> None:
    clock = Clock()
    door = open_door(clock)
    for _ in range(BAD_MESSAGE_BURST):
        assert heard(say(door, "not JSON")) == [("error", "bad_message")]
    assert heard(say(door, '{"type":"ack","seq":1}')) == [("error", "rate_limited")]
    clock.now_s += 0.2
    assert heard(say(door, '{"type":"ack","seq":1}')) == [Forward(m.Ack(seq=1))]
