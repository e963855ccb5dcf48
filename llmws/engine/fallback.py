"""Any causal language model of transformers as a `Runner`: one stream at a time over a cache of its own.

Slower than a batch, but right for every architecture: the calls that are made are those of `generate()`, and greedy
output equals its output. Invariant: a stream's error leaves every other stream as it was.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch
from tokenizers import Tokenizer

from llmws.engine.memory import Footprint
from llmws.engine.network import (
    Network,
    check_request,
    decoded,
    device_errors,
    forward_parameters,
    give_back,
    own_errors,
    vocabulary,
)
from llmws.engine.runner import DeviceLostError, Token
from llmws.engine.sampler import BatchSampler
from llmws.engine.vision import Sight, Vision
from llmws.engine_api import GenerationRequest, ModelInfo
from llmws.errors import LlmwsError, ModelInvalidError, PromptError
from llmws.protocol import ErrorCode

log = logging.getLogger(__name__)

PREFILL_TOKENS = {"cpu": 128, "cuda": 512}
"""Prompt tokens that a step takes: enough to keep the device busy, few enough that cancels and others wait briefly."""

_CACHES = ("past_key_values", "cache_params", "state")
"""Where models put what they remember; it goes in under the name it comes out. Source: `generate()`."""


class Increments(enum.Enum):
    """How a model can go on from its cache."""

    CHUNKS = "chunks"
    """Any number of tokens at a time."""
    TOKENS = "tokens"
    """One token at a time, after a first forward over the whole prompt (scans that cannot start midway)."""
    NONE = "none"
    """Not at all: every token takes a forward over everything."""


class Context:
    """The ids of one stream, and what the model remembers of them.

    Args:
        model: a transformers causal language model.
        ids: known from the start.
        room: ids that may be appended.
        use_cache: whether the model remembers anything.
        sight: of a prompt with images, which the first forward must take whole.

    Attributes:
        caches: what the model remembers, by the name under which it goes in.
        length: ids so far.
        done: of these, what the model was fed.
    """

    def __init__(
        self,
        model: Network,
        ids: Sequence[int],
        *,
        room: int = 0,
        use_cache: bool = True,
        sight: Sight | None = None,
    ) -> None:
        self._model = model
        self._use_cache = use_cache
        self._ids = torch.empty((1, len(ids) + room), dtype=torch.int64, device=model.device)
        self._ids[0, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        self._positions = torch.arange(self._ids.shape[1], device=model.device)[None]
        self._sight = sight
        if sight is not None:
            prompt = sight.positions.shape[-1]
            after = sight.positions[..., -1:] + 1 + self._positions[:, : self._ids.shape[1] - prompt]
            self._positions = torch.cat([sight.positions, after], dim=-1)
        self._takes = forward_parameters(type(model))
        self.caches: dict[str, Any] = {}
        self.length = len(ids)
        self.done = 0

    @property
    def is_full(self) -> bool:
        """Whether no id may be appended any more."""
        return self.length == self._ids.shape[1]

    def append(self, token_id: int) -> None:
        """Adds an id."""
        self._ids[0, self.length] = token_id
        self.length += 1

    @torch.inference_mode()
    def forward(self, end: int) -> torch.Tensor:
        """Feeds the ids from `done` up to `end`; returns the logits after the last of them, float32 [vocabulary]."""
        start = self.done if self._use_cache else 0
        # Ids and positions are given from the start: some models begin anew when a context outgrows their rotary table.
        optional = {"position_ids": self._positions[..., :end], "logits_to_keep": 1}
        inputs = self._model.prepare_inputs_for_generation(
            self._ids[:, :end],
            next_sequence_length=end - start,
            is_first_iteration=start == 0,
            use_cache=self._use_cache,
            **self.caches,
            **(self._sight.inputs(end) if self._sight is not None and start == 0 else {}),
            **{name: value for name, value in optional.items() if name in self._takes},
        )
        outputs = self._model(**inputs, return_dict=True)
        if self._use_cache:
            self.caches = {name: outputs[name] for name in _CACHES if outputs.get(name) is not None}
            self._sight = None  # the model remembers what it saw; pixels take memory
        self.done = end
        logits: torch.Tensor = outputs["logits"][0, -1].float()
        return logits

    def cache_bytes(self) -> int:
        """Memory that the caches hold now."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self.caches)}
        return sum(storages.values())


