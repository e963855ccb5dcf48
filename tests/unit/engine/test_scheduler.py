"""The scheduler, told as transcripts: each step as `key start:end`, with a `+` where the next id is wanted."""

import pytest

from llmws.engine.layout import Layout
from llmws.engine.scheduler import Budget, Scheduler

LETTERS = list(range(100, 200))
OTHERS = list(range(200, 300))
FULL, SLIDING = (None,), (None, 6)


def scheduler(*, windows=FULL, pages=100, alone=8, beside=5, max_running=4, share_prefixes=True):
    """Pages of four tokens."""
    layout = Layout(windows, ((0, 0),), 1, 1, 1, 1, 4)
    budget = Budget(alone=alone, beside=beside)
    return Scheduler(layout, pages=pages, budget=budget, max_running=max_running, share_prefixes=share_prefixes)


def add(it, key, ids, *, owner="ann", max_tokens=40, computed_apart=()):
    it.add(key, ids, owner=owner, max_tokens=max_tokens, computed_apart=computed_apart)


def told(plan):
    return [f"{part.key} {part.start}:{part.start + len(part.ids)}{'+' * part.samples}" for part in plan]


def step(it, token=7):
    """One step in which every stream whose slice samples gets the same token."""
    plan = it.plan()
    it.commit({part.key: token for part in plan if part.samples})
    return told(plan)


def run(it, key, token=7):
    """Steps until a stream got its next token."""
    for _ in range(50):
        plan = it.plan()
        it.commit({part.key: token for part in plan if part.samples})
        if any(part.key == key and part.samples for part in plan):
            return
    pytest.fail(f"{key} starves")


# --- the order of a step -------------------------------------------------------------------------------------------


def test_a_prompt_is_computed_in_chunks_and_then_decoded():
    it = scheduler()
    add(it, "a", LETTERS[:10])

    assert [step(it) for _ in range(4)] == [["a 0:8"], ["a 8:10+"], ["a 10:11+"], ["a 11:12+"]]


def test_a_slice_has_the_ids_and_the_pages_of_its_positions():
    it = scheduler()
    add(it, "a", LETTERS[:10])

    (first,) = it.plan()
    assert (first.ids, first.tables) == (tuple(LETTERS[:8]), ([1, 2],))
    it.commit({})
    (second,) = it.plan()
    assert (second.ids, second.tables) == (tuple(LETTERS[8:10]), ([1, 2, 3],))
    it.commit({"a": 7})
    (third,) = it.plan()
    assert (third.ids, third.tables) == ((7,), ([1, 2, 3],))


def test_decodes_go_first_and_prompts_share_what_they_leave():
    it = scheduler()
    add(it, "a", LETTERS[:2])
    step(it)
    add(it, "b", OTHERS[:6])
    add(it, "c", OTHERS[6:12])

    assert step(it) == ["a 2:3+", "b 0:4"]
    assert step(it) == ["a 3:4+", "b 4:6+", "c 0:2"]
    assert step(it) == ["a 4:5+", "b 6:7+", "c 2:5"]
    assert step(it) == ["a 5:6+", "b 7:8+", "c 5:6+"], "its last position counts as a decode"


def test_beside_as_many_decodes_as_there_may_be_a_prompt_gets_on_by_a_token():
    it = scheduler(beside=4)
    for key in "abc":
        add(it, key, [ord(key)])
    step(it)
    add(it, "d", OTHERS[:9])

    assert step(it) == ["a 1:2+", "b 1:2+", "c 1:2+", "d 0:1"]


def test_no_more_streams_run_than_may():
    it = scheduler(max_running=2)
    for key in "abc":
        add(it, key, [ord(key)])

    assert step(it) == ["a 0:1+", "b 0:1+"]
    assert (it.running, it.waiting, it.streams) == (("a", "b"), ("c",), 3)
    it.free("a")
    assert step(it) == ["b 1:2+", "c 0:1+"]


def test_no_slice_crosses_a_position_that_is_computed_apart():
    """A stream that is continued takes its prompt and its answer in the forwards that it took before."""
    it = scheduler()
    add(it, "a", LETTERS[:14], computed_apart=(10, 13))

    assert [step(it) for _ in range(5)] == [["a 0:8"], ["a 8:10"], ["a 10:13"], ["a 13:14+"], ["a 14:15+"]]


def test_a_stream_that_reached_its_length_or_got_no_token_is_left_alone():
    it = scheduler()
    add(it, "a", [1], max_tokens=3)
    add(it, "b", [2])
    it.plan()
    it.commit({"a": 7})

    assert step(it) == ["a 1:2+"]
    assert step(it) == []
    assert it.running == ("a", "b")


# --- what becomes of a step ----------------------------------------------------------------------------------------


