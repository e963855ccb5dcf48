"""Which stream computes which positions in the next step, and in which pages: integers only.

Knows neither torch nor requests. Streams are admitted in order of arrival and give way in the opposite order: those
that run are older than those that wait. A stream that gives way loses its pages and computes them again later, as far
as they are not found again. Invariant: the oldest stream that is not complete gets a slice in every plan, whatever the
others do, as long as the complete ones are freed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from llmws.engine import pages as contents
from llmws.engine.layout import Layout
from llmws.engine.pages import NULL_PAGE, PagePool


class Slice(msgspec.Struct, frozen=True):
    """One stream's part of a step. Its tables are the stream's own: they are valid until the step is committed.

    Attributes:
        key: of the stream.
        start: the first position that is computed.
        ids: at the positions from `start` on.
        samples: whether the id after the last of them is wanted.
        tables: of each group of the layout: the pages from position 0 on, up to the last position of the step;
            `NULL_PAGE` where none of the step's queries looks any more.
    """

    key: str
    start: int
    ids: tuple[int, ...]
    samples: bool
    tables: tuple[Sequence[int], ...]


class Budget(msgspec.Struct, frozen=True):
    """Tokens that a step computes at most.

    Attributes:
        alone: when no stream decodes: the chunk of a prompt.
        beside: when some stream decodes, decodes included: bounds what the decoding streams lose to a prompt. No less
            than the number of streams that may run, so that beside all decodes a prompt gets on by a token.
    """

    alone: int
    beside: int


class _Stream:
    """One stream, and how far it got."""

    def __init__(self, key: str, ids: Sequence[int], *, owner: str, max_tokens: int, apart: Sequence[int]) -> None:
        self.key = key
        self.ids = list(ids)
        self.max_tokens = max_tokens
        self.done = 0
        self.tables: tuple[list[int], ...] = ()
        self.cached_tokens: int | None = None
        self.wanted_pages = 0  # when it was last looked at, waiting
        self._apart = tuple(apart)
        self._given = len(ids)
        self._digests = [contents.root(owner)]

    @property
    def left(self) -> int:
        """Positions to be computed before the next id can be sampled; 0 once it is complete."""
        return len(self.ids) - self.done if len(self.ids) < self.max_tokens else 0

    def end(self, tokens: int) -> int:
        """Where its slice ends when it may take that many tokens."""
        end = min(self.done + tokens, len(self.ids))
        # Where it gave way, it computes what it was given and what it said apart again, and the last id alone. Other
        # sums of the same numbers would differ in their last bits.
        last = len(self.ids) - 1
        apart = (*self._apart, self._given, last) if self._given <= last else self._apart
        return min((position for position in apart if self.done < position < end), default=end)

    def digest(self, page: int, page_tokens: int) -> bytes:
        """Of the tokens up to the end of that page."""
        for index in range(len(self._digests) - 1, page + 1):
            ids = self.ids[index * page_tokens : (index + 1) * page_tokens]
            self._digests.append(contents.chain(self._digests[index], ids))
        return self._digests[page + 1]


class Scheduler:
    """Shares a pool of pages, and the tokens of each step, among streams.

    `plan` says what to compute; then exactly one of `commit` and `discard` says what became of it.

    Args:
        layout: of the model.
        pages: of the pool, the null page not counted.
        budget: of a step.
        max_running: streams that a step works on at most.
        share_prefixes: whether streams of one owner take computed pages over from one another.

    Attributes:
        preemptions: how often a stream had to give way so far.

    Raises:
        ValueError: a budget that lets nobody get on.
    """

    def __init__(
        self, layout: Layout, *, pages: int, budget: Budget, max_running: int, share_prefixes: bool = True
    ) -> None:
        if max_running < 1 or budget.alone < 1 or budget.beside < max_running:
            raise ValueError(f"{budget} is not enough for {max_running} streams")
        self._layout = layout
        self._page_tokens = layout.page_tokens
        self._step_tokens = max(budget.alone, budget.beside)
        self._sliding = [(group, window) for group, window in enumerate(layout.windows) if window is not None]
        self._pages = pages
        self._pool = PagePool(pages)
        self._budget = budget
        self._max_running = max_running
        self._share_prefixes = share_prefixes
        self._streams: dict[str, _Stream] = {}
        self._running: dict[str, _Stream] = {}  # oldest first
        self._waiting: deque[_Stream] = deque()  # oldest first, all of them newer than any that runs
        self._planned: dict[str, Slice] = {}
        self.preemptions = 0

    @property
    def streams(self) -> int:
        """Streams that were added and not freed."""
        return len(self._streams)

    @property
    def running(self) -> tuple[str, ...]:
        """Keys of the streams that have pages, oldest first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Keys of the streams that have none, oldest first."""
        return tuple(stream.key for stream in self._waiting)

    @property
    def free_pages(self) -> int:
        """Pages that no stream holds."""
        return self._pool.free_pages

    def has_room(self, tokens: int) -> bool:
        """Whether a stream that starts with that many tokens would run from the next plan on, were it added now.

        What it will say is not reserved: see `plan`. Alone, any stream has room that `add` takes.
        """
        if not self._streams:
            return True
        if len(self._streams) >= self._max_running:
            return False
        ahead = sum(self._need(self._soon(stream)) for stream in self._waiting)
        return self._owed() + ahead + self._need(tokens + self._page_tokens) <= self._pool.free_pages

    def add(
        self, key: str, ids: Sequence[int], *, owner: str, max_tokens: int, computed_apart: Sequence[int] = ()
    ) -> None:
        """Takes a stream on.

        Args:
            key: of the stream.
            ids: its prompt and what it has said.
            owner: whose pages it may take over.
            max_tokens: ids that it may reach; then it gets no more slices.
            computed_apart: positions that a slice may begin at or end before, but not cross.

        Raises:
            ValueError: it could never run.
        """
        if key in self._streams:
            raise ValueError(f"there is a stream {key} already")
        if not 0 < len(ids) < max_tokens:
            raise ValueError(f"{len(ids)} ids of {max_tokens} leave nothing to compute")
        if (need := self._need(max_tokens)) > self._pages:
            raise ValueError(f"{max_tokens} tokens take {need} pages; there are {self._pages}")
        stream = _Stream(key, ids, owner=owner, max_tokens=max_tokens, apart=computed_apart)
        self._streams[key] = stream
        self._waiting.append(stream)

    def cached_tokens(self, key: str) -> int:
        """Tokens that a stream, which must be on, did not have to compute when it first ran; 0 before that."""
        return self._streams[key].cached_tokens or 0

    def free(self, key: str) -> None:
        """Forgets a stream, in the middle of a step too; its computed pages can be found until they are needed."""
        stream = self._streams.pop(key, None)
        if stream is None:
            return
        self._planned.pop(key, None)
        if self._running.pop(key, None) is not None:
            self._release(stream)
        else:
            self._waiting.remove(stream)

    # --- a step ----------------------------------------------------------------------------------------------------

    def plan(self) -> list[Slice]:
        """The next step: decodes first, then prompts, each oldest first. Empty when there is nothing to compute.

        A stream is admitted when there are pages for the ids of all that run and for a page of tokens more each. It is
        not promised more: when pages run out the newest one waits again.

        Raises:
            RuntimeError: the last plan was neither committed nor discarded.
        """
        if self._planned:
            raise RuntimeError("the last plan was neither committed nor discarded")
        self._admit()
        decodes = [stream for stream in self._running.values() if stream.left == 1]
        prompts = [stream for stream in self._running.values() if stream.left > 1]
        tokens = self._budget.beside if decodes else self._budget.alone
        for stream in (*decodes, *prompts):
            if not tokens:
                break
            if stream.key not in self._running:
                continue
            start, end = stream.done, stream.end(tokens)
            if self._reserve(stream, end):
                tokens -= end - start
                ids = tuple(stream.ids[start:end])
                self._planned[stream.key] = Slice(stream.key, start, ids, end == len(stream.ids), stream.tables)
        return list(self._planned.values())

    def commit(self, sampled: Mapping[str, int]) -> None:
        """The planned step was computed.

        Args:
            sampled: the next id of each stream whose slice sampled. One without gets no more slices.
        """
        for key, part in self._planned.items():
            stream = self._running[key]
            self._advance(stream, part.start + len(part.ids))
            if part.samples and key in sampled:
                stream.ids.append(sampled[key])
        self._planned.clear()

    def discard(self) -> None:
        """The planned step was not computed; the next plan asks for it again."""
        self._planned.clear()

    def _advance(self, stream: _Stream, done: int) -> None:
        """What is full can be found from now on; what no later query looks at is given back."""
        before, stream.done = stream.done, done
        if self._share_prefixes:
            for index in range(before // self._page_tokens, done // self._page_tokens):
                digest = stream.digest(index, self._page_tokens)
                for group, table in enumerate(stream.tables):
                    self._pool.remember(table[index], (group, digest))
        for group, window in self._sliding:
            table = stream.tables[group]
            for index in range(self._first_page(before, window), self._first_page(done, window)):
                self._pool.release(table[index])
                table[index] = NULL_PAGE

    # --- pages -----------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Lets those that wait run, oldest first, as far as there are pages."""
        if not self._waiting:
            return
        spare = self._pool.free_pages - self._owed()
        while self._waiting and len(self._running) < self._max_running:
            stream = self._waiting[0]
            # It is not looked up again before there is what it lacked: a long prompt has many pages.
            if self._running and stream.wanted_pages > spare:
                return
            stream.tables = self._cached(stream)
            stream.done = len(stream.tables[0]) * self._page_tokens
            found = [page for table in stream.tables for page in table if page != NULL_PAGE]
            idle = sum(not self._pool.references(page) for page in found)
            stream.wanted_pages = self._missing(stream) + idle
            if self._running and stream.wanted_pages > spare:
                return
            spare -= stream.wanted_pages
            for page in found:
                self._pool.retain(page)
            if stream.cached_tokens is None:
                stream.cached_tokens = stream.done
            self._running[stream.key] = self._waiting.popleft()

    def _reserve(self, stream: _Stream, end: int) -> bool:
        """Gives a stream the pages up to a position; False if it is the one that has to give way."""
        count = -(-end // self._page_tokens) - len(stream.tables[0])
        while count * len(stream.tables) > self._pool.free_pages:
            key, newest = self._running.popitem()
            self._planned.pop(key, None)
            self._release(newest)
            self._waiting.appendleft(newest)
            self.preemptions += 1
            if newest is stream:
                return False
        for table in stream.tables:
            table.extend(self._pool.allocate() for _ in range(count))
        return True

    def _release(self, stream: _Stream) -> None:
        """Gives a stream's pages back, the last positions first: a prefix is worth nothing without its beginning."""
        for column in reversed(list(zip(*stream.tables, strict=True))):
            for page in column:
                if page != NULL_PAGE:
                    self._pool.release(page)

    def _owed(self) -> int:
        """Pages that the streams that run will take soon."""
        return sum(map(self._missing, self._running.values()))

    def _missing(self, stream: _Stream) -> int:
        """Pages that a stream which runs lacks for what it will soon hold."""
        tokens = self._soon(stream)
        held = len(stream.tables) * len(stream.tables[0])
        slid = sum(self._first_page(stream.done, window) for _, window in self._sliding)
        return self._need(tokens, left=tokens - stream.done) - (held - slid)

    def _soon(self, stream: _Stream) -> int:
        """Tokens of a stream in a while: a page more than it has."""
        return min(len(stream.ids) + self._page_tokens, stream.max_tokens)

    def _need(self, tokens: int, left: int | None = None) -> int:
        """Pages that a stream of that many tokens holds at most while it computes the last `left` of them, or all."""
        left = tokens if left is None else left
        return self._layout.pages(tokens, step_tokens=min(left, self._step_tokens))

    def _first_page(self, position: int, window: int) -> int:
        """The first page that a query at this position, or a later one, looks at."""
        return max(0, position - window + 1) // self._page_tokens

    # --- prefixes --------------------------------------------------------------------------------------------------

    def _cached(self, stream: _Stream) -> tuple[list[int], ...]:
        """Tables over the longest prefix of a stream that is there, as far as queries after it look at it."""
        pages = (len(stream.ids) - 1) // self._page_tokens  # the last id is computed in any case, for its logits
        for group, window in enumerate(self._layout.windows):
            if window is None:
                pages = next((index for index in range(pages) if self._find(stream, group, index) is None), pages)
        while (gap := self._gap(stream, pages)) is not None:
            pages = gap
        tables = []
        for group, window in enumerate(self._layout.windows):
            first = 0 if window is None else self._first_page(pages * self._page_tokens, window)
            found = [self._find(stream, group, index) for index in range(first, pages)]
            tables.append([NULL_PAGE] * first + [page for page in found if page is not None])
        return tuple(tables)

    def _gap(self, stream: _Stream, pages: int) -> int | None:
        """The last page missing of those that the first query after a prefix looks at through its windows.

        No prefix that is longer than up to there will do: its first query looks at that page too.
        """
        for group, window in self._sliding:
            for index in reversed(range(self._first_page(pages * self._page_tokens, window), pages)):
                if self._find(stream, group, index) is None:
                    return index
        return None

    def _find(self, stream: _Stream, group: int, index: int) -> int | None:
        return self._pool.find((group, stream.digest(index, self._page_tokens)))
