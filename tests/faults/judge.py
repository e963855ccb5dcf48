"""What is lost, doubled or wrong in what a user has seen. Pure; knows neither sockets nor files.

Looks at a whole journal when everything is over, for users who are cut off or killed at any moment themselves. Where
only the server is killed, `tally` counts what each message that comes says.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from tests.faults.journal import AnyEntry, Lost, Opened, Restarted, Seen
from tests.faults.spoken import spoken


class Question(msgspec.Struct, frozen=True):
    """A request; `prompt` says what the scripted engine answers: tokens of so many bytes."""

    request_id: str
    prompt: str
    count: int

    @classmethod
    def draw(cls, seed: str, number: int, *, most_tokens: int) -> Question:
        """The question of that number; the same in every process."""
        chance = random.Random(f"{seed}/{number}")
        return cls(f"q-{number}", str(chance.randint(1, 30)), chance.randint(most_tokens // 4, most_tokens))


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a user's requests.

    Attributes:
        lost: tokens that never came.
        duplicated: tokens that came again.
        wrong: what is wrong otherwise, in words.
        cuts: connections lost.
        kills: how often the user's process was killed.
        cuts_in_answers, kills_in_answers: of these, in the middle of an answer.
        continued: answers that a restarted server went on with.
        waits_ms: from each loss to the next welcome.
    """

    answers: int = 0
    events: int = 0
    tokens: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: tuple[str, ...] = ()
    cuts: int = 0
    cuts_in_answers: int = 0
    kills: int = 0
    kills_in_answers: int = 0
    continued: int = 0
    waits_ms: tuple[float, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether everything came, once and as it was said."""
        return not (self.lost or self.duplicated or self.wrong)

    @property
    def has_been_hit(self) -> bool:
        """Whether each kind of harm struck answers in the middle: otherwise a good end says little."""
        return min(self.cuts_in_answers, self.kills_in_answers, self.continued) > 0

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


def judge(entries: Iterable[AnyEntry], questions: Sequence[Question], *, is_scripted: bool = True) -> Verdict:
    """Judges a journal, all of whose requests should have ended.

    Args:
        entries: of the journal.
        questions: what was asked, in order.
        is_scripted: whether the answers are known beforehand; otherwise their hashes alone tell.
    """
    entries = list(entries)
    seen = [each for each in entries if isinstance(each, Seen)]
    verdict = Verdict(
        events=len(seen),
        wrong=tuple(_disorder(entries, questions)),
        continued=sum(each.code == "resumed_after_restart" for each in seen),
        **_losses(entries),
    )
    events: dict[str | None, list[Seen]] = defaultdict(list)
    for each in seen:
        events[each.request_id].append(each)
    verdicts = [_judge_answer(question, events[question.request_id], is_scripted) for question in questions]
    return sum(verdicts, verdict)


def _judge_answer(question: Question, events: Sequence[Seen], is_scripted: bool) -> Verdict:
    tokens = [(each.index + place, token) for each in events for place, token in enumerate(each.ids)]
    times = Counter(index for index, _ in tokens)
    terminals = [each for each in events if each.is_terminal]
    total = question.count if is_scripted else max((each.total_tokens for each in terminals), default=0)
    text = "".join(each.data for each in events if each.type == "token")
    complaints = []
    if [each.type for each in terminals] != ["done"] or not events[-1].is_terminal:
        complaints.append(f"{question.request_id} ended as {[each.type for each in terminals]}")
    elif terminals[0].text_sha256 != hashlib.sha256(text.encode()).hexdigest():
        complaints.append(f"the text of {question.request_id} has another hash than its end says")
    if [each.type for each in events].count("start") != 1:
        complaints.append(f"{question.request_id} did not start once")
    if strange := {each.type for each in events} - {"start", "token", "log", "done"}:
        complaints.append(f"{question.request_id} was told {strange}")
    if [index for index, _ in tokens] != sorted(index for index, _ in tokens):
        complaints.append(f"tokens of {question.request_id} came out of order")
    if is_scripted and text != spoken(total, int(question.prompt)):
        complaints.append(f"the text of {question.request_id} is another")
    if is_scripted and any(index != token for index, token in tokens):
        complaints.append(f"a token of {question.request_id} is another")
    return Verdict(
        answers=1,
        tokens=len(tokens),
        lost=total - sum(index in times for index in range(total)),
        duplicated=times.total() - len(times),
        wrong=tuple(complaints),
    )


def _disorder(entries: Sequence[AnyEntry], questions: Sequence[Question]) -> list[str]:
    complaints = []
    last_seq, session_id = 0, None
    for entry in entries:
        if isinstance(entry, Opened):
            if session_id not in (None, entry.session_id) and last_seq:
                complaints.append("the session was lost")
            session_id = entry.session_id
        elif isinstance(entry, Seen):
            if entry.seq != last_seq + 1:
                complaints.append(f"event {entry.seq} came after {last_seq}")
            last_seq = entry.seq
    asked = {each.request_id for each in questions}
    strangers = {each.request_id for each in entries if isinstance(each, Seen)} - asked
    return [*complaints, *(f"an answer to {stranger} came, which was not asked" for stranger in strangers)]


def _losses(entries: Sequence[AnyEntry]) -> dict[str, object]:
    counts: Counter[str] = Counter()
    is_in_answer = False
    for entry in entries:
        if isinstance(entry, Seen):
            is_in_answer = not entry.is_terminal
        elif isinstance(entry, Lost | Restarted):
            name = "cuts" if isinstance(entry, Lost) else "kills"
            counts[name] += 1
            counts[f"{name}_in_answers"] += is_in_answer
    waits_ms = tuple(each.waited_ms for each in entries if isinstance(each, Opened) and each.waited_ms is not None)
    return {**counts, "waits_ms": waits_ms}
