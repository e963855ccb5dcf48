"""What a client learns of its requests' places."""

from __future__ import annotations

from llmws.session.notices import EVERY_S
from tests.support.stages import GUIDE, OTHER, HubStage
from tests.support.stories import ASK, NUMBERS, finish, received, wait, welcomed


def queue(messages):
    return [(each["request_id"], each["position"]) for each in messages if each["type"] == "queue"]


async def test_places_are_told_at_acceptance_and_when_they_change():
    stage = HubStage()
    user, _ = await welcomed(stage)
    for request_id in "abc":
        await user.send({**ASK, "request_id": request_id})
    assert queue(received(user)) == [("b", 1), ("c", 2)]
    wait(stage, EVERY_S)
    assert queue(received(user)) == []
    await finish(stage)
    wait(stage, EVERY_S)
    assert queue(received(user)) == [("c", 1)]


async def test_a_place_in_line_behind_other_sessions_is_told_with_a_guess_at_the_time():
    stage = HubStage(max_running=1)
    users = [(await welcomed(stage))[0] for _ in range(4)]
    await users[0].send({**NUMBERS, "request_id": "a"})
    await users[1].send({**NUMBERS, "request_id": "b"})
    await users[2].send({**ASK, "request_id": "c"})
    await users[3].send({**ASK, "request_id": "d"})
    assert [queue(received(user)) for user in users] == [[], [("b", 1)], [("c", 2)], [("d", 3)]]
    stage.clock.now_s += 30
    await finish(stage, 62)
    wait(stage, EVERY_S)
    assert queue(received(users[2])) == [("c", 1)]
    notice = next(each for each in received(users[3]) if each["type"] == "queue")
    assert (notice["position"], notice["eta_ms"]) == (2, 60_000)


async def test_a_first_request_has_no_place_in_line_while_the_model_is_being_loaded():
    stage = HubStage(models=(GUIDE, OTHER))
    stage.is_engine_stuck = True
    users = [(await welcomed(stage))[0] for _ in range(2)]
    for user in users:
        await user.send({**ASK, "model": "other"})
    wait(stage, EVERY_S)
    assert [received(user) for user in users] == [[], []]


async def test_only_those_who_wait_for_the_same_model_go_before():
    stage = HubStage(models=(GUIDE, OTHER), max_running=1)
    models = [None, "other", None, "other", "llmws-guide"]
    users = [(await welcomed(stage))[0] for _ in models]
    for user, model in zip(users, models, strict=True):
        await user.send({**NUMBERS, "request_id": "a", "model": model})
    assert [queue(received(user)) for user in users] == [[], [], [("a", 1)], [("a", 1)], [("a", 2)]]
