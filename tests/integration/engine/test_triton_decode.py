"""The paged decode kernels, in Triton's interpreter, against attention as in the textbook.

The interpreter multiplies bfloat16 as if it were integers, so that type is checked on a GPU alone (`bench/gpu.py`).
"""

import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from msgspec.structs import replace

from tests.support.kernel_runner import answers
from tests.support.paged_cases import CASES, LONG, begin_interpreter, expected, interpret, make

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Triton comes for Linux on x86-64 only"
)

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def interpreter():
    """One other process: in this one Triton may be imported already, and must stay as it is."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=begin_interpreter) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result(TIMEOUT_S)


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


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_model_says_the_same_with_the_kernel_and_without(name, interpreter):
    """Streams come while others decode, alone and beside prompts; gemma2 has windows, softcaps and two groups."""
    steps = {"prompts": (18, 3, 15), "tokens": 5}

    with_kernel = interpreter(answers, name, **steps, with_kernel=True)
    assert with_kernel == answers(name, **steps, with_kernel=False)


@pytest.mark.parametrize(("streams", "splits"), [(1, 66), (8, 9), (32, 4), (128, 4)])
def test_a_small_batch_is_split_until_it_fills_the_device(streams, splits):
    """Here it has 132 multiprocessors; the model has 8 KV heads of 128 numbers, bfloat16."""
    from llmws.engine.triton_decode import Launch, plan_launch

    shape = {"streams": streams, "kv_heads": 8, "key_dim": 128, "value_dim": 128, "dtype_bytes": 2}
    expected_launch = Launch(splits=splits, tile_tokens=64, stages=3, warps=4)
    assert plan_launch(**shape, multiprocessors=132, shared_bytes=227 * 1024) == expected_launch


@pytest.mark.parametrize("dtype_bytes", [2, 4])
@pytest.mark.parametrize("shared_kib", [64, 99, 227])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
def test_the_tiles_in_flight_fit_into_shared_memory(dim, shared_kib, dtype_bytes):
    from llmws.engine.triton_decode import plan_launch

    shape = {"streams": 4, "kv_heads": 8, "key_dim": dim, "value_dim": dim, "dtype_bytes": dtype_bytes}
    launch = plan_launch(**shape, multiprocessors=80, shared_bytes=shared_kib * 1024)
    assert launch.stages * launch.tile_tokens * 2 * dim * dtype_bytes < shared_kib * 1024
