"""From logits to ids, for many rows at once: the order of tokens, the filters and the noise.

Knows tensors only: neither requests nor models. Every shape follows from the shapes that come in and nothing waits for
the device, so a CUDA graph can hold any of it. Invariant: on CPU a row's result is bitwise the same whatever rows are
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

UNUSABLE = -1
"""In place of an id, where a row has a NaN or nothing finite at the top."""

_BLOCK = 64
"""Neighbours of whom only the largest is looked at first, which takes a whole vocabulary to a few thousand."""

_PART = 8
"""Neighbours of whom only the largest is looked at next, within the blocks that are left."""

ROWS = {"cpu": 8, "cuda": 64}
"""Rows that are drawn from at once, which bounds the memory of float64 noise for whole vocabularies: on CPU as many as
stay in its cache, on CUDA so many that launching the kernels of each piece costs little."""

DRAWN_BYTES = 80
"""At most, of each number of the rows that are drawn from at once: the sort's two copies of values and ids, scores,
their probabilities and sums, and the noise."""

_INFINITY = float("inf")

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = 2**64 - 1
_LOW = 2**32 - 1


class Parameters(NamedTuple):
    """Of the rows that are drawn from, all [rows] and on the device of their logits.

    Attributes:
        temperatures: float64; 0: the best id.
        top_ks: int64; 0: all.
        top_ps: float64; 1: all.
        min_ps: float64; 0: all.
        states: int64, of the noise; see `noise_state`.
    """

    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    states: Tensor


def likeliest(logits: Tensor) -> Tensor:
    """The best id of each row, among equals the lowest, or `UNUSABLE`.

    Args:
        logits: floating, [rows, vocabulary].

    Returns:
        int64 [rows].
    """
    # argmax looks at one number at a time where amax looks at a vector of them: argmax is left the blocks, and the best
    # one. Both let a NaN come out on top; argmax takes the first of equals. Source: the documentation of torch.argmax.
    body, ids = _blocks(logits)
    if body.shape[1]:
        best = body.amax(2).argmax(1, keepdim=True)
        ids = torch.cat([_parts(best, _BLOCK), ids], dim=1)
    values = logits.gather(1, ids)
    index = values.argmax(1, keepdim=True)
    return torch.where(values.gather(1, index).isfinite(), ids.gather(1, index), UNUSABLE)[:, 0]


def draw(logits: Tensor, parameters: Parameters, *, candidates: int | None = None) -> Tensor:
    """Draws one id a row from the softmax of what temperature and filters leave, or `UNUSABLE`.

    Filters, then the Gumbel-max trick: argmax(logit + noise) is a draw from the softmax of what was kept.

    Args:
        logits: floating, [rows, vocabulary].
        parameters: of the rows.
        candidates: only so many of the likeliest ids are considered; None: all. Where all rows have a top-k, the
            largest of them changes nothing and spares the sort.

    Returns:
        int64 [rows].
    """
    if candidates is not None:
        return _draw(*leading(logits, candidates), parameters)
    return torch.cat([_draw(*_sorted(part), rows) for part, rows in _pieces(logits, parameters)])


def draw_from_all(logits: Tensor, parameters: Parameters) -> Tensor:
    """What `draw` gives with all candidates and without the filters, which spares the sort."""
    return torch.cat([_draw_from_all(*part) for part in _pieces(logits, parameters)])


def leading(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row as (values, ids), largest first, among equals the lower id first.

    Exact, and far cheaper than torch.topk on CPU: what is among the `count` first is in one of the `count` blocks whose
    maxima are the first, because every other block has all of those maxima before it. So it is in parts of blocks.

    Args:
        values: floating, [rows, width]; a NaN counts as infinity.
        count: how many; at most the width are returned.

    Returns:
        floating and int64, [rows, count].
    """
    rows, width = values.shape
    count = min(count, width)
    found, ids = values, torch.arange(width, device=values.device).expand(rows, -1)
    if width > count * _BLOCK:
        body, ids = _blocks(values)
        blocks = torch.arange(body.shape[1], device=values.device).expand(rows, -1)
        blocks = _parts(_ids_of(_first(body.amax(2), blocks, count)), _BLOCK // _PART)
        # Their members side by side, not one after the other: then amax takes a vector at a time.
        members = blocks[:, None, :] * _PART + torch.arange(_PART, device=values.device)[:, None]
        maxima = values.gather(1, members.flatten(1)).view(rows, _PART, -1).amax(1)
        ids = torch.cat([_parts(_ids_of(_first(maxima, blocks, count)), _PART), ids], dim=1)
        found = values.gather(1, ids)
    first = _ids_of(_first(found, ids, count))
    return values.gather(1, first), first


def kept(scores: Tensor, parameters: Parameters) -> Tensor:
    """Which of the sorted scores the filters leave; at least the first of each row.

    Source: top-p, Holtzman et al. 2020 (arXiv:1904.09751): the smallest set whose probability reaches top_p. min-p,
    Nguyen et al. 2024 (arXiv:2407.01082): those with at least min_p times the probability of the best. Both look at
    what top-k left.

    Args:
        scores: float64 [rows, candidates], largest first.
        parameters: of the rows.

    Returns:
        bool [rows, candidates].
    """
    width = scores.shape[1]
    ranks = torch.arange(width, device=scores.device)
    top_ks, top_ps, min_ps = parameters.top_ks[:, None], parameters.top_ps[:, None], parameters.min_ps[:, None]
    limits = torch.where(top_ks > 0, top_ks, width).clamp(max=width)
    within = ranks < limits
    probabilities = torch.softmax(scores.masked_fill(~within, -_INFINITY), dim=1)
    before = torch.cumsum(probabilities, dim=1) - probabilities
    wanted = (before < top_ps) & (probabilities >= min_ps * probabilities[:, :1]) & within
    # Sums of all probabilities may round to 1 before the last: without a filter they do not count.
    is_filtered = (top_ps < 1) | (min_ps > 0)
    return ranks < torch.where(is_filtered, wanted.sum(1, keepdim=True), limits)


def gumbel(ids: Tensor, parameters: Parameters) -> Tensor:
    """Standard Gumbel noise for token ids: a hash, the same on every machine.

    The noise of token i is output i of the SplitMix64 generator of the row's state.
    Source: SplitMix64, Steele, Lea and Flood 2014 (doi:10.1145/2714064.2660195), constants of variant 13 of its mixer.

    Args:
        ids: int64 [rows or 1, candidates].
        parameters: of the rows.

    Returns:
        float64 [rows, candidates].
    """
    bits = _mix64(ids * _signed(_GAMMA) + parameters.states[:, None])
    uniform = _shift(bits, 11).double().add_(0.5).mul_(2.0**-53)  # the 53 bits that a float64 holds, never 0 or 1
    return uniform.log_().neg_().log_().neg_()


def noise_state(seed: int, position: int) -> int:
    """Of the generator whose outputs are the noise of the token at that position, its first increment made; int64."""
    return _signed((mix64((mix64(seed) + position * _GAMMA) & _MASK) + _GAMMA) & _MASK)


def mix64(value: int) -> int:
    """The mixer of SplitMix64 on one unsigned 64-bit integer."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _pieces(logits: Tensor, parameters: Parameters) -> Iterator[tuple[Tensor, Parameters]]:
    size = ROWS[logits.device.type]
    for start in range(0, logits.shape[0], size):
        rows = slice(start, start + size)
        yield logits[rows], Parameters(*(each[rows] for each in parameters))


def _sorted(logits: Tensor) -> tuple[Tensor, Tensor]:
    values, ids = torch.sort(logits, dim=1, descending=True, stable=True)
    return values, ids


def _draw(values: Tensor, ids: Tensor, parameters: Parameters) -> Tensor:
    """From candidates in order."""
    best = values[:, :1].double()
    scores = _scores(values, best, parameters)
    left = kept(scores, parameters)
    noisy = scores.add_(gumbel(ids, parameters)).masked_fill_(~left, -_INFINITY)
    lowest = ids.masked_fill(noisy < noisy.amax(1, keepdim=True), _LOW).amin(1)
    chosen = torch.where(parameters.temperatures > 0, lowest, ids[:, 0])
    return torch.where(best[:, 0].isfinite(), chosen, UNUSABLE)


def _draw_from_all(logits: Tensor, parameters: Parameters) -> Tensor:
    ids = torch.arange(logits.shape[1], device=logits.device)[None]
    best = logits.amax(1, keepdim=True).double()
    drawn = _scores(logits, best, parameters).add_(gumbel(ids, parameters)).argmax(1)  # the first of equals
    chosen = torch.where(parameters.temperatures > 0, drawn, likeliest(logits))
    return torch.where(best[:, 0].isfinite(), chosen, UNUSABLE)


def _scores(values: Tensor, best: Tensor, parameters: Parameters) -> Tensor:
    """The best stays 0, however small the temperature; a temperature of 0 must only not spoil the arithmetic."""
    temperatures = parameters.temperatures[:, None]
    return values.double().sub_(best).div_(torch.where(temperatures > 0, temperatures, 1.0))


def _blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """Views of neighbours, [rows, blocks, _BLOCK], and the ids of those that are too few for one, [rows, rest]."""
    rows, width = values.shape
    whole = width // _BLOCK * _BLOCK
    rest = torch.arange(whole, width, device=values.device)
    return values[:, :whole].reshape(rows, whole // _BLOCK, _BLOCK), rest.expand(rows, -1)


def _parts(blocks: Tensor, count: int) -> Tensor:
    """The numbers of the equal parts of numbered blocks, [rows, n] -> [rows, n * count]."""
    return (blocks[:, :, None] * count + torch.arange(count, device=blocks.device)).flatten(1)


def _first(values: Tensor, ids: Tensor, count: int) -> Tensor:
    """The first `count` by (value descending, id ascending), in order; both in one integer, so that no two are equal.

    Source: IEEE 754 numbers of one sign are ordered as the integers that their bits spell.
    """
    # NaN has no order, and -0.0 is equal to 0.0, whose bits it gets.
    numbers = torch.nan_to_num(values.float(), nan=_INFINITY, posinf=_INFINITY, neginf=-_INFINITY).add_(0.0)
    keys = _ordered(numbers.view(torch.int32)).long().mul_(2**32).sub_(ids)
    return torch.topk(keys, count, dim=1).values


def _ids_of(first: Tensor) -> Tensor:
    return -first & _LOW


def _ordered(bits: Tensor) -> Tensor:
    """Of negative numbers, whose order is the other way round, turns all bits but the sign."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _mix64(values: Tensor) -> Tensor:
    """`mix64` on int64, whose products wrap around as unsigned ones do."""
    values = (values ^ _shift(values, 30)).mul_(_signed(_MIX_1))
    values = (values ^ _shift(values, 27)).mul_(_signed(_MIX_2))
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (values >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
