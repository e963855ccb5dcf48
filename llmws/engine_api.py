"""What an engine, a prompt renderer and a source of models are, and the frozen values they speak.

Knows no implementation. Invariant: every value here can be encoded by msgspec, so an engine may live in another
process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from llmws.protocol import ErrorCode
from llmws.protocol.messages import (
    DeviceSummary,
    EngineResources,
    FinishReason,
    ModelEntry,
    Resources,
    Role,
    Sampling,
    TokenLogprob,
)


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the values that cross between rooms."""


# --- models --------------------------------------------------------------------------------------------------------


class ModelRef(Value, frozen=True, kw_only=True):
    """A model on this machine, found by a scan.

    Attributes:
        name: the folder's name, unique over all models folders.
        path: for people and clients: `models/<name>` or `var/models/<name>`.
        location: the absolute folder.
        size_bytes: of all its files.
        source: `models` (downloaded) or `var` (the user's own).
    """

    name: str
    path: str
    location: str
    size_bytes: int
    source: str

    def to_entry(self, *, loaded: bool) -> ModelEntry:
        """The model as clients see it in lists."""
        return ModelEntry(
            name=self.name, path=self.path, size_mb=round(self.size_bytes / 1e6, 1), source=self.source, loaded=loaded
        )


class ModelInfo(Value, frozen=True, kw_only=True):
    """A loaded model.

    Attributes:
        digest: hex SHA-256 that names weights and configuration; a generation is continued only by the same one.
        tokenizer_digest: hex SHA-256 over tokenizer and chat template.
        engine: engine and sampler version, e.g. `fallback/2`; with device and dtype it decides whether a continuation
            is exact.
        device: `cpu` or e.g. `cuda:0`.
        dtype: e.g. `float32`.
        max_context: tokens that one request may hold, prompt and completion together. Promised for the life of the
            process, however often the model is loaded, unless other processes take the memory meanwhile.
        max_running: requests that the engine works on at once.
        vocab_size: ids that a prompt may hold are below this; 0 where it is not known.
        vision: whether images are taken.
        image_tokens: about as many as an image takes in the prompt; 0 where none is taken.
        flash_attention: whether flash attention is in use.
        tier: `fast`: batched over a paged cache; `fallback`: one stream at a time over transformers' own caches.
        tier_reason: for a person, why it is not the other one.
        attention: the implementation in use, e.g. `paged-sdpa`, `paged-triton`, `sdpa`, `eager`.
        compiled: whether torch.compile is in use.
    """

    ref: ModelRef
    digest: str
    tokenizer_digest: str
    engine: str
    device: str
    dtype: str
    max_context: int
    max_running: int
    vocab_size: int = 0
    vision: bool = False
    image_tokens: int = 0
    flash_attention: bool = False
    tier: str = "fallback"
    tier_reason: str = ""
    attention: str = ""
    compiled: bool = False


# --- generation ----------------------------------------------------------------------------------------------------


MAX_IMAGES = 16
"""In one prompt, of all its turns: decoded, they are in memory together."""


NO_IMAGES = "this model takes no images"
"""What a request with images is told, whoever notices first."""


class ImageInput(Value, frozen=True, kw_only=True):
    """An encoded image, as its author sent it; nothing of it is checked yet.

    Attributes:
        mime: one of the types that the protocol takes; what the bytes are is to be seen.
        data: the file's bytes.
        name: what its author knows it by.
    """

    mime: str
    data: bytes
    name: str = "the image"


class GenerationRequest(Value, frozen=True, kw_only=True):
    """Everything that producing, or continuing, one stream needs.

    Attributes:
        key: names this attempt; unique over the life of the process.
        model: whose stream this is; it is loaded if it is not there any more. None: the model that was loaded last, on
            demand or not; sessions' requests name theirs.
        owner: whose request it is: nobody profits from, or learns of, what is cached for somebody else.
        prompt_ids: the tokenised prompt, at least one id; every image is one placeholder id in it.
        images: of the prompt, in the order of their placeholders.
        emitted_ids: completion ids that are already in the log; never sampled again.
        emitted_text: the text that was sent for them; held-back text is `text(emitted_ids)` minus this.
        sampling: fully resolved: no field that the engine needs is None, `seed` included; `stop` is a list.
        max_new_tokens: completion tokens in all, emitted ones included; prompt + this <= max_context, an image
            counted as one: where it takes more than is left, the completion ends earlier.
    """

    key: str
    model: ModelRef | None = None
    owner: str = ""
    prompt_ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()
    emitted_ids: tuple[int, ...] = ()
    emitted_text: str = ""
    sampling: Sampling
    max_new_tokens: int


class Chunk(Value, frozen=True, kw_only=True, tag="chunk"):
    """What one request gained since its last chunk.

    Attributes:
        index: of the first of `ids` within the completion.
        ids: all newly sampled ids, EOS and stop-string ids included.
        text: newly safe text; never splits a UTF-8 character, never holds part of a stop string.
        logprobs: one an id when asked for.
        finish: set in the request's last chunk, unless `error_code` is.
        cached_tokens: prompt tokens that came from a cache (in the first chunk).
        error_code: the request failed; its last chunk.
        error_message: for a person; tells nothing internal.
    """

    key: str
    index: int
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: FinishReason | None = None
    cached_tokens: int = 0
    error_code: ErrorCode | None = None
    error_message: str = ""

    def merged(self, later: Chunk) -> Chunk:
        """This chunk and the request's next one as a single chunk."""
        assert self.key == later.key
        assert self.index + len(self.ids) == later.index
        logprobs = None if self.logprobs is None else (*self.logprobs, *(later.logprobs or ()))
        return msgspec.structs.replace(
            later,
            index=self.index,
            ids=self.ids + later.ids,
            text=self.text + later.text,
            logprobs=logprobs,
            cached_tokens=self.cached_tokens or later.cached_tokens,
        )