def test_a_step_that_failed_is_planned_again():
    it = scheduler()
    add(it, "a", LETTERS[:10])
    step(it)
    free = it.free_pages
    failed = told(it.plan())

    it.discard()

    assert told(it.plan()) == failed == ["a 8:10+"]
    assert it.free_pages == free - 1, "its page is taken once"


def test_a_plan_has_to_be_settled_before_the_next_one():
    it = scheduler()
    add(it, "a", [1])
    it.plan()

    with pytest.raises(RuntimeError, match="neither committed nor discarded"):
        it.plan()


def test_a_stream_can_be_freed_in_the_middle_of_a_step():
    it = scheduler()
    add(it, "a", [1])
    add(it, "b", [2])
    it.plan()

    it.free("a")
    it.commit({"a": 7, "b": 7})

    assert step(it) == ["b 1:2+"]
    assert it.streams == 1


def test_freeing_what_is_not_there_is_nothing():
    it = scheduler()
    add(it, "a", [1])
    it.free("b")
    it.free("a")
    it.free("a")

    assert (it.streams, it.free_pages, it.plan()) == (0, 100, [])


# --- prefixes ------------------------------------------------------------------------------------------------------


def test_the_next_turn_computes_no_full_page_again():
    it = scheduler()
    add(it, "first", LETTERS[:10])
    for _ in range(5):
        step(it)
    it.free("first")
    add(it, "second", [*LETTERS[:10], 7, 7, 7, 7, *OTHERS[:4]])

    assert step(it) == ["second 12:18+"]
    assert it.cached_tokens("second") == 12


def test_the_last_id_is_computed_in_any_case():
    it = scheduler()
    add(it, "a", LETTERS[:8])
    run(it, "a")
    add(it, "b", LETTERS[:8])

    assert step(it) == ["a 8:9+", "b 4:8+"]


def test_a_prefix_is_shared_while_its_first_stream_runs():
    it = scheduler()
    add(it, "a", LETTERS[:9])
    run(it, "a")
    add(it, "b", LETTERS[:9])

    one, other = it.plan()

    assert told([one, other]) == ["a 9:10+", "b 8:9+"]
    assert (one.tables, other.tables) == (([1, 2, 3],), ([1, 2, 4],))


def test_equal_prompts_that_are_computed_at_once_keep_pages_of_their_own():
    it = scheduler(alone=20)
    add(it, "a", LETTERS[:5])
    add(it, "b", LETTERS[:5])

    assert [part.tables for part in it.plan()] == [([1, 2],), ([3, 4],)]


def test_nobody_is_given_the_pages_of_somebody_else():
    it = scheduler()
    add(it, "a", LETTERS[:8], owner="ann")
    run(it, "a")
    it.free("a")
    add(it, "b", LETTERS[:8], owner="bob")

    assert step(it) == ["b 0:8+"]
    assert it.cached_tokens("b") == 0


def test_prefixes_are_not_shared_where_that_is_off():
    it = scheduler(share_prefixes=False)
    add(it, "a", LETTERS[:8])
    run(it, "a")
    it.free("a")
    add(it, "b", LETTERS[:8])

    assert step(it) == ["b 0:8+"]


def test_what_failed_before_it_was_computed_cannot_be_found():
    it = scheduler()
    add(it, "a", LETTERS[:8])
    it.plan()
    it.discard()
    it.free("a")
    add(it, "b", LETTERS[:8])

    assert step(it) == ["b 0:8+"]


def test_a_prefix_loses_its_end_before_its_beginning():
    it = scheduler(pages=6)
    add(it, "a", LETTERS[:16], max_tokens=17)
    run(it, "a")
    it.free("a")
    add(it, "other", OTHERS[:13], owner="bob", max_tokens=16)
    run(it, "other")
    it.free("other")
    add(it, "again", LETTERS[:16], max_tokens=17)

    assert step(it) == ["again 8:16+"]


# --- windows -------------------------------------------------------------------------------------------------------


def test_a_sliding_group_gives_back_what_no_later_query_sees():
    it = scheduler(windows=SLIDING, alone=4)
    add(it, "a", LETTERS[:12])

    seen = []
    for _ in range(4):
        (part,) = it.plan()
        seen.append([list(table) for table in part.tables])
        it.commit({"a": 7} if part.samples else {})

    assert seen == [
        [[1], [2]],
        [[1, 3], [2, 4]],
        [[1, 3, 5], [2, 4, 6]],
        [[1, 3, 5, 7], [0, 4, 6, 8]],
    ]
    assert it.free_pages == 94


def test_a_prefix_needs_of_a_sliding_group_what_the_next_query_sees():
    it = scheduler(windows=SLIDING)
    add(it, "a", LETTERS[:17])
    run(it, "a")
    it.free("a")
    add(it, "b", LETTERS[:17])

    (part,) = it.plan()

    assert told([part]) == ["b 16:17+"]
    full, sliding = part.tables
    assert [page > 0 for page in full] == [True] * 5
    assert [page > 0 for page in sliding] == [False, False, True, True, True]


