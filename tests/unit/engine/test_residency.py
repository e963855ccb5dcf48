"""Who may stay, who goes, whose pool closes: the numbers are gigabytes of a device that has 100."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.engine.residency import Claim, Room, pool_budget, room_for_model, room_for_streams


def claim(name, held, need, *, pool=0, is_busy=False, devices=("cuda:0",), budget=100):
    return Claim(
        name=name,
        devices=devices,
        budget_bytes=budget,
        held_bytes=held,
        need_bytes=need,
        pool_bytes=pool,
        is_busy=is_busy,
    )


# --- models ----------------------------------------------------------------------------------------------------------


def test_models_that_fit_together_with_the_largest_need_stay_together():
    assert room_for_model(claim("new", 30, 10), [claim("a", 30, 30)]) == Room()


def test_one_byte_more_and_the_other_one_goes():
    assert room_for_model(claim("new", 30, 10), [claim("a", 40, 31)]) == Room(unload=("a",))


def test_the_least_recently_used_go_and_no_more_than_must():
    others = [claim("old", 20, 10), claim("older still used", 20, 10), claim("newest", 20, 10)]

    assert room_for_model(claim("new", 50, 5), others) == Room(unload=("old",))
    assert room_for_model(claim("new", 60, 5), others) == Room(unload=("old", "older still used"))


def test_an_idle_model_goes_before_a_busy_one_that_was_used_earlier():
    others = [claim("busy", 40, 10, is_busy=True), claim("idle", 40, 10)]

    assert room_for_model(claim("new", 30, 20), others) == Room(unload=("idle",))


def test_while_one_that_must_go_is_busy_all_wait():
    others = [claim("busy", 40, 10, is_busy=True), claim("idle", 40, 10)]

    assert room_for_model(claim("new", 80, 10), others) == Room(unload=("idle", "busy"), waits=True)


def test_a_pool_that_takes_the_place_of_the_weights_closes():
    others = [claim("a", 20, 10, pool=70)]

    assert room_for_model(claim("new", 10, 10), others) == Room()
    assert room_for_model(claim("new", 11, 10), others) == Room(close=("a",))


def test_a_pool_with_streams_on_is_waited_for():
    others = [claim("a", 20, 10, pool=70, is_busy=True)]

    assert room_for_model(claim("new", 11, 10), others) == Room(close=("a",), waits=True)


def test_models_on_other_devices_do_not_matter():
    others = [claim("a", 90, 10, devices=("cuda:1",))]

    assert room_for_model(claim("new", 90, 10), others) == Room()


@pytest.mark.parametrize(("mine", "theirs"), [(("cuda:0",), ("cuda:0", "cuda:1")), (("cuda:0", "cuda:1"), ("cuda:1",))])
def test_a_model_that_is_spread_over_devices_shares_them_with_nobody(mine, theirs):
    assert room_for_model(claim("new", 1, 1, devices=mine), [claim("a", 1, 1, devices=theirs)]) == Room(unload=("a",))


# --- streams ---------------------------------------------------------------------------------------------------------


def test_an_idle_neighbours_pool_closes_when_the_need_does_not_fit_beside_it():
    model = claim("m", 20, 30)

    assert room_for_streams(model, [claim("a", 20, 10, pool=30)]) == Room()
    assert room_for_streams(model, [claim("a", 20, 10, pool=31)]) == Room(close=("a",))
    assert room_for_streams(model, [claim("a", 20, 10, pool=31, is_busy=True)]) == Room(close=("a",), waits=True)


def test_alone_a_model_takes_everything():
    assert pool_budget(claim("m", 20, 30), []) == 80


def test_the_need_of_a_neighbour_is_spared_where_that_leaves_enough():
    model = claim("m", 20, 30)

    assert pool_budget(model, [claim("a", 20, 10)]) == 50
    assert pool_budget(model, [claim("a", 20, 10, pool=15)]) == 45
    assert pool_budget(model, [claim("a", 20, 40)]) == 30


# --- at any time -----------------------------------------------------------------------------------------------------


@st.composite
def arrivals(draw):
    """Models one after another, each of which fits alone, and whether streams of those there are on."""
    made = []
    for number in range(draw(st.integers(1, 8))):
        held = draw(st.integers(1, 99))
        made.append(claim(f"m{number}", held, draw(st.integers(1, 100 - held))))
    return made


@given(arrivals(), st.data())
def test_whoever_is_there_can_always_serve(models, data):
    """Residents and open pools are within the budget, a promised context fits once the others are idle."""
    residents = []
    for newcomer in models:
        residents = [msgspec.structs.replace(each, is_busy=data.draw(st.booleans())) for each in residents]
        busy = {each.name for each in residents if each.is_busy}
        room = room_for_model(newcomer, residents)
        assert room.waits == bool(busy & {*room.unload, *room.close})
        residents = [each for each in residents if each.name not in room.unload]
        residents = _closed(residents, room.close)
        residents.append(newcomer)
        assert sum(each.held_bytes + each.pool_bytes for each in residents) <= 100

        index = data.draw(st.integers(0, len(residents) - 1))
        model = msgspec.structs.replace(residents.pop(index), pool_bytes=0)
        residents = _closed(residents, room_for_streams(model, residents).close)
        pool = pool_budget(model, residents)
        assert pool >= model.need_bytes
        residents.append(msgspec.structs.replace(model, pool_bytes=pool))
        assert sum(each.held_bytes + each.pool_bytes for each in residents) <= 100


def _closed(residents, names):
    return [msgspec.structs.replace(each, pool_bytes=0) if each.name in names else each for each in residents]
