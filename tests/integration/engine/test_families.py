"""Every kind of model says what `generate()` says, in the tier that it gets, however its streams are computed."""

from __future__ import annotations

import functools

import pytest
import torch

from llmws.engine_api import ModelRef
from tests.integration.engine import batches, tiny_models

LENGTH = 8
FALLBACK = {
    "bloom": "takes no other attention",
    "deepseek": "compresses keys and values",
    "mamba": "takes no other attention",
    "phi3": "rotary embedding (longrope)",
    "qwen3-next": "takes no other attention",
}
"""Kinds that the fast tier cannot serve, and why."""

FORGETFUL = ("mistral", "gemma3")
"""Kinds all of whose layers slide: their streams do not grow, and so never have to give way."""

FAMILIES = (
    "llama",  # dense, grouped queries
    "qwen3",  # normed queries and keys
    "qwen3-moe",  # mixture of experts
    "mistral",  # sliding window everywhere
    "gemma2",  # softcap, every other layer sliding
    "gemma3",  # two rotary tables
    "gpt-oss",  # sinks, experts, every other layer sliding
    "cohere2",  # layers without positions, more sliding than full ones
    "phi",  # partial rotary, parallel blocks
    "gpt2",  # learned positions
    "opt",  # learned positions, made from a mask elsewhere
    *FALLBACK,  # ALiBi, latent attention, state space, rotary by length, linear attention
)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(3 + (37 * i + 11 * seed) % 300 for i in range(length))


PROMPTS = [prompt(3 + 19 * n, n) for n in range(8)]
"""Shorter and longer than a page, a window, a chunk beside others, and a chunk."""


@functools.cache
def generated(name: str, ids: tuple[int, ...], length: int = LENGTH) -> list[int]:
    """What transformers itself makes of the prompt."""
    network = tiny_models.network(name)
    network.generation_config.eos_token_id = None
    answer = network.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=length)
    return answer[0, len(ids) :].tolist()


def differs(name: str, ids: tuple[int, ...], found: list[int]) -> str | None:
    """How an answer is not `generate()`'s; None where it is, up to tokens that are equally likely but for rounding."""
    wanted = generated(name, ids, len(found))
    at = next((i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other), None)
    if at is None:
        return None
    before = (*ids, *wanted[:at])
    with torch.inference_mode():
        logits = tiny_models.network(name)(torch.tensor([before])).logits[0, -1]
    if abs(logits[found[at]] - logits[wanted[at]]) > 1e-3:
        return f"{found} is not {wanted}"
    return differs(name, (*before, found[at]), found[at + 1 :])


def all_differences(name: str, prompts: list[tuple[int, ...]], answers: dict[str, list[int]]) -> list[str]:
    found = [differs(name, ids, answers[str(n)]) for n, ids in enumerate(prompts)]
    return [each for each in found if each is not None]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, folder_of) -> ModelRef:
    return folder_of(request.param)


@pytest.fixture(scope="module")
def runner(model):
    loaded = batches.load(model)
    yield loaded
    loaded.close()


@pytest.fixture
def roomy(runner):
    batches.open_pool(runner)
    return runner


def requests(length: int = LENGTH, **changes):
    return [batches.request(str(n), ids, length=length, **changes) for n, ids in enumerate(PROMPTS)]


def test_its_tier_is_that_of_what_it_can_do(runner, model):
    if model.name in FALLBACK:
        assert runner.info.tier == "fallback"
        assert FALLBACK[model.name] in runner.info.tier_reason
    else:
        assert runner.info.tier == "fast"


def test_alone(roomy, model):
    """One after the other; the longest prompt is longer than a chunk."""
    alone = {each.key: batches.answer(roomy, each).ids[each.key] for each in requests()}

    assert all_differences(model.name, PROMPTS, alone) == []
    assert len(set(alone["7"])) > 2, "a constant answer would prove little"


def test_in_a_batch_of_eight(roomy, model):
    """The long prompts are read in parts between the tokens of the short ones."""
    assert all_differences(model.name, PROMPTS, batches.answer(roomy, *requests()).ids) == []


def test_from_what_the_turn_before_left(roomy, model):
    """The second turn's prompt is the first's with its answer; all but its last page is there already."""
    first = batches.answer(roomy, batches.request("first", PROMPTS[4], length=LENGTH)).ids["first"]
    turn = (*PROMPTS[4], *first, *prompt(9))
    second = batches.answer(roomy, batches.request("second", turn, length=LENGTH))
    other = batches.answer(roomy, batches.request("other", turn, length=LENGTH, owner="bob"))

    assert differs(model.name, turn, second.ids["second"]) is None
    assert differs(model.name, turn, other.ids["other"]) is None
    # What the answer's last token would have left was never computed.
    whole_pages = (len(PROMPTS[4]) + LENGTH - 1) // 16 * 16
    assert second.cached["second"] == (whole_pages if roomy.info.tier == "fast" else 0)
    assert other.cached["other"] == 0


def test_after_a_restart(runner, model):
    """Every stream goes on from a few of its tokens, in a pool that remembers nothing."""
    batches.open_pool(runner)
    cuts = {str(n): generated(model.name, ids)[:n] for n, ids in enumerate(PROMPTS)}
    rests = [
        batches.request(str(n), ids, length=LENGTH, emitted_ids=tuple(cuts[str(n)])) for n, ids in enumerate(PROMPTS)
    ]
    answers = batches.answer(runner, *rests).ids

    assert all_differences(model.name, PROMPTS, {key: cuts[key] + ids for key, ids in answers.items()}) == []


@pytest.mark.parametrize("model", [name for name in FAMILIES if name not in (*FALLBACK, *FORGETFUL)], indirect=True)
def test_after_giving_way(model):
    """Six streams in the memory of the longest: the newer ones are computed again later."""
    runner = batches.load(model, max_context=64)
    batches.open_pool(runner, contexts=1)
    prompts = [prompt(10, n) for n in range(6)]
    answers = batches.answer(runner, *(batches.request(str(n), ids, length=50) for n, ids in enumerate(prompts)))

    assert all_differences(model.name, prompts, answers.ids) == []
    assert batches.preemptions(runner) > 0
