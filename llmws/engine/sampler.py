"""From logits to the next tokens, for all requests of a step at once.

Owns what is remembered of each request, and which rows need which work. Knows no model. Invariant: the token at a
position depends only on its row of logits, the sampling parameters and the ids before it; there is no random state, so
a stream goes on after a kill, on another machine or in another batch.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmws.engine.draw import UNUSABLE, Parameters, draw, draw_from_all, leading, likeliest, noise_state
from llmws.engine.penalties import Penalties, penalise_
from llmws.engine.runner import Token
from llmws.errors import LlmwsError, ModelInvalidError
from llmws.protocol.messages import Sampling, TokenLogprob, TopLogprob

SAMPLER_VERSION = 2
"""Changes when the same logits may give another token; part of `ModelInfo.engine`."""

CANDIDATES = 256
"""Likeliest tokens that are found without sorting a whole vocabulary, everywhere for a top-k of so many at most. On
CPU, where the sort costs more than a small model, no others are considered."""

_MIN_LOGPROB = -9999.0
"""Of a token that the model rules out: JSON has no infinity. Source: the OpenAI API."""


class _Work(enum.Enum):
    """What choosing from a row takes, the cheapest first."""

    BEST = "the best"
    DRAW = "noise for every id"
    DRAW_FROM_LEADING = "filters and noise for the first `CANDIDATES`"
    DRAW_FROM_SORTED = "filters and noise for every id, in order"


class _Request:
    """What is remembered of a request."""

    def __init__(self, sampling: Sampling, penalties: Penalties, position: int) -> None:
        self.sampling = sampling
        self.penalties = penalties
        self.position = position

    def append(self, token_id: int) -> None:
        self.penalties.append(token_id)
        self.position += 1


class BatchSampler:
    """Chooses the next tokens of many requests in one pass.

    Args:
        vocabulary: number of logits.
        device: of the logits.
        candidates: how many of the likeliest tokens are considered, 0 for all; None: `CANDIDATES` on CPU, all on
            anything else.
    """

    def __init__(self, vocabulary: int, device: torch.device, *, candidates: int | None = None) -> None:
        self._vocabulary = vocabulary
        self._device = device
        rule = CANDIDATES if device.type == "cpu" else 0
        self._candidates = rule if candidates is None else candidates
        self._requests: dict[str, _Request] = {}

    def add(self, key: str, sampling: Sampling, *, prompt_ids: Sequence[int], emitted_ids: Sequence[int]) -> None:
        """Takes on a request.

        Args:
            key: names it.
            sampling: fully resolved; absent fields mean no filter, and greedy without a temperature.
            prompt_ids: the repetition penalty counts them.
            emitted_ids: completion ids that exist already.

        Raises:
            BadRequestError: `logit_bias` names a token that the model does not have.
        """
        penalties = Penalties(
            sampling,
            prompt_ids=prompt_ids,
            emitted_ids=emitted_ids,
            vocabulary=self._vocabulary,
            device=self._device,
        )
        self._requests[key] = _Request(sampling, penalties, len(emitted_ids))

    def remove(self, key: str) -> None:
        """Forgets a request. Unknown keys are ignored."""
        self._requests.pop(key, None)

    @torch.inference_mode()
    def choose(self, keys: Sequence[str], logits: Tensor) -> list[Token | LlmwsError]:
        """Chooses each request's next token and remembers it.

        Args:
            keys: of different requests that were added.
            logits: the model's own, floating, [keys, vocabulary]; stay as they are.

        Returns:
            for each key its token, or `ModelInvalidError` where a row has a NaN or nothing finite at the top; of that
            nothing is remembered.
        """
        if not keys:
            return []
        requests = [self._requests[key] for key in keys]
        ids = self._chosen(requests, logits)
        return self._taken(keys, ids, _logprobs(requests, logits, ids))

    def _taken(
        self, keys: Sequence[str], ids: Sequence[int], logprobs: Mapping[int, TokenLogprob]
    ) -> list[Token | LlmwsError]:
        """Remembers what was drawn, but where it is `UNUSABLE`."""
        outcomes: list[Token | LlmwsError] = []
        for row, (key, token_id) in enumerate(zip(keys, ids, strict=True)):
            if token_id == UNUSABLE:
                outcomes.append(ModelInvalidError("the model computed no usable logits"))
            else:
                self._requests[key].append(token_id)
                outcomes.append(Token(token_id, logprobs.get(row)))
        return outcomes

    def _chosen(self, requests: Sequence[_Request], logits: Tensor) -> list[int]:
        """The ids, computed in groups of rows that need the same work, in one wait for the device."""
        groups: dict[tuple[_Work, bool], list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault((self._work(request.sampling), bool(request.penalties)), []).append(row)
        parts = []
        for (work, is_penalised), rows in groups.items():
            members = [requests[row] for row in rows]
            part = logits if len(rows) == len(requests) else _rows(logits, rows)
            if is_penalised:
                part = part.to(torch.float32, copy=part is logits)
                penalise_(part, [member.penalties for member in members])
            parts.append(_draw(work, part, members, candidates=self._candidates or CANDIDATES))
        order = itertools.chain.from_iterable(groups.values())
        by_row = dict(zip(order, torch.cat(parts).tolist(), strict=True))
        return [by_row[row] for row in range(len(requests))]

    def _work(self, sampling: Sampling) -> _Work:
        if _is_greedy(sampling):
            return _Work.BEST
        if self._candidates or 0 < (sampling.top_k or 0) <= CANDIDATES:
            return _Work.DRAW_FROM_LEADING
        is_filtered = sampling.top_k or (sampling.top_p or 1.0) < 1 or sampling.min_p
        return _Work.DRAW_FROM_SORTED if is_filtered else _Work.DRAW


def _is_greedy(sampling: Sampling) -> bool:
    return not sampling.do_sample or not sampling.temperature


def _draw(work: _Work, logits: Tensor, requests: Sequence[_Request], *, candidates: int) -> Tensor:
    """The ids of rows that need the same work."""
    if work is _Work.BEST:
        return likeliest(logits)
    parameters = _parameters(requests, logits.device)
    if work is _Work.DRAW:
        return draw_from_all(logits, parameters)
    return draw(logits, parameters, candidates=candidates if work is _Work.DRAW_FROM_LEADING else None)


def _parameters(requests: Sequence[_Request], device: torch.device) -> Parameters:
    samplings = [request.sampling for request in requests]
    floats = [[0.0 if _is_greedy(s) else s.temperature for s in samplings], [s.top_p or 1.0 for s in samplings]]
    floats.append([s.min_p or 0.0 for s in samplings])
    temperatures, top_ps, min_ps = torch.tensor(floats, dtype=torch.float64).to(device)
    states = [noise_state(request.sampling.seed or 0, request.position) for request in requests]
    top_ks, states = torch.tensor([[s.top_k or 0 for s in samplings], states]).to(device)
    return Parameters(temperatures, top_ks, top_ps, min_ps, states)


def _logprobs(requests: Sequence[_Request], logits: Tensor, ids: Sequence[int]) -> dict[int, TokenLogprob]:
    """By row, where they are asked for: under the model itself, before bias, penalties and filters."""
    wanted = {row: r.sampling.logprobs for row, r in enumerate(requests) if r.sampling.logprobs is not None}
    rows = [row for row in wanted if ids[row] != UNUSABLE]
    if not rows:
        return {}
    own = logits if len(rows) == len(requests) else _rows(logits, rows)
    logprobs = torch.log_softmax(own, dim=1, dtype=torch.float32)
    chosen = torch.tensor([[ids[row]] for row in rows]).to(logits.device)
    values, top_ids = leading(logprobs, max(wanted[row] for row in rows))
    table = torch.cat([logprobs.gather(1, chosen), values], dim=1).clamp_(min=_MIN_LOGPROB).tolist()
    found = {}
    for row, (logprob, *others), names in zip(rows, table, top_ids.tolist(), strict=True):
        top = [TopLogprob(id=i, logprob=v) for i, v in zip(names, others, strict=True)]
        found[row] = TokenLogprob(id=ids[row], logprob=logprob, top=top[: wanted[row]])
    return found


def _rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of some rows; index_select copies each at once, where indexing goes number by number."""
    return logits.index_select(0, torch.tensor(rows).to(logits.device))
