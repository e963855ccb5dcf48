"""Runners of tiny models, driven by hand: what the engine's thread does, without the thread."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.fast import FastRunner
from llmws.engine.loading import TransformersLoader
from llmws.engine.runner import Runner, Token
from llmws.engine_api import GenerationRequest, ModelRef
from llmws.errors import LlmwsError
from llmws.protocol.messages import Sampling

GREEDY = Sampling(do_sample=False, ignore_eos=True)


def load(model: ModelRef, *, streams: int = 8, tier: str = "auto", max_context: int = 0) -> Runner:
    """The model's runner, its pool closed."""
    limits = LimitsSection(max_running=streams, max_context=max_context)
    loader = TransformersLoader(OptimizationSection(device="cpu", tier=tier), limits)
    return loader.load(model, loader.claim(model), progress=lambda _read, _total: None)


def open_pool(runner: Runner, *, contexts: int = 8) -> None:
    """Memory for that many streams of the longest context, whatever is in it before being forgotten."""
    if runner.pool_bytes:
        runner.close_pool()
    runner.open_pool(contexts * runner.need_bytes)


def request(key: str, prompt: Iterable[int], *, length: int, **changes: object) -> GenerationRequest:
    fields = {"sampling": GREEDY, "owner": "alice"} | changes
    return GenerationRequest(key=key, prompt_ids=tuple(prompt), max_new_tokens=length, **fields)


@dataclass
class Answers:
    """What streams said until each had all its tokens, or failed."""

    ids: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, LlmwsError] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)


def answer(runner: Runner, *requests: GenerationRequest) -> Answers:
    """Starts each as soon as there is room, in order, and steps until all have ended."""
    answers = Answers()
    waiting = list(requests)
    left: dict[str, int] = {}
    while waiting or left:
        while waiting and len(left) < runner.info.max_running and (not left or runner.has_room(waiting[0])):
            first = waiting.pop(0)
            left[first.key] = first.max_new_tokens - len(first.emitted_ids)
            answers.ids[first.key] = []
            runner.start(first)
        for key, outcome in runner.step(list(left)).items():
            if isinstance(outcome, Token):
                if not answers.ids[key]:
                    answers.cached[key] = outcome.cached_tokens
                answers.ids[key].append(outcome.id)
                left[key] -= 1
            else:
                answers.errors[key] = outcome
                left[key] = 0
            if not left[key]:
                runner.free(key)
                del left[key]
    return answers


def preemptions(runner: Runner) -> int:
    """Streams that gave way so far, in the fast tier."""
    assert isinstance(runner, FastRunner)
    return runner.preemptions
