"""From logits to the next token.

Owns the order of filters and the noise. Knows no model. Invariant: the token at a position depends only on the logits,
the sampling parameters and the ids before it; there is no random state, so a stream goes on after a kill, on another
machine or in another batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from llmws.engine.runner import Token
from llmws.errors import BadRequestError, ModelInvalidError
from llmws.protocol.messages import Sampling, TokenLogprob, TopLogprob

SAMPLER_VERSION = 2
"""Changes when the same logits may give another token; part of `ModelInfo.engine`."""

CPU_CANDIDATES = 256
"""Likeliest tokens that are considered on CPU, where sorting a whole vocabulary costs more than a small model."""

_MIN_LOGPROB = -9999.0
"""Of a token that the model rules out: JSON has no infinity. Source: the OpenAI API."""

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


class Sampler:
    """Chooses the tokens of one request.

    Args:
        sampling: fully resolved; absent fields mean no filter, and greedy without a temperature.
        prompt_ids: the repetition penalty counts them.
        emitted_ids: completion ids that exist already.
        vocabulary: number of logits.

    Raises:
        BadRequestError: `logit_bias` names a token that the model does not have.
    """

    def __init__(
        self, sampling: Sampling, *, prompt_ids: Sequence[int], emitted_ids: Sequence[int], vocabulary: int
    ) -> None:
        self._greedy = not sampling.do_sample or not sampling.temperature
        self._sampling = sampling
        self._bias = {int(token_id): value for token_id, value in (sampling.logit_bias or {}).items()}
        if self._bias and max(self._bias) >= vocabulary:
            raise BadRequestError(f"logit_bias names token {max(self._bias)}; the model has {vocabulary}")
        self._seen = dict.fromkeys(prompt_ids)
        self._counts: dict[int, int] = {}
        self._position = 0
        for token_id in emitted_ids:
            self._append(token_id)

    def choose(self, logits: torch.Tensor) -> Token:
        """Chooses the next token and remembers it.

        Args:
            logits: float32 [vocabulary], the model's own.

        Raises:
            ModelInvalidError: the logits have a NaN or nothing finite at the top.
        """
        adjusted = self._adjust(logits)
        if self._greedy:
            # The first of several maxima is returned. Source: the documentation of torch.max.
            best, index = adjusted.max(dim=0)
            _check(float(best))
            token_id = int(index)
        else:
            token_id = self._draw(adjusted)
        wanted = self._sampling.logprobs
        logprob = None if wanted is None else _logprob(logits, token_id, wanted)
        self._append(token_id)
        return Token(token_id, logprob)

    def _append(self, token_id: int) -> None:
        self._seen[token_id] = None
        self._counts[token_id] = self._counts.get(token_id, 0) + 1
        self._position += 1

    def _adjust(self, logits: torch.Tensor) -> torch.Tensor:
        """Bias and penalties, on the tokens they touch; without any, the logits come back as they are."""
        repetition = self._sampling.repetition_penalty or 1.0
        frequency = self._sampling.frequency_penalty or 0.0
        presence = self._sampling.presence_penalty or 0.0
        if repetition == 1.0 and not (frequency or presence or self._bias):
            return logits
        adjusted = logits.clone()
        if self._bias:
            adjusted[_ids(self._bias, logits)] += logits.new_tensor(list(self._bias.values()))
        if repetition != 1.0:
            # Source: Keskar et al. 2019, CTRL (arXiv:1909.05858), 4.1, with the sign fix of transformers.
            seen = _ids(self._seen, logits)
            scores = adjusted[seen]
            adjusted[seen] = torch.where(scores < 0, scores * repetition, scores / repetition)
        if self._counts:
            # Source: the OpenAI API: mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the completion.
            counts = logits.new_tensor(list(self._counts.values()))
            adjusted[_ids(self._counts, logits)] -= counts * frequency + presence
        return adjusted

    def _draw(self, logits: torch.Tensor) -> int:
        """Filters, then the Gumbel-max trick: argmax(logit + noise) is a draw from the softmax of what was kept."""
        s = self._sampling
        assert s.temperature
        values, ids = candidates(logits, s.top_k or 0)
        _check(float(values[0]))
        scores = values.double()
        scores = (scores - scores[0]) / s.temperature  # the best stays 0, however small the temperature
        kept = keep(scores, top_p=s.top_p or 1.0, min_p=s.min_p or 0.0)
        scores, ids = scores[:kept], ids[:kept]
        noisy = scores + gumbel(ids, seed=s.seed or 0, position=self._position)
        return int(ids[noisy == noisy.max()].min())


def candidates(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens as (values, ids), best first, among equals the lower id first.

    At most `top_k` if that is not 0, and on CPU at most `CPU_CANDIDATES`.
    """
    size = logits.shape[0]
    count = min(top_k or size, CPU_CANDIDATES if logits.device.type == "cpu" else size, size)
    if count == size:
        ordered = torch.sort(logits, descending=True, stable=True)
        return ordered.values, ordered.indices
    values, ids = torch.topk(logits, count + 1)
    if values[count] == values[count - 1]:
        # The cut goes through equals, and topk takes any of them: take the lowest ids.
        above = ids[values > values[count]]
        equal = (logits == values[count]).nonzero().flatten()[: count - above.shape[0]]
        ids = torch.cat([above, equal])
    ids = torch.sort(ids[:count]).values
    ordered = torch.sort(logits[ids], descending=True, stable=True)
    return ordered.values, ids[ordered.indices]


