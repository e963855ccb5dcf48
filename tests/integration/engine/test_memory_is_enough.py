"""The pure estimates against what the caches of transformers hold."""

import pytest
import torch

from llmws.engine import memory
from llmws.engine.fallback import Context
from tests.integration.engine import tiny_models

CONTEXTS = (1, 11, 64, 200)


def held_bytes(network, context, prefill):
    """What a cache holds after a prompt of `prefill` tokens and single tokens up to `context`."""
    stream = Context(network, [i % tiny_models.VOCABULARY for i in range(context)])
    stream.forward(min(prefill, context))
    while stream.done < context:
        stream.forward(stream.done + 1)
    return stream.cache_bytes()


def estimate(name, context, dtype, chunk=1):
    config = tiny_models.CONFIGS[name]
    fields = config.to_dict() | {"layer_types": getattr(config, "layer_types", None)}
    return memory.cache_bytes(fields, dtype_bytes=dtype.itemsize, context=context, chunk=chunk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_a_stream_holds_what_was_estimated(name, dtype):
    """Within 3 % above, never below."""
    network = tiny_models.network(name, dtype=dtype)
    for context in CONTEXTS:
        held = held_bytes(network, context, prefill=max(1, context - 1))
        ratio = estimate(name, context, dtype) / held
        assert 1.0 <= ratio <= 1.03, (context, held)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama"])
def test_a_chunk_is_held_with_its_window(name):
    """Right after a chunk a sliding cache is a view on all that the chunk saw."""
    network = tiny_models.network(name)
    stream = Context(network, [i % tiny_models.VOCABULARY for i in range(192)])
    for end in (64, 128, 192):
        stream.forward(end)

    assert estimate(name, 192, torch.float32, chunk=64) == stream.cache_bytes()


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "qwen3", "lfm2", "llama"])
def test_a_raw_configuration_file_is_enough(name, folder_of):
    """`config.json` as it lies in the folder gives the same layers as the class that reads it."""
    import json
    from pathlib import Path

    raw = json.loads((Path(folder_of(name).location) / "config.json").read_text())

    assert memory.cache_layers(raw) == memory.cache_layers(tiny_models.CONFIGS[name].to_dict())
