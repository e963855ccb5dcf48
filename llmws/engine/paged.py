"""The memory of all streams of one model, and a step's streams as tensors.

Owns the pages' tensors and the translation of a scheduler's plan into them. Knows neither requests nor models' code.
Invariant: a packed batch holds every query exactly once, and each sees just the positions that its stream has before it
within the group's window, whatever else is in the batch.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmws.engine.layout import Layout
from llmws.engine.pages import NULL_PAGE
from llmws.engine.scheduler import Slice

log = logging.getLogger(__name__)

_TABLE_PAGES = 16
"""Tables are as wide as a multiple of this: kernels are compiled anew where a stride begins or ceases to be one."""


@dataclass(frozen=True, slots=True)
class Span:
    """One stream's queries, and where the keys and values that they see lie.

    Attributes:
        start: the stream's first row in the batch.
        end: one past its last.
        pages: int64 [n], with the keys in order.
        offset: of the first key within the first page.
        keys: visible to any of the queries; the last of them is the last query's own.
    """

    start: int
    end: int
    pages: torch.Tensor
    offset: int
    keys: int


@dataclass(frozen=True, slots=True)
class Decodes:
    """The first rows of a batch, one query a stream, for the kernel that reads pages where they lie.

    Attributes:
        tables: int32 [streams, pages].
        lengths: int32 [streams], the queries' own positions included; 0 for padding.
    """

    tables: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """A batch as the layers of one group see it.

    Attributes:
        window: tokens that a query sees, its own included; None for all before it.
        slots: int64 [tokens]: where each token's key and value go, in tokens from the start of the pool.
        spans: one a stream, but for the decodes.
        decodes: the streams before these; None without that kernel.
    """

    window: int | None
    slots: torch.Tensor
    spans: tuple[Span, ...]
    decodes: Decodes | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tokens, packed into one row.

    Attributes:
        ids: int64 [1, tokens].
        positions: int64 [1, tokens].
        sampling: int64 [streams that sample]: rows whose logits are wanted.
        groups: as in the layout.
        pool: with keys and values.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sampling: torch.Tensor
    groups: tuple[GroupBatch, ...]
    pool: Pool


class Pool:
    """Keys and values.

    Args:
        layout: of the model.
        pages: that can be handed out; there is one more, the null page.
        dtype: of the model.
        device: of the model.
        has_decode_kernel: whether decodes are computed by the kernel that reads pages where they lie; by default where
            there is one.

    Attributes:
        keys: of each slot: [pages + 1, page_tokens, kv_heads, key_dim].
        values: of each slot: [pages + 1, page_tokens, kv_heads, value_dim].
    """

    def __init__(
        self,
        layout: Layout,
        *,
        pages: int,
        dtype: torch.dtype,
        device: torch.device,
        has_decode_kernel: bool | None = None,
    ) -> None:
        def tensors(dim: int) -> list[torch.Tensor]:
            shape = (pages + 1, layout.page_tokens, layout.kv_heads, dim)
            return [torch.empty(shape, dtype=dtype, device=device) for _ in range(layout.slots)]

        self.layout = layout
        self.device = device
        self.has_decode_kernel = kernel_for(device) if has_decode_kernel is None else has_decode_kernel
        self.keys = tensors(layout.key_dim)
        self.values = tensors(layout.value_dim)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def pack(self, slices: Sequence[Slice]) -> Batch:
        """The tensors of a step, its streams in the order of the plan."""
        ids: list[int] = []
        positions: list[int] = []
        sampling: list[int] = []
        for each in slices:
            ids += each.ids
            positions += range(each.start, each.start + len(each.ids))
            if each.samples:
                sampling.append(len(ids) - 1)
        return Batch(
            ids=self._tensor(ids)[None],
            positions=self._tensor(positions)[None],
            sampling=self._tensor(sampling),
            groups=tuple(self._group(slices, group, window) for group, window in enumerate(self.layout.windows)),
            pool=self,
        )

    def _group(self, slices: Sequence[Slice], group: int, window: int | None) -> GroupBatch:
        size = self.layout.page_tokens
        slots: list[int] = []
        pages: list[int] = []
        bounds: list[tuple[int, int, int, int]] = []
        row = 0
        alone = self._decoding(slices)
        for each in slices:
            table, end = each.tables[group], each.start + len(each.ids)
            slots += [table[at // size] * size + at % size for at in range(each.start, end)]
            first = 0 if window is None else max(0, each.start - window + 1)
            if row >= alone:
                pages += table[first // size : -(-end // size)]
                bounds.append((row, len(pages), first % size, end - first))
            row += len(each.ids)
        # One copy to the device for all of them.
        whole = self._tensor(pages)
        spans = []
        done = 0
        for each, (start, upto, offset, keys) in zip(slices[alone:], bounds, strict=True):
            spans.append(Span(start, start + len(each.ids), whole[done:upto], offset, keys))
            done = upto
        decodes = self._decodes(slices[:alone], group) if alone else None
        return GroupBatch(window, self._tensor(slots), tuple(spans), decodes)

    def _decoding(self, slices: Sequence[Slice]) -> int:
        """How many slices at the front are for the kernel; the scheduler puts decodes first."""
        if not self.has_decode_kernel:
            return 0
        return sum(1 for _ in itertools.takewhile(lambda each: len(each.ids) == 1, slices))

    def _decodes(self, slices: Sequence[Slice], group: int) -> Decodes:
        tables = [each.tables[group] for each in slices]
        width = padded_pages(max(map(len, tables)))
        padded = [[*table, *[NULL_PAGE] * (width - len(table))] for table in tables]
        lengths = [each.start + 1 for each in slices]
        return Decodes(
            torch.tensor(padded, dtype=torch.int32, device=self.device),
            torch.tensor(lengths, dtype=torch.int32, device=self.device),
        )

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)


def padded_pages(pages: int) -> int:
    """The width of a table that holds so many pages."""
    return -(-pages // _TABLE_PAGES) * _TABLE_PAGES


@functools.cache
def kernel_for(device: torch.device) -> bool:
    """Whether there is a kernel that reads pages where they lie: on CUDA, where torch brings Triton.

    It is tried once: Triton needs a C compiler, Python's headers and a place to write to.
    """
    if device.type != "cuda":
        return False
    try:
        from llmws.engine import triton_decode  # noqa: PLC0415 - Triton comes with CUDA builds of torch

        triton_decode.try_out(device)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever Triton lacks, pages can be gathered
        why = " ".join(str(error).split())[:300]
        log.warning("decodes on %s gather their pages, which is slow: Triton cannot run (%s)", device, why)
        return False
    return True
