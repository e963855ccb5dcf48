"""Sessions in a list, and chosen from it."""

import pytest

from llm_cli.sessions import age, listing, pick, shortened
from llmws.protocol.messages import SessionEntry

FIRST, SECOND, THIRD = (
    "6f1c0000-0000-4000-8000-000000000000",
    "6f2d0000-0000-4000-8000-000000000000",
    "12345678-0000-4000-8000-000000000000",
)


def entry(session_id: str, **changes) -> SessionEntry:
    fields = {"title": None, "created": 0.0, "last_activity": 100.0, "state": "detached", "messages": 2}
    return SessionEntry(session_id=session_id, **(fields | changes))


ENTRIES = [entry(FIRST), entry(SECOND), entry(THIRD)]


@pytest.mark.parametrize(
    ("argument", "found"),
    [("1", FIRST), ("3", THIRD), ("6f1", FIRST), ("6F2D", SECOND), (THIRD, THIRD), ("12345678", THIRD)],
)
def test_a_session_is_named_by_its_number_or_the_beginning_of_its_id(argument, found):
    assert pick(argument, ENTRIES, shown=ENTRIES) == found


def test_a_number_is_that_of_the_list_that_was_seen_whatever_was_asked_for_since():
    assert pick("1", [entry(THIRD), entry(FIRST)], shown=[entry(SECOND)]) == SECOND
    with pytest.raises(ValueError, match="there is no session 1; /sessions lists them"):
        pick("1", ENTRIES, shown=[])


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("0", "there is no session 0; /sessions lists them"),
        ("4", "there is no session 4; /sessions lists them"),
        ("6f", "2 sessions begin with 6f; give more of the id"),
        ("nope", "there is no session nope of yours on this server; /sessions lists them"),
    ],
)
def test_what_is_no_session_is_said(argument, why):
    with pytest.raises(ValueError, match=f"^{why}$"):
        pick(argument, ENTRIES, shown=ENTRIES)


def test_the_list_is_numbered_and_fits():
    entries = [
        entry(FIRST, title="why\x1b is the\nsky blue? " * 9, messages=1),
        entry(SECOND, state="archived", last_activity=-7200.0),
    ]
    assert listing(entries, present=FIRST, now_s=100.0, columns=60).splitlines() == [
        "1 *  6f1c0000  now      1 message   why is the sky blue? wh…",
        "2    6f2d0000  2 h ago  2 messages  archived: (nothing said…",
    ]


def test_a_list_of_none_is_empty():
    assert listing([], present=None, now_s=0.0) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "now"), (0.5, "now"), (59, "59 s ago"), (60, "1 min ago"), (7300, "2 h ago"), (90000, "1 d ago")],
)
def test_ages(seconds, words):
    assert age(seconds) == words


def test_a_text_is_shortened_to_its_length():
    assert [shortened(text, 4) for text in ("abcd", "abcde", "a\nb")] == ["abcd", "abc…", "a b"]
