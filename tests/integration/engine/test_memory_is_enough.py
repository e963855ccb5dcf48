"""The pure estimates against what the caches of transformers hold."""

import itertools
import json
from pathlib import Path

import msgspec
import pytest
import torch
import transformers

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine import memory
from llmws.engine.attention import WRITTEN_SCORES
from llmws.engine.devices import chosen, placement
from llmws.engine.draw import DRAWN_BYTES, ROWS
from llmws.engine.estimate import paged_footprint
from llmws.engine.fallback import Context, Increments, find_increments
from llmws.engine.loading import TransformersLoader
from llmws.engine.measure import measured_footprint, whole_config
from llmws.engine.paged import Pool
from llmws.engine_api import GenerationRequest
from llmws.errors import LlmwsError, ModelOutOfMemoryError
from llmws.protocol.messages import Sampling
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "qwen3", "gpt2"])
def test_a_pool_takes_just_what_was_estimated(name, dtype):
    """Full and sliding layers, all numbers of heads: a pool's tensors are the pages and nothing else."""
    device = torch.device("cpu")
    grows = paged_footprint(
        whole_config(tiny_models.CONFIGS[name]), dtype=dtype, device=device, max_running=4, writes_scores=False
    )
    for context in CONTEXTS:
        pages = grows.layout.pages(context, step_tokens=grows.forward.chunk)
        assert Pool(grows.layout, pages=pages, dtype=dtype, device=device).nbytes == grows.cache_bytes(context)


@pytest.mark.parametrize(("name", "device"), [("gemma2", "cpu"), ("gemma2", "cuda"), ("llama", "cuda")])
def test_scores_and_masks_take_no_more_the_longer_the_context(name, device):
    """Scores are written out of some queries at a time, and on CUDA only windows take masks."""
    config = whole_config(tiny_models.CONFIGS[name])
    grows = paged_footprint(
        config, dtype=torch.bfloat16, device=torch.device(device), max_running=4, writes_scores=False
    )
    without = msgspec.structs.replace(grows, most_pairs=0)
    [long, longer] = [grows.workspace_bytes(tokens) - without.workspace_bytes(tokens) for tokens in (10**6, 10**7)]

    heads = config["num_attention_heads"]
    scores = WRITTEN_SCORES[device] if name == "gemma2" else 0
    assert long == longer == scores // heads * (5 + 10 * heads)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_smallest_pool_serves_the_longest_context(name, folder_of):
    """What is promised is kept with nothing but the need: the longest stream runs to its end, never giving way."""
    loader = TransformersLoader(OptimizationSection(device="cpu", threads=1), LimitsSection(max_context=200))
    model = folder_of(name)
    runner = loader.load(model, loader.claim(model), progress=lambda read, total: None)
    runner.open_pool(runner.need_bytes)
    sampling = Sampling(do_sample=False, ignore_eos=True)
    request = GenerationRequest(key="a", prompt_ids=tuple(range(3, 153)), sampling=sampling, max_new_tokens=50)
    assert runner.has_room(request)
    runner.start(request)
    tokens = 0
    while tokens < 50:
        outcome = runner.step(["a"]).get("a")
        assert not isinstance(outcome, LlmwsError)
        tokens += outcome is not None

    assert runner.pool_bytes == runner.need_bytes
    assert runner.preemptions == 0


def test_drawing_many_streams_tokens_at_once_is_paid_for():
    """A small model's step takes less than the noise for its vocabulary."""
    config = whole_config(tiny_models.CONFIGS["llama"]) | {"vocab_size": 150_000}
    cuda = torch.device("cuda")
    one, crowd = (
        paged_footprint(config, dtype=torch.bfloat16, device=cuda, max_running=running, writes_scores=False)
        for running in (1, 128)
    )

    assert one.workspace_bytes(256) >= 150_000 * DRAWN_BYTES
    assert crowd.workspace_bytes(256) >= 150_000 * ROWS["cuda"] * DRAWN_BYTES


