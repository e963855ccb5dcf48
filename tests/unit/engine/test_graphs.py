"""The padding and copying around recorded decode steps, with a recorder that only remembers."""

import logging

import pytest
import torch

from llmws.engine.graphs import DecodeBatch, DecodeGraphs, Eager, buckets

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


def test_the_largest_size_comes_first_so_that_the_others_fit_into_its_memory():
    recorder = Remembering()
    step = graphs(recorder)
    step.prepare()
    step.step([1], [1], [([1], [1])])

    assert recorder.recorded == [8, 1]


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


def test_without_recordings_the_step_itself_is_run():
    assert graphs(Eager()).step([4], [2], [([1], [1])]).tolist() == [[4, 1, 17, 17]]
