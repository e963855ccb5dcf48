"""How a model's attention layers share the pages of one pool: integers from a configuration.

Knows neither torch nor streams. A page holds keys and values of `page_tokens` tokens for `slots` layers. Layers that
remember equally much form a group, or several where there are more of them than slots; a stream has one table of pages
for each group. Any page serves any group, so that a stream's sliding layers give back what slid out of their window
while its full ones keep everything. Invariant: every attention layer has a place of its own.
"""

from __future__ import annotations

import msgspec

from llmws.engine import memory
from llmws.engine.memory import Config, Footprint
from llmws.errors import ModelInvalidError

PAGE_TOKENS = 16
"""Source: PagedAttention (arXiv:2309.06180), 7.2: large enough to read in bulk, small enough to waste and to share."""

_MAX_GROUPS = 8
"""A step pays for every group's tables; beyond that, layers that stay empty cost less."""


class Layout(msgspec.Struct, frozen=True):
    """Who keeps what where.

    Attributes:
        windows: of each group: tokens that a query sees, its own included; None for all before it.
        places: of each layer: (group, slot within the page).
        slots: layers that a page has room for.
        kv_heads: of every layer.
        key_dim: numbers of a head's key.
        value_dim: numbers of a head's value.
        page_tokens: tokens of a page.
    """

    windows: tuple[int | None, ...]
    places: tuple[tuple[int, int], ...]
    slots: int
    kv_heads: int
    key_dim: int
    value_dim: int
    page_tokens: int = PAGE_TOKENS

    def page_bytes(self, dtype_bytes: int) -> int:
        """Memory of one page."""
        return self.slots * self.page_tokens * self.kv_heads * (self.key_dim + self.value_dim) * dtype_bytes

    def pages(self, tokens: int, *, step_tokens: int) -> int:
        """Pages that one stream of that many tokens holds at most, when a step takes up to `step_tokens` of them."""
        everything = -(-tokens // self.page_tokens)
        return sum(
            # What a step's first query sees, what the step adds, and a page that both ends cut through.
            everything if window is None else min(everything, -(-(window - 1 + step_tokens) // self.page_tokens) + 1)
            for window in self.windows
        )


class PagedFootprint(msgspec.Struct, frozen=True):
    """How the memory of one model's streams grows in a pool of pages.

    Attributes:
        layout: of the pages.
        forward: of the whole context in one forward, its `chunk` the tokens of a step; of its caches nothing is used.
        rows: streams that sample in one step.
        most_pairs: tokens of a step times tokens of the context that are masked or written out at a time, at most; None
            for all.
        recorded_values: numbers that recorded steps keep to themselves.
        drawn_bytes: that drawing tokens takes, when a step's other tensors but the logits are gone.
    """

    layout: Layout
    forward: Footprint
    rows: int
    most_pairs: int | None = None
    recorded_values: int = 0
    drawn_bytes: int = 0

    def stream_bytes(self, context: int) -> int:
        """Bytes of the pages of a stream of that many tokens."""
        pages = self.layout.pages(context, step_tokens=self.forward.chunk)
        return pages * self.layout.page_bytes(self.forward.dtype_bytes)

    def cache_bytes(self, context: int) -> int:
        """Bytes of the smallest pool that holds a stream of that many tokens, the null page included."""
        return self.stream_bytes(context) + self.layout.page_bytes(self.forward.dtype_bytes)

    def workspace_bytes(self, context: int) -> int:
        """Bytes that one step needs beside weights and pages.

        A layer gathers the keys and values of one stream at a time, of `context` tokens at most; a step's other tensors
        are those of its tokens, and the logits of the streams that sample.
        """
        step = self.forward
        gathered = context * self.layout.kv_heads * (self.layout.key_dim + self.layout.value_dim)
        values = gathered + context * step.repeated_values + step.chunk * step.token_values
        pairs = min(step.chunk, context) * context
        if self.most_pairs is not None:
            pairs = min(pairs, self.most_pairs)
        computed_bytes = pairs * step.pair_bytes + values * step.dtype_bytes
        kept_bytes = self.recorded_values * step.dtype_bytes + self.rows * step.logits_bytes
        return max(computed_bytes, self.drawn_bytes) + kept_bytes

    def need_bytes(self, context: int) -> int:
        """Bytes that one stream of that many tokens needs, alone."""
        return self.cache_bytes(context) + self.workspace_bytes(context)


def layout(config: Config) -> Layout:
    """The layout of a model whose layers all attend, to everything or within a window.

    Raises:
        ModelInvalidError: the configuration does not say, or a layer is of another kind.
    """
    config = memory.text_config(config)
    windows = memory.attention_windows(config)
    kinds = sorted(set(windows), key=lambda window: (window is not None, window or 0))
    counts = [windows.count(kind) for kind in kinds]
    slots = _slots(counts)
    groups: list[int | None] = []
    first: dict[int | None, int] = {}
    for kind, count in zip(kinds, counts, strict=True):
        first[kind] = len(groups)
        groups += [kind] * -(-count // slots)
    seen = dict.fromkeys(kinds, 0)
    places = []
    for window in windows:
        places.append((first[window] + seen[window] // slots, seen[window] % slots))
        seen[window] += 1
    kv_heads, key_dim, value_dim = memory.kv_shape(config)
    return Layout(tuple(groups), tuple(places), slots, kv_heads, key_dim, value_dim)


def _slots(counts: list[int]) -> int:
    """The number of slots with the fewest empty ones; among equals the largest, which makes the fewest groups."""

    def pages(slots: int) -> int:
        return sum(-(-count // slots) for count in counts)

    possible = [slots for slots in range(1, max(counts) + 1) if pages(slots) <= max(_MAX_GROUPS, len(counts))]
    if not possible:
        raise ModelInvalidError("the model has no attention layers")
    return min(possible, key=lambda slots: (pages(slots) * slots, -slots))