def test_a_device_that_gives_no_memory_back_keeps_no_model_from_being_closed(folder_of, monkeypatch, caplog):
    """As torch does after a recording that failed."""
    loader = TransformersLoader(OptimizationSection(device="cpu", threads=1), LimitsSection(max_context=64))
    model = folder_of("llama")
    runner = loader.load(model, loader.claim(model), progress=lambda read, total: None)

    def fail():
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    runner.close()

    assert "captures_underway" in caplog.messages[-1]


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "qwen3", "lfm2", "llama"])
def test_a_raw_configuration_file_is_enough(name, folder_of):
    """`config.json` as it lies in the folder gives the same layers as the class that reads it."""
    raw = json.loads((Path(folder_of(name).location) / "config.json").read_text())

    assert memory.cache_layers(raw) == memory.cache_layers(tiny_models.CONFIGS[name].to_dict())


@pytest.mark.parametrize(
    "config",
    [
        transformers.RwkvConfig(
            vocab_size=320, hidden_size=32, attention_hidden_size=32, intermediate_size=64, num_hidden_layers=2
        ),
        # Its attention is twice as wide as its configuration lets one think.
        transformers.Zamba2Config(
            vocab_size=320,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            layers_block_type=["mamba", "hybrid", "mamba"],
            mamba_d_state=8,
            n_mamba_heads=8,
            mamba_ngroups=1,
            num_mem_blocks=1,
        ),
    ],
    ids=["not told", "told too little"],
)
def test_where_a_real_cache_is_larger_it_counts(config):
    """Architectures that the formulas do not know are measured when they are loaded."""
    torch.manual_seed(7)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    footprint = measured_footprint(network, find_increments(network, 320))

    for context in (5, 32, 100):
        assert held_bytes(network, context, prefill=context) <= footprint.cache_bytes(context)


def test_without_a_cache_nothing_is_held_and_all_is_worked_with():
    network = tiny_models.network("llama")
    footprint = measured_footprint(network, Increments.NONE)

    assert footprint.cache_bytes(100) == 0
    assert footprint.workspace_bytes(200) > 1.9 * footprint.workspace_bytes(100)


def test_memory_that_runs_out_while_a_model_is_tried_is_no_inability():
    """Else a crowded device would make a model go on without its cache, for as long as it is loaded."""
    network = tiny_models.network("llama")
    forwards = itertools.count()

    def run_out(*_):
        if next(forwards) > 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    network.register_forward_pre_hook(run_out)
    with pytest.raises(ModelOutOfMemoryError, match="not enough memory for trying the model out"):
        find_increments(network, tiny_models.VOCABULARY)


# --- placement -------------------------------------------------------------------------------------------------------

GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]


def bytes_of(*amounts):
    return dict(zip(GPUS, amounts, strict=True))


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [
        (5, (6, 10), (GPUS[0],)),
        (9, (6, 10), (GPUS[1],)),
        (7, (0, 0), (GPUS[0],)),
        (15, (6, 10), tuple(GPUS)),
    ],
    ids=["the first that is free", "the one that is large enough", "nobody is free", "none is large enough"],
)
def test_weights_go_to_the_first_gpu_that_holds_them_else_to_all(needed, free, expected):
    assert chosen(needed, free_bytes=bytes_of(*free), budget_bytes=bytes_of(8, 10)) == expected


def test_weights_that_fit_nowhere_are_refused_with_both_numbers():
    gb = 10**9
    with pytest.raises(ModelOutOfMemoryError, match=r"take 17\.0 GB of memory; there are 16\.0 GB"):
        chosen(17 * gb, free_bytes=bytes_of(gb, gb), budget_bytes=bytes_of(6 * gb, 10 * gb))


def test_weights_are_spread_by_what_each_gpu_holds():
    assert placement({GPUS[1]: 9}) == {"device_map": {"": GPUS[1]}}
    assert placement(bytes_of(6, 10)) == {"device_map": "auto", "max_memory": {0: 6, 1: 10}}
