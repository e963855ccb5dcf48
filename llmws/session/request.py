"""One accepted request, from the queue to its terminal event.

Invariant: `ids` and `text` are exactly what the session's token events say, in this process and before.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from llmws.engine_api import GenerationRequest, ImageInput, ModelInfo
from llmws.protocol import messages as m
from llmws.session.records import PromptBody

MAX_RESUMES = 3
"""A request that was resumed so often without a new token is ended: it probably kills the process."""

State = Literal["queued", "rendering", "running", "paused"]


class Request:
    """A request that has no terminal event yet. Times are of the hub's monotonic clock; `_unix_s` of the wall's."""

    def __init__(
        self,
        *,
        message: m.Inference,
        request_id: str,
        digest: bytes,
        sampling: m.Sampling,
        accepted_s: float,
        accepted_unix_s: float,
    ) -> None:
        self.message = message
        self.id = request_id
        self.digest = digest
        self.sampling = sampling
        self.accepted_s = accepted_s
        self.accepted_unix_s = accepted_unix_s
        self.record_n = 0
        self.state: State = "queued"
        self.key = ""
        self.prompt: PromptBody | None = None
        self.start_seq = 0
        self.ids: list[int] = []
        self.cached_tokens = 0
        self.fruitless_resumes = 0
        self.told_position = 0
        self.told_s = accepted_s
        self.first_submit_s: float | None = None
        self.first_token_s: float | None = None
        self._first_index = 0
        self._run_since_s: float | None = None
        self._ran_s = 0.0
        self._parts: list[str] = []

    @property
    def is_started(self) -> bool:
        """Whether its `start` is in the log."""
        return self.start_seq > 0

    @property
    def uses_conversation(self) -> bool:
        """Whether the session's conversation is its context and takes its turn; also that of an answer once more."""
        return self.message.messages is None and self.message.input_ids is None

    @property
    def model(self) -> str | None:
        """The model it must run on; None: whichever is the default when its turn comes."""
        return self.prompt.model if self.prompt else self.message.model

    @property
    def text(self) -> str:
        """The completion so far."""
        return "".join(self._parts)

    def add(self, ids: tuple[int, ...] | list[int], text: str, *, now_s: float) -> None:
        """Takes what a token event brings."""
        self.ids.extend(ids)
        if text:
            self._parts.append(text)
        if ids and self.first_token_s is None:
            self.first_token_s = now_s
        self.fruitless_resumes = 0

    def submitted(self, *, now_s: float) -> None:
        """Goes to the engine."""
        self.state = "running"
        self._run_since_s = now_s
        if self.first_submit_s is None:
            self.first_submit_s = now_s
            self.first_token_s = None
            self._first_index = len(self.ids)

    def paused(self, *, now_s: float) -> None:
        """Has left the engine for a while."""
        self._ran_s = self.ran_s(now_s)
        self._run_since_s = None
        self.state = "paused"

    def ran_s(self, now_s: float) -> float:
        """How long the engine has worked on it in this process."""
        return self._ran_s + (now_s - self._run_since_s if self._run_since_s is not None else 0.0)

    def generation(self, info: ModelInfo, *, owner: str, images: tuple[ImageInput, ...] = ()) -> GenerationRequest:
        """What the engine needs to produce the rest. The prompt must be known, and fit with what was emitted.

        Args:
            info: the model to go on with; the answer is not longer than it has room for now.
            owner: the session's, the same after a restart.
            images: that the prompt has places for.
        """
        assert self.prompt is not None
        return GenerationRequest(
            key=self.key,
            model=info.ref,
            owner=owner,
            prompt_ids=tuple(self.prompt.ids),
            images=images,
            emitted_ids=tuple(self.ids),
            emitted_text=self.text,
            sampling=self.sampling,
            max_new_tokens=min(self.prompt.max_tokens, info.max_context - len(self.prompt.ids)),
        )

    def is_exact_on(self, info: ModelInfo) -> bool:
        """Whether this model continues with just what would have come. Source: protocol, `resumed_after_restart`."""
        assert self.prompt is not None
        then = (self.prompt.engine, self.prompt.device, self.prompt.dtype, self.prompt.tokenizer_digest)
        return then == (info.engine, info.device, info.dtype, info.tokenizer_digest) and info.dtype == "float32"

    def done(self, finish_reason: m.FinishReason, *, now_s: float) -> m.Done:
        """The terminal event."""
        return m.Done(
            request_id=self.id,
            total_tokens=len(self.ids),
            finish_reason=finish_reason,
            usage=m.Usage(
                prompt_tokens=len(self.prompt.ids) if self.prompt else 0,
                completion_tokens=len(self.ids),
                cached_tokens=self.cached_tokens,
            ),
            timing=self._timing(now_s),
            text_sha256=hashlib.sha256(self.text.encode()).hexdigest(),
        )

    def _timing(self, now_s: float) -> m.Timing:
        ttft_ms = tokens_per_s = None
        until_s = self.first_submit_s if self.first_submit_s is not None else now_s
        if self.first_token_s is not None and self.first_submit_s is not None:
            ttft_ms = round((self.first_token_s - self.accepted_s) * 1e3, 1)
            seconds = self.ran_s(now_s)
            tokens_per_s = round((len(self.ids) - self._first_index) / seconds, 1) if seconds > 0 else None
        return m.Timing(
            queued_ms=round((until_s - self.accepted_s) * 1e3, 1), ttft_ms=ttft_ms, tokens_per_s=tokens_per_s
        )


def resolve(*layers: m.Sampling | None, seed: int) -> m.Sampling:
    """One complete set of sampling parameters, the first layer that sets a field winning; `stop` becomes a list.

    Args:
        layers: request, session, server defaults.
        seed: for when none of them has one.
    """
    merged = merge(*layers)
    stop = [merged.stop] if isinstance(merged.stop, str) else list(merged.stop or ())
    return msgspec.structs.replace(merged, seed=merged.seed if merged.seed is not None else seed, stop=stop)


def merge(*layers: m.Sampling | None) -> m.Sampling:
    """The layers as one, the first that sets a field winning."""
    merged: dict[str, object] = {}
    for layer in reversed(layers):
        if layer is not None:
            merged |= {key: value for key, value in msgspec.structs.asdict(layer).items() if value is not None}
    return msgspec.convert(merged, m.Sampling)
