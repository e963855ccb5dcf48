"""The scheduler under everything that clients, a full pool and a failing device can do to it, in any order.

The pool is modelled as what was written where. Whatever a slice's queries can see through its tables must be what
computing the stream anew, alone, would have put there. Mutants that this kills are listed in docs/mutants.md.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmws.engine.layout import Layout
from llmws.engine.pages import NULL_PAGE
from llmws.engine.scheduler import Budget, Scheduler, Slice

PAGE_TOKENS = 4
MAX_TOKENS = 40
WINDOWS = [(None,), (None, 6), (9,), (None, None, 3, 9)]
OWNERS = st.sampled_from(["ann", "bob"])
DOCUMENTS = [[token >> bit & 1 for token in range(MAX_TOKENS)] for bit in range(3)]
"""What prompts are made of; the first two tokens are all alike."""
LENGTHS = st.integers(1, MAX_TOKENS - 1)


class Stream:
    """What a client knows of its stream."""

    def __init__(self, key: str, owner: str, ids: list[int], max_tokens: int, apart: list[int]) -> None:
        self.key = key
        self.owner = owner
        self.ids: list[int] = []
        self.prefixes: list[int] = []
        self.max_tokens = max_tokens
        self.apart = apart
        self.done: int | None = None
        self.tables: tuple = ()
        for token in ids:
            self.append(token)

    def append(self, token: int) -> None:
        self.prefixes.append(hash((self.prefixes[-1] if self.prefixes else 0, token)))
        self.ids.append(token)

    def answer(self) -> int:
        """Equal streams go on alike, as far as their owners are alike."""
        return self.prefixes[-1] % 2


class SchedulerMachine(RuleBasedStateMachine):
    """Two owners, who ask much the same, on a pool that is never large enough."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[str, Stream] = {}
        self.conversations: list[Stream] = []
        self.planned: list[Slice] = []
        self.written: dict[tuple[int, int], tuple[str, int, int]] = {}
        self.computed: set[tuple[str, int]] = set()
        self.promised: set[str] = set()
        self.count = 0

    @initialize(
        windows=st.sampled_from(WINDOWS),
        spare=st.sampled_from([0, 2, 8, 20, 60]),
        max_running=st.sampled_from([1, 2, 3, 4, 6]),
        budget=st.tuples(st.integers(0, 3), st.integers(0, 20)),
        share=st.sampled_from([True, True, True, False]),
    )
    def begin(self, windows: tuple, spare: int, max_running: int, budget: tuple[int, int], share: bool) -> None:
        self.windows = windows
        self.max_running = max_running
        self.share = share
        beside = max_running + budget[0]
        self.budget = Budget(alone=beside + budget[1], beside=beside)
        layout = Layout(windows, ((0, 0),), 1, 1, 1, 1, PAGE_TOKENS)
        self.pages = layout.pages(MAX_TOKENS, step_tokens=self.budget.alone) + spare
        self.scheduler = Scheduler(
            layout, pages=self.pages, budget=self.budget, max_running=max_running, share_prefixes=share
        )

    # --- clients ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.streams) < 8)
    @rule(
        document=st.sampled_from(DOCUMENTS),
        length=LENGTHS,
        owner=OWNERS,
        more=LENGTHS,
        apart=st.sampled_from([[], [1], [7, 8], [30, 11, 3]]),
    )
    def ask(self, document: list[int], length: int, owner: str, more: int, apart: list[int]) -> None:
        self.add(document[:length], owner, more, apart)

    @precondition(lambda self: not self.streams)
    @rule(lengths=st.lists(st.integers(1, 16), min_size=4, max_size=6))
    def rush(self, lengths: list[int]) -> None:
        """Many at once whose answers are long."""
        for number, length in enumerate(lengths):
            self.add(DOCUMENTS[number % 3][:length], "ann", MAX_TOKENS, [])

    @precondition(lambda self: self.conversations and len(self.streams) < 8)
    @rule(turn=st.tuples(st.integers(1, 6), st.integers(0, 8), st.integers(0, 20)), owner=OWNERS, more=LENGTHS)
    def go_on(self, turn: tuple[int, int, int], owner: str, more: int) -> None:
        """The next turn of a conversation, or an earlier one told differently; sometimes by somebody else."""
        back, unsaid, said = turn
        old = self.conversations[-back:][0]
        ids = old.ids[: max(1, len(old.ids) - unsaid)] + DOCUMENTS[2][:said]
        self.add(ids[: MAX_TOKENS - 1], owner, more, [])

    def add(self, ids: list[int], owner: str, more: int, apart: list[int]) -> None:
        self.count += 1
        key = f"s{self.count}"
        if self.scheduler.has_room(len(ids)) and not self.planned:
            self.promised.add(key)
        stream = Stream(key, owner, ids, min(len(ids) + more, MAX_TOKENS), apart)
        self.streams[key] = stream
        self.scheduler.add(key, ids, owner=owner, max_tokens=stream.max_tokens, computed_apart=apart)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.free(data.draw(st.sampled_from(list(self.streams))))

    def free(self, key: str) -> None:
        self.conversations.append(self.streams.pop(key))
        self.promised.discard(key)
        self.scheduler.free(key)
        self.scheduler.free(key)

    # --- the device ------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.planned)
    @rule()
    def plan(self) -> None:
        self.planned = self.scheduler.plan()
        assert bool(self.planned) == bool(self.streams)
        if self.streams:
            assert next(iter(self.streams)) in {part.key for part in self.planned}, "the oldest stream starves"
        running = self.scheduler.running
        assert (*running, *self.scheduler.waiting) == tuple(self.streams), "somebody overtook somebody"
        assert self.promised <= set(running), "there was no room"
        self.promised.clear()
        for stream in self.streams.values():
            if stream.key not in running:
                stream.done, stream.tables = None, ()
        self.check_budget()
        for part in self.planned:
            self.check_slice(part)

    def check_budget(self) -> None:
        is_decode = [part.samples and len(part.ids) == 1 for part in self.planned]
        tokens = sum(len(part.ids) for part in self.planned)
        assert tokens <= (self.budget.beside if any(is_decode) else self.budget.alone)
        assert len(self.planned) <= len(self.scheduler.running) <= self.max_running
        ages = list(self.streams)
        order = [(not decode, ages.index(part.key)) for decode, part in zip(is_decode, self.planned, strict=True)]
        assert order == sorted(order)

    def check_slice(self, part: Slice) -> None:
        stream = self.streams[part.key]
        end = part.start + len(part.ids)
        assert part.ids == tuple(stream.ids[part.start : end])
        assert part.ids
        assert part.samples == (end == len(stream.ids))
        assert not any(part.start < boundary < end for boundary in stream.apart)
        if stream.done is None:
            prefix = (stream.owner, stream.prefixes[part.start - 1])
            assert part.start == 0 or (self.share and prefix in self.computed)
        else:
            assert part.start == stream.done, "computed twice"
        stream.tables = part.tables
        assert self.scheduler.cached_tokens(part.key) < len(stream.ids)

    @precondition(lambda self: self.planned)
    @rule()
    def compute(self) -> None:
        """The step is written as a whole, also what was cancelled meanwhile; then everybody looks back."""
        for part in self.planned:
            stream = self.streams.get(part.key)
            if stream is not None:
                self.write(part, stream)
            else:
                self.spoil(part)
        sampled = {}
        for part in self.planned:
            if (stream := self.streams.get(part.key)) is not None:
                self.look_back(part, stream)
                stream.done = part.start + len(part.ids)
                self.computed.update((stream.owner, prefix) for prefix in stream.prefixes[: stream.done])
                if part.samples:
                    sampled[part.key] = stream.answer()
                    stream.append(stream.answer())
            else:
                sampled[part.key] = 1
        self.planned = []
        self.scheduler.commit(sampled)
        for key in sampled:
            if key in self.streams and len(self.streams[key].ids) == self.streams[key].max_tokens:
                self.free(key)

    @precondition(lambda self: self.planned)
    @rule()
    def fail(self) -> None:
        """The step fails, when it has written no matter what."""
        for part in self.planned:
            self.spoil(part)
        self.planned = []
        self.scheduler.discard()

    @precondition(lambda self: not self.planned and self.streams)
    @rule(steps=st.sampled_from([3, 10, 30, 60]))
    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.plan()
            if not self.planned:
                break
            self.compute()
            self.nothing_is_held_twice()

    def write(self, part: Slice, stream: Stream) -> None:
        for position in range(part.start, part.start + len(part.ids)):
            for group, table in enumerate(part.tables):
                page, offset = table[position // PAGE_TOKENS], position % PAGE_TOKENS
                assert page != NULL_PAGE
                assert not any(
                    page in other for each in self.planned if each.key != part.key for other in each.tables
                ), "written while shared"
                self.written[page, offset] = (stream.owner, group, stream.prefixes[position])

    def spoil(self, part: Slice) -> None:
        for position in range(part.start, part.start + len(part.ids)):
            for table in part.tables:
                self.written[table[position // PAGE_TOKENS], position % PAGE_TOKENS] = ("nobody", 0, 0)

    def look_back(self, part: Slice, stream: Stream) -> None:
        """Everything that some query of the slice sees is there."""
        for group, (window, table) in enumerate(zip(self.windows, part.tables, strict=True)):
            first = 0 if window is None else max(0, part.start - window + 1)
            for position in range(first, part.start + len(part.ids)):
                seen = self.written[table[position // PAGE_TOKENS], position % PAGE_TOKENS]
                assert seen == (stream.owner, group, stream.prefixes[position])

    @invariant()
    def nothing_is_held_twice(self) -> None:
        """Pages are free or held; and what slid out of a window is free."""
        held: set[int] = set()
        for stream in self.streams.values():
            pages = [page for table in stream.tables for page in table if page != NULL_PAGE]
            assert len(pages) == len(set(pages))
            held.update(pages)
            for window, table in zip(self.windows, stream.tables, strict=False):
                if window is not None and stream.done is not None:
                    first = max(0, stream.done - window + 1) // PAGE_TOKENS
                    assert set(table[:first]) <= {NULL_PAGE}
                    assert NULL_PAGE not in table[first:]
        if self.count:
            assert self.scheduler.free_pages + len(held) <= self.pages

    def teardown(self) -> None:
        for key in list(self.streams):
            self.free(key)
        if self.count:
            assert self.scheduler.free_pages == self.pages
            assert self.scheduler.streams == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(stateful_step_count=40)
