"""The paged decode kernels, in Triton's interpreter, against attention as in the textbook.

The interpreter multiplies bfloat16 as if it were integers, so that type is checked on a GPU alone, by
`bench/gpu/kernels.py`.
"""

import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from msgspec.structs import replace

from llmws.engine.layout import layout
from llmws.engine.measure import whole_config
from llmws.engine.paged import Pool, kernel_for
from llmws.engine.scheduler import Slice
from tests.integration.engine import tiny_models
from tests.support.kernel_runner import answers, waits
from tests.support.paged_cases import CASES, LONG, begin_interpreter, compiled_shared_bytes, expected, interpret, make

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Triton comes for Linux on x86-64 only"
)

TIMEOUT_S = 60
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def interpreter():
    """One other process: in this one Triton may be imported already, and must stay as it is."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin_interpreter) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result(TIMEOUT_S)


@pytest.mark.parametrize(("dtype", "softcap", "capability"), [("bf16", None, 90), ("fp16", 50.0, 80)])
def test_the_kernels_compile_for_gpus_and_fit_into_their_shared_memory(
    dtype, softcap, capability, tmp_path, monkeypatch
):
    """What the interpreter lets pass, the compiler need not. It needs no GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = {"dtype": dtype, "group": 4, "dim": 64, "softcap": softcap, "capability": capability}
    assert 0 < compiled_shared_bytes(**shape) <= 99 * 1024


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernels_compute_attention(case, interpreter):
    tolerance = 3e-3 if case.dtype == "float16" else 1e-5
    output = torch.tensor(interpreter(interpret, case), dtype=torch.float64)

    torch.testing.assert_close(output, expected(make(case)), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("splits", [1, 2, 7])
def test_the_number_of_splits_does_not_matter(splits, interpreter):
    """So a batch may change its size, and with it the splits, in the middle of a stream."""
    output = torch.tensor(interpreter(interpret, replace(LONG, splits=splits)), dtype=torch.float64)

    torch.testing.assert_close(output, expected(make(LONG)), atol=1e-5, rtol=1e-5)


def test_a_model_says_the_same_with_the_kernel_and_without(interpreter):
    """Streams come while others decode, alone and beside prompts; gemma2 has windows, softcaps and two groups."""
    steps = {"prompts": (3, 18, 5), "tokens": 4}
    with_kernel = interpreter(answers, "gemma2", **steps, with_kernel=True)

    assert with_kernel == answers("gemma2", **steps, with_kernel=False)


@pytest.mark.parametrize("name", ["gemma2", "qwen3-moe", "gpt-oss"])
def test_no_step_waits_for_the_device(name, interpreter):
    """A CUDA graph could not record it."""
    assert interpreter(waits, name) == []


def test_the_kernels_are_tried_before_they_are_relied_on(interpreter):
    from llmws.engine.triton_decode import try_out

    assert interpreter(try_out, CPU) is None


def test_where_triton_cannot_run_pages_are_gathered_and_the_log_says_why(monkeypatch, caplog):
    """It needs a C compiler, for one."""
    from llmws.engine import triton_decode

    def without_compiler(_device):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(triton_decode, "try_out", without_compiler)
    kernel_for.cache_clear()
    with caplog.at_level("WARNING"):
        assert [kernel_for(torch.device("cuda", 0)) for _ in range(2)] == [False, False]
    kernel_for.cache_clear()

    [message] = caplog.messages
    assert message.endswith("Triton cannot run (Failed to find C compiler. Please specify via CC)")


def test_tables_have_few_widths_as_kernels_are_compiled_for_some():
    pages = layout(whole_config(tiny_models.CONFIGS["llama"]))
    pool = Pool(pages, pages=40, dtype=torch.float32, device=CPU, has_decode_kernel=True)
    slices = [Slice("a", 20, (5,), True, ([1, 2],)), Slice("b", 300, (5,), True, (list(range(3, 22)),))]

    assert [pool.pack(slices[:n]).groups[0].decodes.tables.shape for n in (1, 2)] == [(1, 16), (2, 32)]


@pytest.mark.parametrize(("streams", "splits"), [(1, 128), (8, 16), (9, 8), (32, 4), (128, 4)])
def test_a_small_batch_is_split_until_it_fills_the_device(streams, splits):
    """Here it has 132 multiprocessors; the model has 8 KV heads of 128 numbers, bfloat16.

    By powers of two, so that there are few kernels to compile.
    """
    from llmws.engine.triton_decode import Launch, plan_launch

    shape = {"streams": streams, "kv_heads": 8, "key_dim": 128, "value_dim": 128, "dtype_bytes": 2}
    expected_launch = Launch(splits=splits, tile_tokens=64, stages=5, warps=4)
    assert plan_launch(**shape, multiprocessors=132, shared_bytes=227 * 1024) == expected_launch


@pytest.mark.parametrize(
    ("shared_kib", "dim", "dtype_bytes", "tile_tokens", "stages"),
    [(227, 128, 2, 64, 5), (163, 128, 2, 64, 5), (99, 128, 2, 64, 3), (227, 80, 2, 64, 5), (99, 256, 4, 16, 3)],
)
def test_two_programs_with_two_tiles_each_where_shared_memory_holds_them(
    shared_kib, dim, dtype_bytes, tile_tokens, stages
):
    """Of 32 KiB a tile, keys and values together, padded to a power of two."""
    from llmws.engine.triton_decode import plan_launch

    shape = {"streams": 4, "kv_heads": 8, "key_dim": dim, "value_dim": dim, "dtype_bytes": dtype_bytes}
    launch = plan_launch(**shape, multiprocessors=80, shared_bytes=shared_kib * 1024)
    assert (launch.tile_tokens, launch.stages) == (tile_tokens, stages)
