"""An owner's sessions: their list, how many there may be, what leaves memory and what expires."""

from __future__ import annotations

from typing import Any

from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.shelf import EVICT_AFTER_S, MAX_DETACHED
from tests.support.stages import HubClient, HubStage
from tests.support.stories import ASK, client, finish, received, types, wait, welcomed

DAY_S = 86_400.0


async def used(stage: HubStage, *, acknowledge: bool = True) -> str:
    """A session that was used and left; returns its id."""
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    if acknowledge:
        await user.send({"type": "ack"})
    await user.cut()
    return welcome["session_id"]


async def listed(user: HubClient) -> list[dict[str, Any]]:
    await user.send({"type": "list_sessions"})
    return received(user)[-1]["sessions"]


async def test_the_list_has_all_of_an_owners_sessions_and_nobody_elses_the_newest_first():
    stage = HubStage()
    first = await used(stage)
    wait(stage, 10)
    second = await used(stage, acknowledge=False)
    stranger = await stage.connect()
    stage.post(e.Attach(stranger.number, "somebody", "user", m.Hello()))
    stage.post(e.Receive(stranger.number, m.Inference(prompt="secret")))
    user, welcome = await welcomed(stage)
    wait(stage, 10)
    await user.send({"type": "config", "data": {}})
    received(user)
    entries = await listed(user)
    assert [(each["session_id"], each["state"], each["messages"]) for each in entries] == [
        (welcome["session_id"], "attached", 0),
        (second, "detached", 2),
        (first, "detached", 2),
    ]


async def test_a_session_takes_no_disk_and_is_not_listed_before_it_is_used():
    stage = HubStage()
    user, _ = await welcomed(stage)
    assert await listed(user) == []
    assert stage.disk.sessions == {}


async def test_hellos_alone_do_not_fill_the_memory():
    """Of more clients than that who come and go, the first to go are forgotten first."""
    stage = HubStage()
    left = []
    for _ in range(MAX_DETACHED + 2):
        user, welcome = await welcomed(stage)
        left.append(welcome["session_id"])
        await user.cut()
    wait(stage, 1)
    assert [each.id for each in stage.hub._state.sessions.values()] == left[2:]
    for session_id, status in ((left[0], "new"), (left[2], "resumed")):
        _, welcome = await welcomed(stage, session_id=session_id)
        assert welcome["status"] == status


async def test_the_list_outlives_eviction_and_restart():
    stage = HubStage()
    session_id = await used(stage)
    wait(stage, EVICT_AFTER_S)
    user, _ = await welcomed(stage)
    before = await listed(user)
    assert [each["session_id"] for each in before] == [session_id]
    await stage.restart()
    user, _ = await welcomed(stage)
    assert await listed(user) == before


async def test_whoever_asks_before_all_is_known_gets_the_list_then():
    stage = HubStage()
    session_id = await used(stage)
    stage.is_store_stuck = True
    await stage.restart()
    user, _ = await welcomed(stage)
    await user.send({"type": "list_sessions"})
    assert received(user) == []
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert [each["session_id"] for each in received(user)[0]["sessions"]] == [session_id]


async def test_an_ended_session_is_not_listed_again():
    stage = HubStage()
    session_id = await used(stage)
    wait(stage, EVICT_AFTER_S)
    user, _ = await welcomed(stage)
    await user.send({"type": "end_session", "session_id": session_id})
    assert await types(user) == ["session_ended"]
    assert await listed(user) == []


async def test_at_the_limit_the_oldest_detached_session_with_nothing_unacknowledged_is_archived():
    stage = HubStage(max_sessions=3)
    waiting = await used(stage, acknowledge=False)
    wait(stage, 1)
    oldest = await used(stage)
    wait(stage, 1)
    newer = await used(stage)
    wait(stage, 1)
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    assert (await types(user))[0] == "start"
    states = {each["session_id"]: each["state"] for each in await listed(user)}
    assert states == {welcome["session_id"]: "attached", newer: "detached", oldest: "archived", waiting: "detached"}


