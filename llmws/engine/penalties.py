"""What a request changes of its logits before anything is chosen: bias and penalties.

Knows no filters and no noise. Invariant: only logits of ids that a request names or has seen are touched, and what
becomes of them depends on the ids alone, not on how they came.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec
import torch
from torch import Tensor

from llmws.errors import BadRequestError
from llmws.protocol.messages import Sampling


class Fixed(msgspec.Struct, frozen=True):
    """What is known from the start: int64 and float32, [ids], on the device."""

    ids: Tensor
    bias: Tensor
    repetition: Tensor


class Grown(msgspec.Struct, frozen=True):
    """What the completion has added so far: int64 and float32, [ids], on the host."""

    ids: Tensor
    repetition: Tensor
    penalty: Tensor


class Penalties:
    """Bias and penalties of one request.

    Args:
        sampling: fully resolved; absent fields mean no penalty.
        prompt_ids: the repetition penalty counts them.
        emitted_ids: completion ids that exist already; all penalties count them.
        vocabulary: number of logits.
        device: of the logits.

    Raises:
        BadRequestError: `logit_bias` names a token that the model does not have.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt_ids: Sequence[int],
        emitted_ids: Sequence[int],
        vocabulary: int,
        device: torch.device,
    ) -> None:
        bias = {int(token_id): value for token_id, value in (sampling.logit_bias or {}).items()}
        if bias and max(bias) >= vocabulary:
            raise BadRequestError(f"logit_bias names token {max(bias)}; the model has {vocabulary}")
        self._repetition = sampling.repetition_penalty or 1.0
        self._frequency = sampling.frequency_penalty or 0.0
        self._presence = sampling.presence_penalty or 0.0
        self._prompt_ids = frozenset(prompt_ids) if self._repetition != 1.0 else frozenset()
        ids = sorted(self._prompt_ids | bias.keys())
        self.fixed = Fixed(
            torch.tensor(ids, dtype=torch.int64).to(device),
            torch.tensor([bias.get(i, 0.0) for i in ids], dtype=torch.float32).to(device),
            torch.tensor([self._repetition_of(i) for i in ids], dtype=torch.float32).to(device),
        )
        self._counts_completion = self._repetition != 1.0 or bool(self._frequency or self._presence)
        self._slots: dict[int, int] = {}
        self._ids, self._counts, self._factors = array("q"), array("f"), array("f")
        for token_id in emitted_ids:
            self.append(token_id)

    @property
    def grown(self) -> Grown:
        """The state of now; a copy."""
        counts = _tensor(self._counts, torch.float32)
        # Source: the OpenAI API: mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the completion.
        penalty = counts.mul_(self._frequency).add_(self._presence)
        return Grown(_tensor(self._ids, torch.int64), _tensor(self._factors, torch.float32), penalty)

    def __bool__(self) -> bool:
        """Whether there is anything to change, now or later."""
        return self._counts_completion or len(self.fixed.ids) > 0

    def append(self, token_id: int) -> None:
        """Counts a completion id."""
        if not self._counts_completion:
            return
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot < len(self._ids):
            self._counts[slot] += 1
            return
        self._ids.append(token_id)
        self._counts.append(1)
        # What the prompt holds is fixed: it is penalised once.
        self._factors.append(1.0 if token_id in self._prompt_ids else self._repetition)

    def _repetition_of(self, token_id: int) -> float:
        return self._repetition if token_id in self._prompt_ids else 1.0


def penalise_(logits: Tensor, penalties: Sequence[Penalties]) -> None:
    """Bias, then repetition, then frequency and presence, in place.

    Args:
        logits: float32 [rows, vocabulary], contiguous.
        penalties: one a row.
    """
    flat = logits.view(-1)
    fixed = [each.fixed for each in penalties]
    index = _flat_index(logits, [each.ids for each in fixed])
    biased = flat[index] + _on(logits, [each.bias for each in fixed])
    flat[index] = _repeated(biased, _on(logits, [each.repetition for each in fixed]))
    grown = [each.grown for each in penalties]
    index = _flat_index(logits, [each.ids for each in grown])
    repeated = _repeated(flat[index], _on(logits, [each.repetition for each in grown]))
    flat[index] = repeated - _on(logits, [each.penalty for each in grown])


def _repeated(scores: Tensor, factors: Tensor) -> Tensor:
    """Source: Keskar et al. 2019, CTRL (arXiv:1909.05858), 4.1, with the sign fix of transformers."""
    limits = torch.finfo(scores.dtype)
    repeated = torch.where(scores < 0, scores * factors, scores / factors)
    # A tiny factor, which is allowed, would lead beyond what the type holds. What the model rules out stays ruled out.
    return torch.where(scores.isfinite(), repeated.clamp(limits.min, limits.max), repeated)


def _flat_index(logits: Tensor, ids: Sequence[Tensor]) -> Tensor:
    """Where ids of each row are in the flat logits."""
    rows, width = logits.shape
    lengths = torch.tensor([len(each) for each in ids])
    starts = torch.repeat_interleave(torch.arange(rows) * width, lengths)
    return _on(logits, ids) + starts.to(logits.device, non_blocking=True)


def _on(logits: Tensor, parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)).to(logits.device, non_blocking=True)


def _tensor(values: array[int] | array[float], dtype: torch.dtype) -> Tensor:
    # A tensor that shared the array's memory would forbid it to grow.
    return torch.frombuffer(values, dtype=dtype).clone() if values else torch.empty(0, dtype=dtype)
