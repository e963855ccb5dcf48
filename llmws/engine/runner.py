"""What the worker needs of a loaded model, and of whatever loads one.

Knows no implementation and imports no torch: a scripted runner in a test, the fallback tier and a batched tier look the
same from the worker. Invariant: only the worker's thread calls these methods, so none of them needs a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from llmws.engine.residency import Claim
from llmws.engine_api import GenerationRequest, ModelInfo, ModelRef
from llmws.errors import LlmwsError
from llmws.protocol.messages import TokenLogprob

Progress = Callable[[int, int], None]
"""Called with (bytes read, total bytes). May raise `StoppedError`, and may step other runners."""


class Fingerprint(NamedTuple):
    """What a model's folder holds: `digest` and `tokenizer_digest` of a `ModelInfo`."""

    digest: str
    tokenizer_digest: str


class Token(msgspec.Struct, frozen=True):
    """A sampled token.

    Attributes:
        logprob: log-probabilities where they were asked for.
        cached_tokens: prompt tokens that came from a cache; told with a stream's first token.
        is_last: whether the model's context is full.
    """

    id: int
    logprob: TokenLogprob | None = None
    cached_tokens: int = 0
    is_last: bool = False


class StoppedError(Exception):
    """Leaves a load that nobody waits for any more."""


class DeviceLostError(Exception):
    """The device can do nothing more in this process; every stream on it must be continued by another one."""


class Runner(Protocol):
    """One loaded model and the streams on it.

    Attributes:
        info: what it promises.
        eos_ids: end a completion.
        held_bytes: device memory of the weights; `close` gives it back.
        need_bytes: memory beside the weights that a single stream of `info.max_context` tokens takes, workspace
            included.
        pool_bytes: memory set aside for streams now; 0 while the pool is closed.
    """

    info: ModelInfo
    eos_ids: frozenset[int]
    held_bytes: int
    need_bytes: int
    pool_bytes: int

    def decode(self, ids: Sequence[int]) -> str:
        """See `text.Decode`."""

    def open_pool(self, budget_bytes: int) -> None:
        """Sets memory aside for streams. Needed before the first `start`; called on a closed pool only.

        Args:
            budget_bytes: no more than these, which are at least `need_bytes`.

        Raises:
            ModelOutOfMemoryError: the device has not got them after all; the pool stays closed.
        """

    def close_pool(self) -> None:
        """Gives that memory back, and what is cached in it. No stream may be on."""

    def has_room(self, request: GenerationRequest) -> bool:
        """Whether the request's whole context fits into memory beside the streams that are on.

        Where it says no it says yes later: alone, any request that `start` takes has room.
        """

    def start(self, request: GenerationRequest) -> None:
        """Takes on a stream and reserves its memory. The work is left to `step`.

        Raises:
            LlmwsError: this model cannot serve the request; nothing is kept of it.
        """

    def step(self, keys: Sequence[str]) -> Mapping[str, Token | LlmwsError]:
        """One step of bounded work for each of these streams: a part of its prompt, or one token.

        Returns:
            the token that a stream got, or why the stream, and only that one, cannot go on. Nothing for a stream that
            is still in its prompt.

        Raises:
            DeviceLostError: see there.
        """

    def free(self, key: str) -> None:
        """Forgets a stream and gives its memory back. Unknown keys are ignored."""

    def close(self) -> None:
        """Unloads the model. The runner cannot be used any more."""


class Loader(Protocol):
    """Makes runners out of folders."""

    def fingerprint(self, model: ModelRef) -> Fingerprint:
        """What the folder holds now, in milliseconds.

        Raises:
            LlmwsError: it holds no model.
        """

    def claim(self, model: ModelRef) -> Claim:
        """What the model will take of its devices, as far as its files tell: without reading its weights.

        Where they do not tell, it claims everything. What its devices have in all is their `budget_bytes`, however
        much of it is taken now.

        Raises:
            LlmwsError: it never fits, or the folder cannot be served anyway: no model needs to make room for it.
        """

    def load(self, model: ModelRef, claim: Claim, *, progress: Progress) -> Runner:
        """Loads a model; its pool is closed. It promises what it would alone, and what it promised before.

        Args:
            model: where it lies.
            claim: on what devices, and what it may take there.
            progress: is told of the bytes read, often enough that other models' streams can be stepped there.

        Raises:
            LlmwsError: it cannot be served, and why.
        """