async def test_an_archived_session_is_live_again_when_it_is_used():
    stage = HubStage(max_sessions=1)
    oldest = await used(stage)
    await used(stage)
    user, welcome = await welcomed(stage, session_id=oldest)
    assert (welcome["status"], welcome["session_id"]) == ("resumed", oldest)
    await user.send({**ASK, "request_id": "b"})
    await finish(stage)
    assert (await types(user))[-1] == "done"
    assert [each["state"] for each in await listed(user)] == ["attached", "archived"]


async def test_when_nothing_can_be_archived_a_new_session_is_refused_and_nothing_of_it_is_kept():
    stage = HubStage(max_sessions=1)
    await used(stage, acknowledge=False)
    user, welcome = await welcomed(stage)
    for message in (ASK, {"type": "config", "data": {}}, {"type": "update_session", "title": "x"}):
        await user.send(message)
        assert await types(user) == ["rate_limited"]
    assert welcome["session_id"] not in stage.disk.sessions


async def test_the_limit_counts_sessions_of_earlier_processes():
    stage = HubStage(max_sessions=1)
    await used(stage, acknowledge=False)
    await stage.restart()
    wait(stage, EVICT_AFTER_S)
    user, _ = await welcomed(stage)
    await user.send(ASK)
    assert await types(user) == ["rate_limited"]


async def test_a_session_without_a_conversation_expires_without_a_trace():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({"type": "config", "data": {"temperature": 0.5}})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    wait(stage, DAY_S - EVICT_AFTER_S - 61)
    assert welcome["session_id"] in stage.disk.sessions
    wait(stage, 61)
    wait(stage, 61)
    assert stage.disk.sessions == {}
    assert stage.disk.deleted == set()
    user, _ = await welcomed(stage)
    assert await listed(user) == []


async def test_a_conversation_lives_until_its_own_time_is_over():
    stage = HubStage(conversation_ttl_d=7)
    session_id = await used(stage)
    wait(stage, EVICT_AFTER_S)
    for _ in range(6):
        wait(stage, DAY_S)
        assert session_id in stage.disk.sessions
    user, _ = await welcomed(stage)
    assert [each["state"] for each in await listed(user)] == ["archived"]
    await user.cut()
    wait(stage, DAY_S)
    assert stage.disk.sessions == {}


async def test_time_counts_over_restarts_but_only_while_the_server_is_up():
    stage = HubStage()
    session_id = await used(stage, acknowledge=False)
    for _ in range(6):
        wait(stage, EVICT_AFTER_S)
        wait(stage, 3.5 * 3600)
        assert stage.store.unfinished() == [session_id]
        stage.clock.now_s += 10 * DAY_S  # the machine is off
        await stage.restart()
    wait(stage, EVICT_AFTER_S)
    wait(stage, 4.5 * 3600)  # what an earlier process left lives an hour longer
    wait(stage, 61)
    assert stage.store.unfinished() == []


async def test_a_client_that_comes_back_while_its_session_is_being_expired_finds_all_of_it():
    stage = HubStage()
    session_id = await used(stage, acknowledge=False)
    wait(stage, EVICT_AFTER_S)
    stage.is_store_stuck = True
    wait(stage, DAY_S)
    wait(stage, 61)
    user = await client(stage, session_id=session_id)
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert [message["type"] for message in received(user)] == ["welcome", "start", "token", "token", "done", "log"]


async def test_requests_of_one_principal_are_limited_over_all_its_sessions():
    stage = HubStage(requests_per_minute=3)
    one, _ = await welcomed(stage)
    two, _ = await welcomed(stage)
    for number, user in enumerate((one, two, one, two)):
        await user.send({"type": "inference", "request_id": f"r{number}", "input_ids": [1]})
    refusal = received(two)[-1]
    assert (refusal["code"], refusal["request_id"], refusal["retryable"]) == ("rate_limited", "r3", True)
    assert refusal["retry_after_ms"] == 20_000
    wait(stage, 20)
    await two.send({"type": "inference", "request_id": "r3", "input_ids": [1]})
    await finish(stage, 4)
    assert received(two)[-1]["type"] == "done"