def keep(scores: torch.Tensor, *, top_p: float, min_p: float) -> int:
    """How many of the sorted scores top-p and min-p leave; at least one.

    Source: top-p, Holtzman et al. 2020 (arXiv:1904.09751): the smallest set whose probability reaches top_p. min-p,
    Nguyen et al. 2024 (arXiv:2407.01082): those with at least min_p times the probability of the best.
    """
    if top_p >= 1.0 and min_p <= 0.0:
        return scores.shape[0]
    probabilities = torch.softmax(scores, dim=0)
    before = torch.cumsum(probabilities, dim=0) - probabilities
    wanted = (before < top_p) & (probabilities >= min_p * probabilities[0])
    return max(1, int(wanted.sum()))


def gumbel(ids: torch.Tensor, *, seed: int, position: int) -> torch.Tensor:
    """Standard Gumbel noise, float64, for int64 token ids: a hash, the same on every machine.

    The noise of token i is output i of a SplitMix64 generator whose state is hashed from seed and position.
    Source: SplitMix64, Steele, Lea and Flood 2014 (doi:10.1145/2714064.2660195), constants of variant 13 of its mixer.
    """
    state = mix64((mix64(seed) + position * _GAMMA) & _MASK)
    bits = _mix64((ids + 1) * _signed(_GAMMA) + _signed(state))
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53  # the 53 bits that a float64 holds, never 0 or 1
    return -torch.log(-torch.log(uniform))


def mix64(value: int) -> int:
    """The mixer of SplitMix64 on one unsigned 64-bit integer."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _mix64(values: torch.Tensor) -> torch.Tensor:
    """`mix64` on int64 tensors, whose products wrap around as unsigned ones do."""
    values = (values ^ _shift(values, 30)) * _signed(_MIX_1)
    values = (values ^ _shift(values, 27)) * _signed(_MIX_2)
    return values ^ _shift(values, 31)


def _shift(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _check(best: float) -> None:
    # max and sort both let a NaN come out on top.
    if not math.isfinite(best):
        raise ModelInvalidError("the model computed no usable logits")


def _ids(ids: Iterable[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(ids), dtype=torch.int64, device=like.device)


def _logprob(logits: torch.Tensor, token_id: int, count: int) -> TokenLogprob:
    """Under the model itself, before bias, penalties and filters."""
    logprobs = torch.log_softmax(logits, dim=0).clamp(min=_MIN_LOGPROB)
    values, ids = candidates(logprobs, count) if count else (logprobs[:0], logprobs[:0].long())
    top = [TopLogprob(id=i, logprob=v) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
    return TokenLogprob(id=token_id, logprob=float(logprobs[token_id]), top=top)
