"""A runner without a model: every stream says the alphabet, one letter a step, and faults can be planted in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from llmws.engine.residency import Claim
from llmws.engine.runner import Fingerprint, Progress, Token
from llmws.engine.scripted import model_info
from llmws.engine_api import GenerationRequest, ModelInfo, ModelRef
from llmws.errors import BadRequestError, LlmwsError, ModelInvalidError, ModelOutOfMemoryError

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
EOS = 0
HELD_BYTES = 1000
NEED_BYTES = 100


class AlphabetRunner:
    """A `Runner`. Letter n has id n + 1; `z` is followed by the end.

    Attributes:
        faults: what the next step of a stream gives instead of a letter, by key.
        broken: raised by the next step as a whole.
        room: streams that memory holds.
        steps: keys of every step that was taken.
        useful_bytes: that a pool takes at most.
        on_step: called before each.
        is_out_of_memory: whether no pool can be opened.
    """

    def __init__(self, model: ModelRef, *, max_running: int = 2) -> None:
        self.info = model_info(model, max_context=64, max_running=max_running)
        self.eos_ids = frozenset({EOS})
        self.held_bytes = HELD_BYTES
        self.need_bytes = NEED_BYTES
        self.pool_bytes = 0
        self.room = 1000
        self.faults: dict[str, LlmwsError] = {}
        self.broken: Exception | None = None
        self.steps: list[list[str]] = []
        self.useful_bytes = max_running * NEED_BYTES
        self.on_step: Callable[[], None] = lambda: None
        self.is_out_of_memory = False
        self.streams: dict[str, int] = {}
        self.closed = False

    def decode(self, ids: Sequence[int]) -> str:
        if 99 in ids:
            raise ValueError("no such token")
        return "".join(ALPHABET[i - 1] for i in ids if i)

    def open_pool(self, budget_bytes: int) -> None:
        assert self.need_bytes <= budget_bytes
        assert not self.pool_bytes
        if self.is_out_of_memory:
            raise ModelOutOfMemoryError("there is not enough memory")
        self.pool_bytes = min(budget_bytes, self.useful_bytes)

    def close_pool(self) -> None:
        assert not self.streams
        self.pool_bytes = 0

    def has_room(self, request: GenerationRequest) -> bool:
        return len(self.streams) < self.room

    def start(self, request: GenerationRequest) -> None:
        if len(request.prompt_ids) + request.max_new_tokens > self.info.max_context:
            raise BadRequestError("too long")
        self.streams[request.key] = len(request.emitted_ids)

    def step(self, keys: Sequence[str]) -> Mapping[str, Token | LlmwsError]:
        assert set(keys) <= set(self.streams)
        self.on_step()
        self.steps.append(list(keys))
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        outcomes: dict[str, Token | LlmwsError] = {}
        for key in keys:
            count = self.streams[key]
            self.streams[key] += 1
            outcomes[key] = self.faults.get(key) or Token(count + 1 if count < len(ALPHABET) else EOS)
        return outcomes

    def free(self, key: str) -> None:
        self.streams.pop(key, None)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class AlphabetLoader:
    """A `Loader`. Folders whose name begins with `bad` cannot be loaded.

    Attributes:
        budget_bytes: of the device; a model takes 1000 and another 100 for its streams.
        broken: folders that cannot be loaded any more.
        hopeless: folders of which that is seen before anything makes room for them.
        changed: folders that hold something else by now than what they would be loaded with at first.
        looks: how often a folder's fingerprint was asked for.
        told: what a model is said to take before it is read.
        runners: every one that was made.
    """

    def __init__(self, *, max_running: int = 2) -> None:
        self.max_running = max_running
        self.budget_bytes = 10_000
        self.broken: set[str] = set()
        self.hopeless: set[str] = set()
        self.changed: set[str] = set()
        self.looks = 0
        self.told = HELD_BYTES
        self.runners: list[AlphabetRunner] = []

    def fingerprint(self, model: ModelRef) -> Fingerprint:
        self.looks += 1
        info = self._info(model)
        return Fingerprint(info.digest, info.tokenizer_digest)

    def claim(self, model: ModelRef) -> Claim:
        if model.name in self.hopeless:
            raise ModelInvalidError("it never fits")
        return Claim(
            name=model.name,
            devices=("cpu",),
            budget_bytes=self.budget_bytes,
            held_bytes=self.told,
            need_bytes=NEED_BYTES,
        )

    def load(self, model: ModelRef, claim: Claim, *, progress: Progress) -> AlphabetRunner:
        progress(0, model.size_bytes)
        if model.name.startswith("bad") or model.name in self.broken:
            raise ModelInvalidError("it is bad")
        if model.name == "strange":
            raise RuntimeError("/secret/path is strange")
        progress(model.size_bytes, model.size_bytes)
        runner = AlphabetRunner(model, max_running=self.max_running)
        runner.info = self._info(model)
        self.runners.append(runner)
        return runner

    def _info(self, model: ModelRef) -> ModelInfo:
        info = model_info(model, max_context=64, max_running=self.max_running)
        return msgspec.structs.replace(info, digest="other") if model.name in self.changed else info
