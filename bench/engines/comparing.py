"""From what everyone answered to rates, ratios and targets.

Knows no process. Invariant: a ratio pairs two runs of the same round; only a rate that an earlier report kept is
compared with rounds that it was not part of, and then the name says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bench.engines.contestants import CONTINUOUS, GENERATE, LLAMA, LLMWS, SERVE, SERVER
from bench.engines.remote import Answer
from bench.engines.workload import FULL
from bench.figures import Figure, Report, figure, ratios

UNIT: Final = "tokens/CPU-s"


class Comparison(NamedTuple):
    """One contestant beside another.

    Attributes:
        of: whose rate is divided.
        by: whose rate divides.
        called: what the table calls that.
        reach: the ratio to reach, by number of streams.
        by_streams: streams that the other one has; None: as many.
        only_many: whether one stream says nothing.
    """

    of: str
    by: str
    called: str
    reach: Mapping[int, float] = {}
    by_streams: int | None = None
    only_many: bool = False


COMPARISONS: Final = (
    Comparison(LLMWS, GENERATE, "generate() one after another", {1: 1.0, 8: 4.0, 32: 7.0}, by_streams=1),
    Comparison(LLMWS, GENERATE, "generate() of one batch", only_many=True),
    Comparison(LLMWS, CONTINUOUS, CONTINUOUS, {32: 2.5}),
    Comparison(LLMWS, LLAMA, LLAMA, {1: 0.9, 8: 0.9, 32: 1.1}),
    Comparison(SERVER, LLMWS, "the bare engine", {1: 0.9, 8: 0.9, 32: 0.9}),
    Comparison(SERVER, SERVE, SERVE),
)

Answers = Mapping[tuple[str, int], Sequence[Answer]]
"""Of each contestant, for each number of streams: one a round, from the first on."""


class Kept(NamedTuple):
    """Rates of somebody who does not take part today, by number of streams."""

    date: str
    rates: Mapping[int, float]


def figures(answers: Answers, *, kept_llama: Kept | None = None) -> list[Figure]:
    """All figures that these answers allow: ratios to reach, equality, rates."""
    rates = {key: [_rate(answer) for answer in rounds] for key, rounds in answers.items()}
    ratios_found = [each for comparison in COMPARISONS for each in _compared(comparison, rates, kept_llama)]
    rates_found = [figure(_title(name, streams), UNIT, values) for (name, streams), values in rates.items()]
    return [*ratios_found, *_equality(answers), *rates_found]


def kept(name: str, results: Path) -> Kept | None:
    """The newest rates of somebody in the reports that are kept."""
    for path in sorted(results.glob("*-engine.json"), reverse=True):
        report = msgspec.json.decode(path.read_bytes(), type=Report)
        values = {each.name: each.value for each in report.figures}
        found = {n: values[_title(name, n)] for n in FULL.streams if _title(name, n) in values}
        if found:
            return Kept(report.at[:10], found)
    return None


def _rate(answer: Answer) -> float:
    return sum(map(len, answer.value)) / answer.cpu_s


def _title(name: str, streams: int) -> str:
    return f"{name}, {streams} stream{'s' if streams > 1 else ''}"


def _compared(
    comparison: Comparison, rates: Mapping[tuple[str, int], list[float]], kept_llama: Kept | None
) -> Iterator[Figure]:
    for (name, streams), values in rates.items():
        if name != comparison.of or (comparison.only_many and streams == 1):
            continue
        other, called = rates.get((comparison.by, comparison.by_streams or streams)), comparison.called
        if other is None and comparison.by == LLAMA and kept_llama is not None and streams in kept_llama.rates:
            other = [kept_llama.rates[streams]] * len(values)
            called = f"{called} as kept from {kept_llama.date}"
        if other is not None:
            title = f"{_title(name, streams)}, over {called}"
            yield figure(title, "x", ratios(values[: len(other)], other), at_least=comparison.reach.get(streams))


def _equality(answers: Answers) -> list[Figure]:
    """Of each but `generate()` itself: the share of streams that have all its tokens."""
    same: dict[str, list[float]] = {}
    for (name, streams), rounds in answers.items():
        if name != GENERATE and (GENERATE, streams) in answers:
            for answer, oracle in zip(rounds, answers[GENERATE, streams], strict=False):
                pairs = zip(answer.value, oracle.value, strict=True)
                same.setdefault(name, []).extend(float(ours == theirs) for ours, theirs in pairs)
    # The mean, which no median of zeros and ones would tell.
    means = {name: sum(each) / len(each) for name, each in same.items()}
    return [
        figure(f"streams with every token of generate(): {name}", "of 1", [mean], at_least=1.0)
        for name, mean in means.items()
    ]
