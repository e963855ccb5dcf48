"""Streams of a tiny model in the fast tier, with or without the kernel that reads pages where they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmws.engine import selfcheck
from llmws.engine.fast import FastRunner, decode
from llmws.engine.graphs import DecodeBatch, Eager
from llmws.engine.layout import layout
from llmws.engine.measure import whole_config
from llmws.engine.paged import Pool
from llmws.engine.runner import Token
from llmws.engine.scripted import model_info
from llmws.engine_api import GenerationRequest, ModelRef
from llmws.protocol.messages import Sampling
from tests.integration.engine import tiny_models

MAX_CONTEXT = 64
_HOST_WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}
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


class _Waiting(TorchDispatchMode):
    """Notes what makes a GPU's host wait for numbers, which a CUDA graph cannot record."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _HOST_WAITS:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def waits(name: str) -> list[str]:
    """The operations of a decode step that wait for the device."""
    network = tiny_models.network(name)
    config = whole_config(network.config)
    assert selfcheck.adopt(network, config) is None
    pages = layout(config)
    pool = Pool(pages, pages=4, dtype=network.dtype, device=network.device, has_decode_kernel=True)
    tables = tuple(torch.ones(2, 4, dtype=torch.int32) for _ in pages.windows)
    step = DecodeBatch(torch.tensor([5, 0], dtype=torch.int32), torch.tensor([3, 0], dtype=torch.int32), tables)
    with torch.inference_mode(), _Waiting() as waiting:
        decode(network, pool, step)
    return waiting.found
