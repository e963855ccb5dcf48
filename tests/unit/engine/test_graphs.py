"""The padding and copying around recorded decode steps, with a recorder that only remembers."""

import contextlib
import itertools
import logging
from types import SimpleNamespace

import pytest
import torch

from llmws.engine.graphs import CudaGraphs, DecodeBatch, DecodeGraphs, Eager, buckets, recording_stream

CPU = torch.device("cpu")


class Remembering:
    """Records as CUDA graphs do: a replay runs on the tensors of the recording, whatever happened since."""

    def __init__(self, *, fails: bool = False):
        self.fails = fails
        self.recorded = []
        self.replayed = []

    def record(self, step):
        size = step().shape[0]
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded.append(size)

        def replay():
            self.replayed.append(size)
            return step()

        return replay


def seen(batch: DecodeBatch) -> torch.Tensor:
    """All that a forward gets, as a row a stream: id, position, slots of two groups of layers."""
    return torch.stack([batch.ids, batch.positions(), batch.slots(0, 16), batch.slots(1, 16)], dim=1)


def graphs(recorder, max_streams=8):
    return DecodeGraphs(seen, recorder=recorder, max_streams=max_streams, max_pages=4, groups=2, device=CPU)


@pytest.mark.parametrize(
    ("max_streams", "expected"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (4, (1, 2, 4)),
        (5, (1, 2, 4, 8)),
        (32, (1, 2, 4, 8, 16, 24, 32)),
        (33, (1, 2, 4, 8, 16, 24, 32, 40)),
    ],
)
def test_sizes_are_small_ones_and_multiples_of_eight(max_streams, expected):
    assert buckets(max_streams) == expected


def test_a_step_gets_each_streams_token_at_its_place():
    step = graphs(Remembering())
    result = step.step([7, 8, 9], [1, 16, 17], [([3], [4]), ([5], [6]), ([1, 9], [2, 8])])

    assert result.tolist() == [[7, 0, 48, 64], [8, 15, 95, 111], [9, 16, 144, 128]]


def test_rows_beyond_the_batch_write_to_the_null_page_whatever_was_there():
    recorder = Remembering()
    captured = []

    def forward(batch):
        captured.append(seen(batch))
        return captured[-1]

    step = DecodeGraphs(forward, recorder=recorder, max_streams=4, max_pages=4, groups=2, device=CPU)
    step.step([7, 8, 9, 6], [20] * 4, [([1, 2], [3, 4])] * 4)
    step.step([5, 5, 5], [20] * 3, [([1, 2], [3, 4])] * 3)

    assert captured[-1][3, 1:].tolist() == [0, 0, 0]


def test_each_size_is_recorded_once_and_replayed_for_the_batches_that_fit():
    recorder = Remembering()
    step = graphs(recorder)
    for count in (1, 3, 4, 5, 3):
        assert step.step([1] * count, [1] * count, [([1], [1])] * count).shape[0] == count

    assert recorder.recorded == [1, 4, 8]
    assert recorder.replayed == [1, 4, 4, 8, 4]


def test_every_size_is_prepared_the_largest_first_so_that_the_others_fit_into_its_memory(caplog):
    recorder = Remembering()
    step = graphs(recorder)
    with caplog.at_level(logging.INFO):
        step.prepare()
    step.step([1], [1], [([1], [1])])

    assert recorder.recorded == [8, 4, 2, 1]
    assert caplog.messages[0].startswith("4 sizes of decode steps were prepared in ")


def test_a_table_that_grows_is_followed():
    step = graphs(Remembering())
    table, other = [3], [4]
    before = step.step([1], [16], [(table, other)]).tolist()
    table.append(7)
    other.append(9)

    assert (before, step.step([1], [17], [(table, other)]).tolist()) == ([[1, 15, 63, 79]], [[1, 16, 112, 144]])


def test_another_stream_in_the_same_row_brings_its_own_table():
    """Even when the tables are equally long."""
    step = graphs(Remembering())
    step.step([1], [3], [([3], [4])])

    assert step.step([1], [3], [([5], [6])]).tolist() == [[1, 2, 82, 98]]


def test_streams_that_move_up_when_one_ends_keep_their_tables():
    step = graphs(Remembering())
    tables = [([3], [4]), ([5], [6])]
    step.step([1, 2], [1, 1], tables)

    assert step.step([2], [2], tables[1:]).tolist() == [[2, 1, 81, 97]]