def find_increments(model: Network, vocabulary: int) -> Increments:
    """Tries what the model can do, on a dozen tokens: the logits of one forward against those of several.

    Raises:
        ModelInvalidError: they are not even numbers.
        ModelOutOfMemoryError: not even these fit.
    """
    ids = [(7919 * i + 13) % vocabulary for i in range(12)]
    whole = Context(model, ids, use_cache=False).forward(len(ids))
    if not whole.max().isfinite():  # a NaN comes out on top
        raise ModelInvalidError("the model computes no usable logits")
    tolerance = _rounding(model)

    def agrees(*ends: int) -> bool:
        context = Context(model, ids)
        try:
            with device_errors("trying the model out"):
                for end in ends:
                    logits = context.forward(end)
        except (LlmwsError, DeviceLostError):
            raise
        except Exception:  # noqa: BLE001 - a model may refuse in any way; then it cannot do it
            return False
        return bool(context.caches) and alike(logits, whole, tolerance=tolerance)

    if agrees(5, 11, 12):
        return Increments.CHUNKS
    return Increments.TOKENS if agrees(11, 12) else Increments.NONE


def check_sight(model: Network, vision: Vision, increments: Increments) -> None:
    """Tries a model out on pictures: it must see them, and go on from them as it goes on from text.

    Raises:
        ModelInvalidError: it does not.
        Exception: whatever the model raises over them.
    """
    request, sight = vision.sample(upright=True)
    other_request, other_sight = vision.sample(upright=False)
    prompt = len(request.prompt_ids)
    ids = (*request.prompt_ids, *request.prompt_ids[-2:])
    whole = Context(model, ids, sight=sight, use_cache=False).forward(len(ids))
    other_ids = (*other_request.prompt_ids, *request.prompt_ids[-2:])
    if torch.equal(whole, Context(model, other_ids, sight=other_sight, use_cache=False).forward(len(other_ids))):
        raise ModelInvalidError("two different pictures are the same to it")
    if increments is Increments.NONE:
        return
    context = Context(model, ids, sight=sight)
    for end in (prompt, prompt + 1, prompt + 2):
        logits = context.forward(end)
    if not alike(logits, whole, tolerance=_rounding(model)):
        raise ModelInvalidError("it does not go on from a picture as it began")


class _Stream:
    """One request on its way through the model."""

    def __init__(
        self,
        model: Network,
        request: GenerationRequest,
        sight: Sight | None,
        *,
        chunk: int,
        increments: Increments,
    ) -> None:
        emitted = request.emitted_ids
        self._context = Context(
            model,
            (*request.prompt_ids, *emitted),
            room=request.max_new_tokens - len(emitted),
            use_cache=increments is not Increments.NONE,
            sight=sight,
        )
        self._chunk = chunk
        # Images are taken with all of their prompt: the model looks at them in its first forward alone.
        self._first = max(chunk, len(request.prompt_ids)) if sight is not None else chunk
        # A stream that is continued takes the same forwards as one that was not, as far as it can: the prompt in the
        # same parts, and the last id alone. Other sums of the same numbers would differ in their last bits.
        self._ends: tuple[int, ...] = ()
        if emitted and increments is not Increments.NONE:
            self._ends = (self._context.length - 1,)
        if emitted and increments is Increments.CHUNKS:
            self._ends = (len(request.prompt_ids), *self._ends)

    def step(self) -> torch.Tensor | None:
        """One forward over a part of the prompt, or the last id; returns the logits that follow all ids, if it did."""
        context = self._context
        end = min((end for end in self._ends if end > context.done), default=context.length)
        end = min(end, context.done + (self._chunk if context.done else self._first))
        logits = context.forward(end)
        return logits if end == context.length else None

    def append(self, token: Token) -> Token:
        """Adds what was chosen; returns it, as the last one if it is."""
        self._context.append(token.id)
        return msgspec.structs.replace(token, is_last=self._context.is_full)


