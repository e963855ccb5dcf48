"""The judge notices what it is there for: the long runs are worth what it is worth."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from tests.faults.chaos.account import Account, differences
from tests.faults.journal import AnyEntry, Asked, Journal, Lost, Opened, Restarted, Seen, read
from tests.faults.judge import Question, Verdict, judge

QUESTION = Question("q-0", "2", 4)
TEXT = "00112233"
END = Seen(
    type="done",
    seq=6,
    epoch=1,
    request_id="q-0",
    finish_reason="length",
    total_tokens=4,
    text_sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
)


def token(index: int, *, seq: int | None = None) -> Seen:
    return Seen(
        type="token", seq=seq or index + 2, epoch=1, request_id="q-0", index=index, ids=(index,), data=str(index) * 2
    )


def told(*events: Seen) -> list[AnyEntry]:
    start = Seen(type="start", seq=1, epoch=1, request_id="q-0")
    return [Opened("s", 1), Asked("q-0"), start, *events]


GOOD = told(token(0), token(1), token(2), token(3), END)


def test_a_good_journal() -> None:
    assert judge(GOOD, [QUESTION]) == Verdict(answers=1, events=6, tokens=4)


@pytest.mark.parametrize(
    ("entries", "lost", "duplicated"),
    [
        (told(token(0), token(1), token(3), END), 1, 0),
        (told(token(0), token(1), token(1, seq=4), token(2, seq=5), token(3, seq=6)), 0, 1),
        (told(), 4, 0),
    ],
)
def test_tokens_that_are_missing_or_come_again_are_counted(entries: list[AnyEntry], lost: int, duplicated: int) -> None:
    verdict = judge(entries, [QUESTION])

    assert (verdict.lost, verdict.duplicated, verdict.is_good) == (lost, duplicated, False)


@pytest.mark.parametrize(
    "entries",
    [
        told(token(0), token(1), token(2), token(3)),
        told(token(0), token(1), token(2), token(3), END, msgspec.structs.replace(END, seq=7)),
        told(token(0), token(1), token(2), token(3), msgspec.structs.replace(END, text_sha256="0" * 64)),
        told(token(0), token(1), token(2), msgspec.structs.replace(token(3), data="44"), END),
        told(token(0), token(1), token(2), msgspec.structs.replace(token(3), ids=(4,)), END),
        told(token(0), token(1), token(2), token(3, seq=4), END),
        told(token(0), token(1), token(2), token(3), msgspec.structs.replace(END, seq=7)),
        told(token(0), token(2, seq=3), token(1, seq=4), token(3), END),
        [*GOOD, Seen(type="token", seq=7, epoch=1, request_id="q-1", ids=(0,), data="00")],
        [*GOOD, Opened("another", 2)],
        [*GOOD[:2], *GOOD[3:]],
    ],
    ids=["no end", "two ends", "hash", "text", "id", "seq", "gap", "order", "stranger", "session", "no start"],
)
def test_what_is_wrong_is_said(entries: list[AnyEntry]) -> None:
    assert judge(entries, [QUESTION]).wrong != ()


def test_cuts_and_kills_are_in_an_answer_or_between_two() -> None:
    entries = [*GOOD[:4], Lost("reset"), Opened("s", 1, 12.5), *GOOD[4:6], Restarted(), *GOOD[6:], Lost("end")]
    verdict = judge(entries, [QUESTION])

    assert (verdict.cuts, verdict.cuts_in_answers, verdict.waits_ms) == (2, 1, (12.5,))
    assert (verdict.kills, verdict.kills_in_answers) == (1, 1)


def test_a_server_that_has_something_else_is_noticed() -> None:
    """Its log may begin anywhere, as what is acknowledged is dropped, but must end where the user is."""
    events = [each for each in GOOD if isinstance(each, Seen)]
    same = Account(6, events[2:], {"q-0": TEXT})
    replace = msgspec.structs.replace

    assert differences(same, GOOD) == []
    assert [
        len(differences(other, GOOD))
        for other in (
            replace(same, head_seq=7, events=[*same.events, replace(END, seq=7)]),
            replace(same, events=[events[2], *events[4:]]),
            replace(same, events=[*same.events[:2], replace(token(3), ids=(9,)), END]),
            replace(same, answers={"q-0": "another"}),
            replace(same, answers={}),
        )
    ] == [1, 1, 1, 1, 1]


def test_a_journal_goes_on_after_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path)
    for entry in GOOD[:4]:
        first.note(entry)
    first.close()
    path.write_bytes(path.read_bytes() + b'{"entry":"se')
    second = Journal(path)
    second.note(GOOD[4])
    second.close()

    assert (second.session_id, second.last, second.asked) == ("s", GOOD[4], {"q-0"})
    assert read(path) == [*GOOD[:4], Restarted(), GOOD[4]]