def test_what_cannot_be_recorded_is_run_as_it_is_and_the_log_says_so_once(caplog):
    recorder = Remembering(fails=True)
    step = graphs(recorder)
    with caplog.at_level(logging.WARNING):
        results = [step.step([4] * n, [1] * n, [([1], [1])] * n).tolist() for n in (1, 2, 1)]

    assert results == [[[4, 0, 16, 16]] * n for n in (1, 2, 1)]
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.endswith("are launched one kernel at a time: operation not permitted when stream is capturing")


def test_memory_that_runs_out_is_no_inability():
    class Full:
        def record(self, step):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        graphs(Full()).prepare()


@pytest.mark.parametrize("streams", [3, 40])
def test_tables_are_followed_in_however_many_rows_they_grow(streams):
    """A few rows are copied one by one, many all at once."""
    step = graphs(Remembering(), max_streams=40)
    tables = [([3 + row], [50 + row]) for row in range(streams)]
    step.step([1] * streams, [16] * streams, tables)
    for table, other in tables:
        table.append(9)
        other.append(9)

    found = step.step([1] * streams, [17] * streams, tables)
    assert found[:, 2:].tolist() == [[144, 144]] * streams


class Cuda:
    """What recording calls of `torch.cuda`, for a device that is not there.

    As in some versions of torch, a recording that fails stays under way.
    """

    def __init__(self, monkeypatch):
        self.pools = iter(range(9))
        self.streams = []
        self.recorded = []
        self.under_way = set()
        self.released = []
        for name in ("CUDAGraph", "Stream", "current_stream", "graph", "graph_pool_handle", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        for name, method in (("_cuda_endAllocateToPool", self.end), ("_cuda_releasePool", self.release)):
            monkeypatch.setattr(torch._C, name, method, raising=False)

    def CUDAGraph(self):  # noqa: N802 - torch's name
        return None

    def Stream(self, _device):  # noqa: N802 - torch's name
        self.streams.append(self.current_stream(None))
        return self.streams[-1]

    def current_stream(self, _device):
        return SimpleNamespace(wait_stream=lambda _other: None)

    def stream(self, _stream):
        return contextlib.nullcontext()

    def graph_pool_handle(self):
        return next(self.pools)

    @contextlib.contextmanager
    def graph(self, _graph, *, pool, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        if self.under_way:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        self.under_way.add(pool)
        yield
        self.under_way.remove(pool)
        self.recorded.append((pool, stream))

    def end(self, index, pool):
        assert index == 0
        if pool not in self.under_way:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.under_way.remove(pool)

    def release(self, index, pool):
        assert index == 0
        self.released.append(pool)


@pytest.fixture
def cuda(monkeypatch):
    recording_stream.cache_clear()
    yield Cuda(monkeypatch)
    recording_stream.cache_clear()


def failing(step):
    """A step that runs twice, and cannot be recorded."""
    runs = itertools.count()

    def run():
        if next(runs) >= 2:
            raise RuntimeError("operation not permitted when stream is capturing")
        return step()

    return run


def test_all_is_recorded_on_one_stream_so_that_memory_is_shared(cuda):
    """Also by the recordings of another model."""
    for _ in range(2):
        recorder = CudaGraphs(torch.device("cuda", 0))
        for _ in range(3):
            recorder.record(lambda: torch.zeros(1))

    assert len(cuda.streams) == 1
    assert cuda.recorded == [(pool, cuda.streams[0]) for pool in (0, 0, 0, 1, 1, 1)]


@pytest.mark.parametrize(("before", "released"), [(0, [0]), (2, [])])
def test_after_a_recording_that_failed_others_are_made_in_memory_of_their_own(before, released, cuda):
    """What recordings before it hold stays theirs."""
    recorder = CudaGraphs(torch.device("cuda", 0))
    for _ in range(before):
        recorder.record(lambda: torch.zeros(1))
    with pytest.raises(RuntimeError, match="not permitted"):
        recorder.record(failing(lambda: torch.zeros(1)))
    recorder.record(lambda: torch.zeros(1))

    assert [pool for pool, _ in cuda.recorded] == [0] * before + [1]
    assert cuda.released == released


def test_without_recordings_the_step_itself_is_run():
    assert graphs(Eager()).step([4], [2], [([1], [1])]).tolist() == [[4, 1, 17, 17]]
