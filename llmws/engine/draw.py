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
"""Ids whose maximum is looked at first: about the square root of what one row and its candidates are together."""

_ROWS = 16
"""Rows that are drawn from at once: it bounds the memory of float64 noise for whole vocabularies."""

_INFINITY = float("inf")

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_LOW = 2**32 - 1


class Parameters(NamedTuple):
    """Of the rows that are drawn from, all [rows] and on the device of their logits.

    Attributes:
        temperatures: float64; 0: the best id.
        top_ks: int64; 0: all.
        top_ps: float64; 1: all.
        min_ps: float64; 0: all.
        seeds: int64.
        positions: int64, of the token within its completion.
    """

    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    seeds: Tensor
    positions: Tensor


def likeliest(logits: Tensor) -> Tensor:
    """The best id of each row, among equals the lowest, or `UNUSABLE`.

    Args:
        logits: floating, [rows, vocabulary].

    Returns:
        int64 [rows].
    """
    # argmax looks at one number at a time where amax looks at a vector: only the best block is left to argmax. Both let
    # a NaN come out on top and take the first of equals. Source: the documentation of torch.argmax and torch.amax.
    ids = _block_ids(_block_maxima(logits).argmax(1, keepdim=True))
    values = _values_at(logits, ids)
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
    return torch.cat([_draw(*part, candidates) for part in _parts(logits, parameters)])


def draw_from_all(logits: Tensor, parameters: Parameters) -> Tensor:
    """What `draw` gives with all candidates and without the filters, which spares the sort."""
    return torch.cat([_draw_from_all(*part) for part in _parts(logits, parameters)])


def leading(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row as (values, ids), largest first, among equals the lower id first.

    Exact, and far cheaper than torch.topk on CPU: what is among the `count` largest is in one of the `count` blocks
    whose maxima are the largest, because each of the others has as many maxima before it.

    Args:
        values: floating, [rows, width]; a NaN comes first.
        count: how many, at most the width are returned.

    Returns:
        float32 and int64, [rows, count].
    """
    rows, width = values.shape
    count = min(count, width)
    if width > count * _BLOCK:
        ids = _block_ids(_order(_block_maxima(values).float(), count)[1])
        found, index = _order(_values_at(values, ids).float(), count, ids)
    else:
        ids = torch.arange(width, device=values.device).expand(rows, width)
        found, index = _order(values.float(), count, ids)
    return found, index


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

    The noise of token i is output i of a SplitMix64 generator whose state is hashed from seed and position.
    Source: SplitMix64, Steele, Lea and Flood 2014 (doi:10.1145/2714064.2660195), constants of variant 13 of its mixer.

    Args:
        ids: int64 [rows or 1, candidates].
        parameters: of the rows.

    Returns:
        float64 [rows, candidates].
    """
    states = mix64(mix64(parameters.seeds) + parameters.positions * _signed(_GAMMA))
    bits = mix64((ids + 1) * _signed(_GAMMA) + states[:, None])
    uniform = _shift(bits, 11).double().add_(0.5).mul_(2.0**-53)  # the 53 bits that a float64 holds, never 0 or 1
    return uniform.log_().neg_().log_().neg_()


def mix64(values: Tensor) -> Tensor:
    """The mixer of SplitMix64 on int64, whose products wrap around as unsigned ones do."""
    values = (values ^ _shift(values, 30)) * _signed(_MIX_1)
    values = (values ^ _shift(values, 27)) * _signed(_MIX_2)
    return values ^ _shift(values, 31)


def _parts(logits: Tensor, parameters: Parameters) -> Iterator[tuple[Tensor, Parameters]]:
    for start in range(0, logits.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        yield logits[rows], Parameters(*(each[rows] for each in parameters))


def _draw(logits: Tensor, parameters: Parameters, candidates: int | None) -> Tensor:
    if candidates is None:
        values, ids = torch.sort(logits, dim=1, descending=True, stable=True)
    else:
        values, ids = leading(logits, candidates)
    best = values[:, :1].double()
    scores = _scores(values, best, parameters)
    left = kept(scores, parameters)
    noisy = scores.add_(gumbel(ids, parameters)).masked_fill_(~left, -_INFINITY)
    lowest = ids.where(noisy == noisy.amax(1, keepdim=True), logits.shape[1]).amin(1)
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


def _block_maxima(values: Tensor) -> Tensor:
    """The largest of every `_BLOCK` neighbours, the last of which may be fewer: [rows, blocks]."""
    rows, width = values.shape
    whole = width // _BLOCK * _BLOCK
    maxima = values[:, :whole].reshape(rows, -1, _BLOCK).amax(2)
    if whole == width:
        return maxima
    return torch.cat([maxima, values[:, whole:].amax(1, keepdim=True)], dim=1)


def _block_ids(blocks: Tensor) -> Tensor:
    """The ids in blocks, [rows, n] -> [rows, n * _BLOCK]; the last block's go beyond the vocabulary."""
    return (blocks[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=blocks.device)).flatten(1)


def _values_at(values: Tensor, ids: Tensor) -> Tensor:
    width = values.shape[1]
    return values.gather(1, ids.clamp(max=width - 1)).masked_fill_(ids >= width, -_INFINITY)


def _order(values: Tensor, count: int, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The first `count` by (value descending, id ascending): both in one integer, so that no two are equal.

    Source: IEEE 754 numbers of one sign are ordered as the integers that their bits spell.
    """
    if ids is None:
        ids = torch.arange(values.shape[1], device=values.device)
    bits = (values + 0.0).view(torch.int32)  # -0.0, which equals 0.0, becomes it
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).masked_fill_(values.isnan(), 0x7FFFFFFF)
    keys = torch.topk((bits.long() << 32) | (_LOW - ids), count, dim=1).values
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32), _LOW - (keys & _LOW)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