def test_where_a_window_has_a_gap_the_prefix_ends_before_it():
    """The third page is still held, but the second one, which the next query sees too, slid out and was needed."""
    it = scheduler(windows=(6,), pages=8, alone=4, beside=4)
    add(it, "a", LETTERS[:13])
    for _ in range(4):
        it.plan()
        it.commit({})
    add(it, "other", OTHERS[:24], owner="bob")
    for _ in range(6):
        step(it)
    it.free("other")
    add(it, "b", LETTERS[:13])

    assert it.free_pages == 6
    assert step(it) == ["b 0:4"]


# --- a full pool ---------------------------------------------------------------------------------------------------


def test_a_stream_waits_until_there_are_pages_for_what_it_starts_with():
    it = scheduler(pages=8, alone=20)
    add(it, "a", LETTERS[:10], max_tokens=12)
    assert it.has_room(16)
    assert not it.has_room(17)
    add(it, "b", OTHERS[:17], owner="bob", max_tokens=24)
    add(it, "c", OTHERS[:2], owner="cid", max_tokens=4)

    assert step(it) == ["a 0:10+"]
    assert (it.running, it.waiting) == (("a",), ("b", "c")), "nobody overtakes"
    it.free("a")
    assert step(it) == ["b 0:17+", "c 0:2+"]


def test_room_counts_those_that_wait_already():
    it = scheduler(pages=10, max_running=4, beside=4)
    add(it, "a", LETTERS[:8])
    assert it.has_room(24)
    add(it, "b", OTHERS[:8])
    assert it.has_room(12)
    assert not it.has_room(13)
    add(it, "c", [1])
    add(it, "d", [2])
    assert not it.has_room(1), "there are as many as may run"


def test_the_newest_stream_gives_way_and_comes_back_before_newer_ones():
    """It goes on where it was: what it lost is computed again, as it had been, and nothing is sampled twice."""
    it = scheduler(pages=5, alone=20)
    add(it, "old", LETTERS[:7], max_tokens=20)
    add(it, "new", OTHERS[:3], max_tokens=20)
    for _ in range(6):
        step(it)
    add(it, "newest", [1], max_tokens=20)

    assert step(it) == ["old 12:13+"]
    assert (it.running, it.waiting, it.preemptions) == (("old",), ("new", "newest"), 1)
    for _ in range(5):
        step(it)
    it.free("old")
    assert [step(it) for _ in range(4)] == [["new 0:3"], ["new 3:8"], ["new 8:9+"], ["new 9:10+"]]


def test_a_stream_that_gave_way_finds_what_nobody_needed_of_its_pages():
    it = scheduler(pages=5, alone=20)
    add(it, "old", LETTERS[:7], max_tokens=20)
    add(it, "new", OTHERS[:3], max_tokens=20)
    for _ in range(7):
        step(it)
    assert it.waiting == ("new",)
    it.free("old")

    assert [step(it), step(it)] == [["new 4:8"], ["new 8:9+"]]
    assert it.cached_tokens("new") == 0, "it counts when a stream first runs"


def test_a_stream_that_gives_way_has_no_part_in_the_step():
    """The newest one decodes, so its slice is planned first; then the prompt of an older one needs its pages."""
    it = scheduler(pages=8, beside=3, max_running=3)
    add(it, "old", LETTERS[:2], max_tokens=20)
    step(it)
    add(it, "mid", OTHERS[:11], owner="bob", max_tokens=20)
    add(it, "new", [1], owner="cid", max_tokens=20)
    told_steps = [step(it) for _ in range(9)]

    assert told_steps[-2] == ["old 9:10+", "new 7:8+", "mid 7:8"]
    assert told_steps[-1] == ["old 10:11+", "mid 8:9"]
    assert it.waiting == ("new",)


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "max_tokens", "reason"),
    [
        ([], 10, "0 ids of 10 leave nothing to compute"),
        ([1, 2], 2, "2 ids of 2 leave nothing to compute"),
        ([1], 401, "401 tokens take 101 pages; there are 100"),
    ],
)
def test_a_stream_that_could_never_run_is_refused(ids, max_tokens, reason):
    it = scheduler()

    with pytest.raises(ValueError, match=reason):
        add(it, "a", ids, max_tokens=max_tokens)

    assert it.streams == 0


def test_a_key_names_one_stream():
    it = scheduler()
    add(it, "a", [1])

    with pytest.raises(ValueError, match="there is a stream a already"):
        add(it, "a", [1])


@pytest.mark.parametrize("numbers", [{"alone": 0}, {"beside": 3}, {"max_running": 0, "beside": 0}])
def test_a_budget_under_which_somebody_could_starve_is_refused(numbers):
    with pytest.raises(ValueError, match="is not enough for"):
        scheduler(**numbers)
