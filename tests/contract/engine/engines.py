"""The engines that the contract is run on, on a thread and in a child process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.local import LocalEngine
from llmws.engine.scripted import ScriptedEngine, Step
from llmws.engine.worker import Worker
from llmws.engine_api import Engine, GenerationRequest, ModelRef
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.support.listening import Listener
from tests.support.scripted_runner import AlphabetLoader

PROMPT = tuple(range(100, 110))
POISON = 77
"""A prompt with this token fails after it was accepted."""

LONG = 26
"""Tokens that every one of them can say."""

SEEDED = Sampling(do_sample=True, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)
GREEDY = Sampling(do_sample=False, seed=1, ignore_eos=True)


@dataclass(frozen=True)
class Kind:
    """An engine and how it is met: all that differs between them.

    Attributes:
        tier: that its models run on.
        sick: what makes a request fail, in fields of `GenerationRequest`.
    """

    make: Callable[[], Engine]
    tier: str = "fallback"
    sick: dict[str, Any] = field(default_factory=lambda: {"prompt_ids": (5, POISON)})


@dataclass
class Case:
    """An engine that runs, and what it can be asked."""

    ear: Listener
    kind: Kind
    model: ModelRef
    other: ModelRef
    broken: ModelRef

    @property
    def engine(self) -> Engine:
        return self.ear.engine

    def request(self, key: str, **changes: Any) -> GenerationRequest:
        fields = {"prompt_ids": PROMPT, "sampling": GREEDY, "max_new_tokens": 12}
        return GenerationRequest(key=key, **(fields | changes))

    def ask(self, key: str, **changes: Any) -> None:
        self.engine.submit(self.request(key, **changes))


def scripted() -> Engine:
    """Says the alphabet; fails after two letters when poisoned."""
    letters = [Step(((i, chr(96 + i)),)) for i in range(1, LONG + 1)]
    script = [*letters, Step(((0, ""),), finish="stop")]
    failing = [*letters[:2], Step(error=ErrorCode.MODEL_FAILED)]
    return ScriptedEngine(
        lambda request: failing if POISON in request.prompt_ids else script, broken={"bad": "it is bad"}, interval_s=0
    )


def worker() -> Engine:
    return Worker(AlphabetLoader)


def fast() -> Engine:
    return LocalEngine(OptimizationSection(device="cpu", threads=1), LimitsSection())


def fallback() -> Engine:
    return LocalEngine(OptimizationSection(device="cpu", threads=1, tier="fallback"), LimitsSection())


KINDS = {
    "scripted": Kind(scripted),
    # Id 99 cannot be decoded.
    "worker": Kind(worker, sick={"emitted_ids": (99,), "emitted_text": "?"}),
    "fast": Kind(fast, tier="fast"),
    "fallback": Kind(fallback),
}


def ref(name: str, location: Path = Path("/models")) -> ModelRef:
    return ModelRef(
        name=name, path=f"models/{name}", location=str(location / name), size_bytes=2_000_000, source="models"
    )


def save_poisoned(folder: Path) -> ModelRef:
    """A Llama of a few thousand random weights, in which one token is not a number."""
    from tests.integration.engine import tiny_models

    network = tiny_models.network("llama")
    network.get_input_embeddings().weight.data[POISON] = float("nan")
    network.save_pretrained(folder)
    tiny_models.tokenizer().save(str(folder / "tokenizer.json"))
    return ref(folder.name, folder.parent)