class FallbackRunner:
    """A loaded model; see `Runner`.

    Args:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: of the model.
        info: what it promises.
        eos_ids: end a completion.
        footprint: of a stream.
        increments: how the model goes on from its cache.
        held_bytes: of the weights.
        vision: what turns images into the model's input, if it takes any.
    """

    def __init__(
        self,
        model: Network,
        tokenizer: Tokenizer,
        *,
        info: ModelInfo,
        eos_ids: frozenset[int],
        footprint: Footprint,
        increments: Increments,
        held_bytes: int,
        vision: Vision | None = None,
    ) -> None:
        self.info = info
        self.eos_ids = eos_ids
        self.held_bytes = held_bytes
        self.need_bytes = footprint.need_bytes(info.max_context)
        self.pool_bytes = 0
        self._model = model
        self._tokenizer = tokenizer
        self._footprint = footprint
        self._increments = increments
        # What a prompt with images takes at once, one without need not.
        is_chunked = increments is Increments.CHUNKS
        self._chunk = min(footprint.chunk, PREFILL_TOKENS[model.device.type]) if is_chunked else footprint.chunk
        self._vision = vision
        self._vocabulary = vocabulary(model)
        self._sampler = BatchSampler(self._vocabulary, model.device)
        self._streams: dict[str, _Stream] = {}
        self._workspace_bytes = footprint.workspace_bytes(info.max_context)
        self._reserved_bytes: dict[str, int] = {}

    def decode(self, ids: Sequence[int]) -> str:
        """See `Runner.decode`."""
        return decoded(self._tokenizer, ids)

    def open_pool(self, budget_bytes: int) -> None:
        """See `Runner.open_pool`. A reservation: each stream's cache takes its memory as it grows."""
        useful_bytes = self.info.max_running * self._footprint.cache_bytes(self.info.max_context)
        self.pool_bytes = min(budget_bytes, useful_bytes + self._workspace_bytes)

    def close_pool(self) -> None:
        """See `Runner.close_pool`."""
        self.pool_bytes = 0
        give_back()

    def has_room(self, request: GenerationRequest) -> bool:
        """See `Runner.has_room`."""
        reserved_bytes = sum(self._reserved_bytes.values()) + self._workspace_bytes
        return self._cache_bytes(request) + reserved_bytes <= self.pool_bytes

    def start(self, request: GenerationRequest) -> None:
        """See `Runner.start`."""
        sight = None
        if request.images and self._vision is not None:
            with own_errors():
                request, sight = self._vision.expand(request)
                request = _shortened(request, self.info)
        check_request(request, self.info, self._vocabulary)
        with own_errors():
            stream = _Stream(self._model, request, sight, chunk=self._chunk, increments=self._increments)
            self._sampler.add(
                request.key, request.sampling, prompt_ids=request.prompt_ids, emitted_ids=request.emitted_ids
            )
        self._streams[request.key] = stream
        self._reserved_bytes[request.key] = self._cache_bytes(request)

    def step(self, keys: Sequence[str]) -> Mapping[str, Token | LlmwsError]:
        """See `Runner.step`."""
        outcomes: dict[str, Token | LlmwsError] = {}
        for key in keys:
            try:
                with own_errors():
                    outcome = self._step(key)
            except LlmwsError as error:
                outcome = error
            if outcome is not None:
                outcomes[key] = outcome
        return outcomes

    def free(self, key: str) -> None:
        """See `Runner.free`."""
        self._streams.pop(key, None)
        self._sampler.remove(key)
        self._reserved_bytes.pop(key, None)

    def close(self) -> None:
        """See `Runner.close`."""
        self._streams.clear()
        self._reserved_bytes.clear()
        del self._model, self._sampler
        give_back()

    def _step(self, key: str) -> Token | LlmwsError | None:
        stream = self._streams[key]
        logits = stream.step()
        if logits is None:
            return None
        [outcome] = self._sampler.choose([key], logits[None])
        return stream.append(outcome) if isinstance(outcome, Token) else outcome

    def _cache_bytes(self, request: GenerationRequest) -> int:
        more = len(request.images) * self.info.image_tokens
        length = len(request.prompt_ids) + more + request.max_new_tokens
        return self._footprint.cache_bytes(min(length, self.info.max_context))


def _shortened(request: GenerationRequest, info: ModelInfo) -> GenerationRequest:
    """The request, for an answer no longer than images, as many tokens as they really take, leave room for.

    Raises:
        PromptError: they leave none.
    """
    length = len(request.prompt_ids)
    if length + len(request.emitted_ids) >= info.max_context:
        message = f"with its images the prompt has {length} tokens; the model's context is {info.max_context}"
        raise PromptError(ErrorCode.CONTEXT_TOO_LONG, f"{message}, of which one is for the answer")
    room = info.max_context - length
    return msgspec.structs.replace(request, max_new_tokens=min(request.max_new_tokens, room))


def _rounding(model: Network) -> float:
    """How far logits may differ: rounding stays far below this, a wrong state far above."""
    return 0.01 if model.dtype == torch.float32 else 0.1


def alike(one: torch.Tensor, other: torch.Tensor, *, tolerance: float) -> bool:
    """Whether logits differ by no more than rounding does. What all of them share, softmax does not see."""
    one, other = one - one.mean(), other - other.mean()
    return bool((one - other).norm() <= tolerance * other.norm())


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors inside a cache, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
