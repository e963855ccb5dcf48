"""Decode steps recorded once and replayed: a CUDA graph for each size of batch.

Owns the memory that a recorded step reads its inputs from, and the padding of a batch to a recorded size. Knows neither
models nor schedulers. Invariant: a recorded step only ever sees the tensors it was recorded with; what changes from
step to step is copied into them, and rows beyond the batch are streams of length 0.

Launched one by one from Python, the kernels of a step leave a GPU idle for most of the time of a small batch; a graph
launches all of them at once.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from llmws.engine.paged import padded_pages

log = logging.getLogger(__name__)

Replay = Callable[[], torch.Tensor]
"""Runs a recorded step; the tensor that comes back is the same one each time."""

_SMALL_BUCKETS = (1, 2, 4)
_BUCKET_STREAMS = 8
"""Between larger sizes: padding wastes little then, and matrix units work on multiples of 8 anyway."""

_WARM_UPS = 2
"""Runs before a recording: kernels are compiled, and libraries take their workspaces, which a graph must not do."""

_ROWS_APART = 32
"""Rows of a table that are copied one by one, at most: that many launches take as long as a copy of all."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """One new token of each of some streams.

    Attributes:
        ids: int32 [streams]: the new tokens.
        lengths: int32 [streams]: tokens of each stream, the new one included; 0 for a row that is only padding, with
            any id that the model has.
        tables: of each group of layers, int32 [streams, max_pages]: pages from position 0 on. What lies beyond the
            length, or outside of the group's window, means nothing.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    tables: tuple[torch.Tensor, ...]

    def positions(self) -> torch.Tensor:
        """Of the new tokens, int64 [streams]; 0 for padding."""
        return (self.lengths - 1).clamp(min=0).long()

    def slots(self, group: int, page_tokens: int) -> torch.Tensor:
        """Where the new tokens' keys and values go, int64 [streams], in tokens from the start of the pool.

        Padding goes to the null page, which is the first one.
        """
        positions = self.positions()
        pages = self.tables[group].gather(1, (positions // page_tokens)[:, None])[:, 0].long()
        return torch.where(self.lengths > 0, pages * page_tokens + positions % page_tokens, 0)


class Recorder(Protocol):
    """Records a step."""

    def record(self, step: Replay) -> Replay:
        """Runs `step`, and returns what runs it again on the same memory.

        Raises:
            RuntimeError: it cannot be recorded.
        """


class Eager:
    """A `Recorder` that records nothing: the step itself is run each time."""

    def record(self, step: Replay) -> Replay:
        """See `Recorder.record`."""
        return step


class CudaGraphs:
    """A `Recorder` of CUDA graphs that share one pool of memory, as no two of them run at a time.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._holds_graphs = False

    def record(self, step: Replay) -> Replay:
        """See `Recorder.record`. Source: `torch.cuda.CUDAGraph`, "Whole-network capture"."""
        current = torch.cuda.current_stream(self._device)
        aside = recording_stream(self._device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                step()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer one, because a recording that fails leaves its own stream as the current one.
            # Only what this thread does may not be recorded; another one may ask for the device's memory meanwhile.
            with (
                torch.cuda.stream(current),
                torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"),
            ):
                output = step()
        except Exception:
            self._abandon()
            raise
        self._holds_graphs = True

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    def _abandon(self) -> None:
        """Ends what a recording that failed began.

        Some versions of torch go on taking it as under way; from then on no memory could be given back, and nothing
        recorded. Others have ended it, and say so here.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with contextlib.suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, self._pool)
            if not self._holds_graphs:
                torch._C._cuda_releasePool(index, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        self._holds_graphs = False


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that everything is recorded on: freed memory is for the stream alone that took it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class DecodeGraphs:
    """Runs decode steps, each on the recording for its size of batch. Its memory is given back with it.

    Args:
        forward: computes a step from static tensors: [streams, ...], a row for each of the batch. It must neither wait
            for the device nor depend on numbers that are there, else it cannot be recorded; then it is run as it is.
        recorder: how.
        max_streams: of a batch.
        max_pages: of a stream, in each group.
        groups: of layers.
        device: where the tensors are.
    """

    def __init__(
        self,
        forward: Callable[[DecodeBatch], torch.Tensor],
        *,
        recorder: Recorder,
        max_streams: int,
        max_pages: int,
        groups: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._recorder = recorder
        self._buckets = buckets(max_streams)
        rows = self._buckets[-1]
        # One tensor for ids and lengths, so that both take one copy. What is filled in is pinned: a copy from it to a
        # GPU does not wait.
        self._numbers = _Mirror((2, rows), device)
        self._tables = [_Mirror((rows, padded_pages(max_pages)), device) for _ in range(groups)]
        self._written: list[list[tuple[Sequence[int], int]]] = [[((), 0)] * rows for _ in range(groups)]
        self._replays: dict[int, Replay] = {}

    def prepare(self) -> None:
        """Records every size, so that no stream waits for it: the largest first, whose memory the others share."""
        began_s = time.monotonic()
        for bucket in reversed(self._buckets):
            self._replay(bucket)
        log.info("%d sizes of decode steps were prepared in %.1f s", len(self._buckets), time.monotonic() - began_s)

    @torch.inference_mode()
    def step(
        self, ids: Sequence[int], lengths: Sequence[int], tables: Sequence[Sequence[Sequence[int]]]
    ) -> torch.Tensor:
        """Computes one step; it must have been waited for before the next one is filled in.

        Args:
            ids: the new token of each stream, at most `max_streams`.
            lengths: tokens of each stream, the new one included.
            tables: of each stream, for each group, the pages from position 0 on. As long as it is the same object, a
                table only grows; what slid out of a window may change.

        Returns:
            the rows of `forward` for these streams; valid until the next step.
        """
        count = len(ids)
        bucket = self._buckets[bisect.bisect_left(self._buckets, count)]
        self._fill(ids, lengths, tables, bucket)
        return self._replay(bucket)()[:count]

    def _replay(self, bucket: int) -> Replay:
        if bucket not in self._replays:
            self._replays[bucket] = self._record(bucket)
        return self._replays[bucket]

    @torch.inference_mode()
    def _record(self, bucket: int) -> Replay:
        ids, lengths = self._numbers.device[:, :bucket]
        batch = DecodeBatch(ids, lengths, tuple(table.device[:bucket] for table in self._tables))

        def step() -> torch.Tensor:
            return self._forward(batch)

        try:
            return self._recorder.record(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # What is wrong with the step itself, it will say when it is run as it is.
            log.warning("decode steps cannot be recorded and are launched one kernel at a time: %s", error)
            self._recorder = Eager()
            return step

    def _fill(
        self,
        ids: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[Sequence[int]]],
        bucket: int,
    ) -> None:
        count = len(ids)
        numbers = self._numbers.host
        numbers[0, :count] = ids
        numbers[1, :count] = lengths
        numbers[1, count:bucket] = 0
        self._numbers.copy_all()
        for group, (mirror, written) in enumerate(zip(self._tables, self._written, strict=True)):
            changed: list[int] = []
            for row, each in enumerate(tables):
                table = each[group]
                known, done = written[row]
                if known is not table or done < len(table):
                    begin = done if known is table else 0
                    mirror.host[row, begin : len(table)] = table[begin:]
                    written[row] = table, len(table)
                    changed.append(row)
            if len(changed) > _ROWS_APART:
                mirror.copy_all()
            else:
                for row in changed:
                    mirror.copy(row)


class _Mirror:
    """int32 numbers that are written on the host and read on the device, always at the same place."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._host = torch.zeros(shape, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.host = self._host.numpy()
        self.device = torch.zeros(shape, dtype=torch.int32, device=device)

    def copy(self, row: int) -> None:
        self.device[row].copy_(self._host[row], non_blocking=True)

    def copy_all(self) -> None:
        self.device.copy_(self._host, non_blocking=True)


def buckets(max_streams: int) -> tuple[int, ...]:
    """The sizes that are recorded, ascending; the last one holds `max_streams`."""
    small = tuple(size for size in _SMALL_BUCKETS if size < max_streams)
    if max_streams <= _SMALL_BUCKETS[-1]:
        return (*small, max_streams)
    return (*small, *range(_BUCKET_STREAMS, max_streams + _BUCKET_STREAMS, _BUCKET_STREAMS))
