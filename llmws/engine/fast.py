"""The fast tier: all streams of a model in one forward a step, over a paged pool of keys and values.

Owns the order of a step: plan, forward, sample, commit. Knows no threads and no files. Invariant: a step that fails as
a whole is taken again stream by stream, so an error ends the stream that causes it and no other.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from tokenizers import Tokenizer

from llmws.engine.graphs import CudaGraphs, DecodeBatch, DecodeGraphs, Recorder
from llmws.engine.layout import Layout
from llmws.engine.network import Network, check_request, decoded, forward_parameters, give_back, own_errors, vocabulary
from llmws.engine.paged import Batch, Decodes, GroupBatch, Pool
from llmws.engine.runner import Token
from llmws.engine.sampler import BatchSampler
from llmws.engine.scheduler import Budget, Scheduler, Slice
from llmws.engine_api import GenerationRequest, ModelInfo
from llmws.errors import LlmwsError

log = logging.getLogger(__name__)

BUDGETS: Final = {"cpu": Budget(alone=128, beside=64), "cuda": Budget(alone=2048, beside=512)}
"""Tokens of a step: a prompt alone keeps the device busy with few enough that a cancel waits briefly; beside streams
that decode, few enough that their tokens come no more than twice as slowly."""


class FastRunner:
    """A loaded model; see `Runner`.

    Args:
        network: a transformers causal language model that `selfcheck.adopt` has prepared.
        tokenizer: of the model.
        info: what it promises.
        eos_ids: end a completion.
        layout: of its pages.
        workspace_bytes: that a step needs beside weights and pages.
        held_bytes: of the weights.
        recorder: of decode steps; by default of CUDA graphs on CUDA. Another one counts from the next `open_pool` on.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        *,
        info: ModelInfo,
        eos_ids: frozenset[int],
        layout: Layout,
        workspace_bytes: int,
        held_bytes: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.info = info
        self.eos_ids = eos_ids
        self.held_bytes = held_bytes
        self.pool_bytes = 0
        self._network = network
        self._tokenizer = tokenizer
        self._layout = layout
        self._budget = step_budget(network.device, info.max_running)
        self._workspace_bytes = workspace_bytes
        self._page_bytes = layout.page_bytes(network.dtype.itemsize)
        self._pages_of_one = layout.pages(info.max_context, step_tokens=step_tokens(self._budget))
        self.need_bytes = (self._pages_of_one + 1) * self._page_bytes + workspace_bytes
        self._vocabulary = vocabulary(network)
        self._sampler = BatchSampler(self._vocabulary, network.device)
        self._untold: dict[str, int] = {}  # prompt tokens of the streams whose first token did not come yet
        self._pool: Pool | None = None
        self._scheduler: Scheduler | None = None
        self.recorder = recorder
        self._graphs: DecodeGraphs | None = None

    @property
    def preemptions(self) -> int:
        """How often a stream gave its pages to an older one, since the pool was opened."""
        return self._scheduler.preemptions if self._scheduler is not None else 0

    def decode(self, ids: Sequence[int]) -> str:
        """See `Runner.decode`."""
        return decoded(self._tokenizer, ids)

    def open_pool(self, budget_bytes: int) -> None:
        """See `Runner.open_pool`."""
        assert self._pool is None
        assert budget_bytes >= self.need_bytes
        pages = (budget_bytes - self._workspace_bytes) // self._page_bytes - 1
        pages = min(pages, self._pages_of_one * self.info.max_running)
        with own_errors():
            pool = Pool(
                self._layout,
                pages=pages,
                dtype=self._network.dtype,
                device=self._network.device,
                has_decode_kernel=None if self.recorder is None else True,
            )
            self._graphs = self._decode_graphs(pool) if pool.has_decode_kernel else None
        self._pool = pool
        self._scheduler = Scheduler(self._layout, pages=pages, budget=self._budget, max_running=self.info.max_running)
        self.pool_bytes = pool.nbytes + self._workspace_bytes

    def close_pool(self) -> None:
        """See `Runner.close_pool`."""
        self._pool = self._scheduler = self._graphs = None
        self.pool_bytes = 0
        give_back()

    def has_room(self, request: GenerationRequest) -> bool:
        """See `Runner.has_room`."""
        assert self._scheduler is not None
        return self._scheduler.has_room(len(request.prompt_ids) + len(request.emitted_ids))

    def start(self, request: GenerationRequest) -> None:
        """See `Runner.start`."""
        assert self._scheduler is not None
        check_request(request, self.info, self._vocabulary)
        prompt, emitted = request.prompt_ids, request.emitted_ids
        self._scheduler.add(
            request.key,
            (*prompt, *emitted),
            owner=request.owner,
            max_tokens=len(prompt) + request.max_new_tokens,
            # A stream that is continued takes the same forwards as one that was not, as far as it can: the prompt in
            # the same parts, and the last id alone. Other sums of the same numbers would differ in their last bits.
            computed_apart=(len(prompt), len(prompt) + len(emitted) - 1) if emitted else (),
        )
        try:
            with own_errors():
                self._sampler.add(request.key, request.sampling, prompt_ids=prompt, emitted_ids=emitted)
        except LlmwsError:
            self._scheduler.free(request.key)
            raise
        self._untold[request.key] = len(prompt)

    def step(self, keys: Sequence[str]) -> Mapping[str, Token | LlmwsError]:  # noqa: ARG002 - all that were started
        """See `Runner.step`."""
        assert self._scheduler is not None
        slices = self._scheduler.plan()
        if not slices:
            return {}
        outcomes = {key: self._told(key, outcome) for key, outcome in self._outcomes(slices).items()}
        for key, outcome in outcomes.items():
            if isinstance(outcome, LlmwsError):
                self.free(key)
        self._scheduler.commit({key: token.id for key, token in outcomes.items() if isinstance(token, Token)})
        return outcomes

    def free(self, key: str) -> None:
        """See `Runner.free`."""
        if self._scheduler is not None:
            self._scheduler.free(key)
        self._sampler.remove(key)
        self._untold.pop(key, None)

    def close(self) -> None:
        """See `Runner.close`."""
        del self._network, self._sampler
        self.close_pool()

    def _outcomes(self, slices: Sequence[Slice]) -> dict[str, Token | LlmwsError]:
        """What one forward gives the streams that sample; where it fails, one of each stream's own."""
        try:
            return self._compute(slices)
        except LlmwsError as error:
            self._wait()
            if len(slices) == 1:
                # What is kept of it must not hold the memory of the step that failed.
                error.__context__ = None
                return {slices[0].key: error.with_traceback(None)}
            log.warning("a step of %d streams failed (%s); each is tried alone", len(slices), str(error))
        # Out here the error is gone, and with it what its frames held.
        return {key: outcome for each in slices for key, outcome in self._outcomes([each]).items()}

    def _wait(self) -> None:
        """Until the copies that a step began are done: what they read is filled in again for the next one."""
        if self._network.device.type == "cuda":
            with own_errors():
                torch.cuda.synchronize(self._network.device)

    def _compute(self, slices: Sequence[Slice]) -> dict[str, Token | LlmwsError]:
        keys = [each.key for each in slices if each.samples]
        with own_errors():
            logits = self._forward(slices)
            return dict(zip(keys, self._sampler.choose(keys, logits), strict=True)) if keys else {}

    @torch.inference_mode()
    def _forward(self, slices: Sequence[Slice]) -> torch.Tensor:
        """Logits of the streams that sample: [streams, vocabulary]."""
        assert self._pool is not None
        if self._graphs is not None and all(each.samples and len(each.ids) == 1 for each in slices):
            return self._graphs.step(
                [each.ids[0] for each in slices],
                [each.start + 1 for each in slices],
                [each.tables for each in slices],
            )
        return forward(self._network, self._pool.pack(slices))

    def _decode_graphs(self, pool: Pool) -> DecodeGraphs:
        """Ready for the largest batch."""
        graphs = DecodeGraphs(
            functools.partial(decode, self._network, pool),
            recorder=self.recorder or CudaGraphs(pool.device),
            max_streams=self.info.max_running,
            max_pages=-(-self.info.max_context // self._layout.page_tokens),
            groups=len(self._layout.windows),
            device=pool.device,
        )
        graphs.prepare()
        return graphs

    def _told(self, key: str, outcome: Token | LlmwsError) -> Token | LlmwsError:
        """A stream's first token tells how much of its prompt came from the cache."""
        if key not in self._untold or isinstance(outcome, LlmwsError):
            return outcome
        assert self._scheduler is not None
        # What a stream that is continued had said may be found too.
        cached = min(self._scheduler.cached_tokens(key), self._untold.pop(key))
        return Token(outcome.id, outcome.logprob, cached_tokens=cached)


def decode(network: Network, pool: Pool, streams: DecodeBatch) -> torch.Tensor:
    """One forward of a prepared model over one token of each stream, from tensors alone, so that it can be recorded.

    Returns:
        logits: [streams, vocabulary].
    """
    size = pool.layout.page_tokens
    positions = streams.positions()
    batch = Batch(
        ids=streams.ids.long()[None],
        positions=positions[None],
        sampling=torch.arange(len(positions), device=pool.device),
        groups=tuple(
            GroupBatch(window, streams.slots(group, size), (), Decodes(streams.tables[group], streams.lengths))
            for group, window in enumerate(pool.layout.windows)
        ),
        pool=pool,
    )
    outputs = network(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, paged=batch, return_dict=True)
    logits: torch.Tensor = outputs["logits"][0]
    return logits


def forward(network: Network, batch: Batch) -> torch.Tensor:
    """One forward of a prepared model over a step.

    Returns:
        logits of the slices that sample, in their order: [streams, vocabulary].
    """
    # At least one row is asked for: not every matrix product takes none.
    rows = batch.sampling if len(batch.sampling) else torch.zeros_like(batch.ids[0, :1])
    narrow = "logits_to_keep" in forward_parameters(type(network))
    outputs = network(
        input_ids=batch.ids,
        position_ids=batch.positions,
        use_cache=False,
        paged=batch,
        return_dict=True,
        **({"logits_to_keep": rows} if narrow else {}),
    )
    logits: torch.Tensor = outputs["logits"][0]
    return (logits if narrow else logits[rows])[: len(batch.sampling)]


@functools.cache
def step_budget(device: torch.device, max_running: int) -> Budget:
    """Tokens of a step, with room for every stream and a part of a prompt."""
    usual = BUDGETS[device.type]
    beside = max(usual.beside, max_running + max_running // 8 + 1)
    return Budget(alone=max(usual.alone, beside), beside=beside)


def step_tokens(budget: Budget) -> int:
    """The most that a step takes."""
    return max(budget.alone, budget.beside)
