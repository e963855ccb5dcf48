"""A measured quantity beside what it is to reach, and a run's figures as a file and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measured quantity: the median of its runs, and what it is to reach."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    runs: int
    bound: Literal["<=", ">="] | None = None
    target: float | None = None
    met: bool | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run."""

    at: str
    host: str
    llmws: str
    commit: str | None
    versions: dict[str, str]
    load_average_before: tuple[float, float, float]
    took_s: float
    figures: list[Figure]


def figure(
    name: str, unit: str, runs: Sequence[float], *, at_most: float | None = None, at_least: float | None = None
) -> Figure:
    """The median of the runs, and whether it reaches its target."""
    value = _rounded(statistics.median(runs))
    plain = Figure(name=name, unit=unit, value=value, low=_rounded(min(runs)), high=_rounded(max(runs)), runs=len(runs))
    if at_most is not None:
        return replace(plain, bound="<=", target=at_most, met=value <= at_most)
    if at_least is not None:
        return replace(plain, bound=">=", target=at_least, met=value >= at_least)
    return plain


def spread(name: str, unit: str, samples: Sequence[float], *, p99_at_most: float | None = None) -> list[Figure]:
    """Median, 99th percentile and maximum of many samples."""
    return [
        figure(f"{name}: p50", unit, samples),
        figure("  p99", unit, [percentile(samples, 99)], at_most=p99_at_most),
        figure("  max", unit, [max(samples)]),
    ]


def percentile(samples: Sequence[float], percent: int) -> float:
    """The value that `percent` of at least two samples lie below."""
    return statistics.quantiles(samples, n=100)[percent - 1]


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Round by round, because the machine's speed drifts."""
    return [one / other for one, other in zip(of, to, strict=True)]


def table(figures: Sequence[Figure]) -> str:
    """The figures for people."""
    rows = [("figure", "measured", "range", "target", "")]
    for each in figures:
        reach = f"{each.low:g} - {each.high:g}" if each.runs > 1 else ""
        target = "" if each.target is None else f"{each.bound} {each.target:g} {each.unit}"
        verdict = {None: "", True: "met", False: "MISSED"}[each.met]
        rows.append((each.name, f"{each.value:g} {each.unit}", reach, target, verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _rounded(value: float) -> float:
    """Four significant digits: more would only be noise."""
    return float(f"{value:.4g}")
