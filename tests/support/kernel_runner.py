"""Streams of a tiny model in the fast tier, with or without the kernel that reads pages where they lie."""

from __future__ import annotations

from llmws.engine import selfcheck
from llmws.engine.fast import FastRunner
from llmws.engine.graphs import Eager
from llmws.engine.layout import layout
from llmws.engine.measure import whole_config
from llmws.engine.runner import Token
from llmws.engine.scripted import model_info
from llmws.engine_api import GenerationRequest, ModelRef
from llmws.protocol.messages import Sampling
from tests.integration.engine import tiny_models

MAX_CONTEXT = 64
_MODEL = ModelRef(name="tiny", path="models/tiny", location="", size_bytes=1, source="models")


def answers(name: str, *, prompts: tuple[int, ...], tokens: int, with_kernel: bool) -> list[list[int]]:
    """Greedy answers, as ids, to prompts of these lengths, one of which comes at each step."""
    network = tiny_models.network(name)
    config = whole_config(network.config)
    assert selfcheck.adopt(network, config) is None
    runner = FastRunner(
        network,
        tiny_models.tokenizer(),
        info=model_info(_MODEL, max_context=MAX_CONTEXT, max_running=len(prompts)),
        eos_ids=frozenset(),
        layout=layout(config),
        workspace_bytes=0,
        held_bytes=0,
        recorder=Eager() if with_kernel else None,
    )
    runner.open_pool(2 * len(prompts) * runner.need_bytes)
    said: dict[str, list[int]] = {}
    while any(len(ids) < tokens for ids in said.values()) or len(said) < len(prompts):
        if len(said) < len(prompts):
            key = str(len(said))
            ids = tuple((7919 * i + 13 * len(said)) % tiny_models.VOCABULARY for i in range(prompts[len(said)]))
            greedy = Sampling(do_sample=False, seed=0)
            runner.start(GenerationRequest(key=key, prompt_ids=ids, sampling=greedy, max_new_tokens=tokens))
            said[key] = []
        for key, token in runner.step(list(said)).items():
            assert isinstance(token, Token), token
            said[key].append(token.id)
            if len(said[key]) == tokens:
                runner.free(key)
    runner.close()
    return list(said.values())