class ModelProgress(Value, frozen=True, kw_only=True, tag="model_progress"):
    """A load goes on: bytes of weights read so far."""

    name: str
    bytes: int
    total_bytes: int


class ModelLoaded(Value, frozen=True, kw_only=True, tag="model_loaded"):
    """A load succeeded, or the model was there already; requests that name no model run on it from now on."""

    info: ModelInfo


class ModelUnloaded(Value, frozen=True, kw_only=True, tag="model_unloaded"):
    """A model had to make room for another one. A request for it still works: it is loaded again."""

    name: str


class ModelFailed(Value, frozen=True, kw_only=True, tag="model_failed"):
    """A load failed; `kept` is the model that requests which name none go on with, None if there is none."""

    name: str
    code: ErrorCode
    message: str
    kept: ModelInfo | None


EngineEvent = Chunk | ModelProgress | ModelLoaded | ModelUnloaded | ModelFailed


class Engine(Protocol):
    """Produces streams. All calls return at once and may come from one other thread than the engine's own."""

    def start(self, notify: Callable[[], None]) -> None:
        """Starts working. `notify` is called from any thread whenever `take` has something new."""

    def load(self, model: ModelRef, *, again: bool = False) -> None:
        """Loads a model; ends in `ModelLoaded` or `ModelFailed`, after any `ModelProgress`.

        One that is there is loaded again only if its folder holds something else by now; its streams end first. One
        whose load failed fails at once, until its folder changes or somebody asks for it `again`.

        Models stay side by side while they fit. For one that does not, the one that has been idle the longest goes
        first, with a `ModelUnloaded`; while all are busy the load waits, and so does everything submitted after it.
        """

    def withdraw(self, name: str) -> None:
        """Takes back a load that has not begun; unknown names are ignored.

        A request that names the model still loads it.
        """

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request; ends in one chunk with `finish` or `error_code`, unless it is cancelled first."""

    def cancel(self, key: str) -> None:
        """Stops a request within one step; its chunks may still come until then. Unknown keys are ignored."""

    def take(self) -> list[EngineEvent]:
        """Takes everything that has come, oldest first, consecutive chunks of a request merged into one."""

    def load_state(self) -> EngineResources:
        """Requests and rate right now."""

    def close(self) -> None:
        """Stops after the running step, and waits a while for it. Unfinished requests just end."""


class MemoryProbe(Protocol):
    """Reads the compute device's memory."""

    def summary(self) -> DeviceSummary:
        """Name, total and free memory of the device (the host's on CPU)."""

    def resources(self, loaded: ModelInfo | None, models: Sequence[ModelEntry], load: EngineResources) -> Resources:
        """The whole `resources` message."""


class ModelSource(Protocol):
    """The models on this machine. Every method touches files and must not be called on the event loop."""

    def scan(self) -> list[ModelRef]:
        """All models that can be served, `models/` first, then by name."""

    def delete(self, name: str) -> None:
        """Deletes a model's folder.

        Raises:
            BadRequestError: the name is not a plain model name.
            ModelNotFoundError: there is no such model.
        """


# --- prompts -------------------------------------------------------------------------------------------------------


class Turn(Value, frozen=True, kw_only=True):
    """One message of the context, with so many images before its text."""

    role: Role
    content: str
    images: int = 0


class PromptJob(Value, frozen=True, kw_only=True):
    """Asks for the token ids of a context.

    Attributes:
        key: names the job; comes back in the answer.
        model: whose tokenizer and template to use.
        turns: the context, oldest first; or `input_ids`, taken as they are.
        droppable: whether the oldest whole turns may be dropped to make it fit (a session's own conversation).
        image_tokens: to count for an image: the ids that come back have one for each.
        max_context: tokens the model takes, prompt and completion together.
        reserve: completion tokens to leave room for when turns are dropped.
    """

    key: str
    model: ModelRef
    turns: tuple[Turn, ...] = ()
    input_ids: tuple[int, ...] | None = None
    droppable: bool = False
    image_tokens: int = 0
    max_context: int
    reserve: int


class PromptReady(Value, frozen=True, kw_only=True, tag="prompt_ready"):
    """The ids, and how many images the turns have that are left; `dropped_turns` were left out at the front.

    `len(ids) < max_context` always holds.
    """

    key: str
    ids: tuple[int, ...]
    images: int = 0
    dropped_turns: int = 0


class PromptFailed(Value, frozen=True, kw_only=True, tag="prompt_failed"):
    """The prompt cannot be served: `context_too_long`, or `model_failed` where template or tokenizer refuse it."""

    key: str
    code: ErrorCode
    message: str


PromptEvent = PromptReady | PromptFailed


class PromptRenderer(Protocol):
    """Turns contexts into token ids, away from the event loop, one job at a time, oldest first."""

    def start(self, deliver: Callable[[PromptEvent], None]) -> None:
        """Starts working. `deliver` is called from another thread, once a job."""

    def render(self, job: PromptJob) -> None:
        """Queues a job and returns at once."""

    def close(self) -> None:
        """Stops and waits."""
