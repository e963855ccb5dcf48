"""The hub's rules one by one, each told as a short story on the synchronous stage."""

from __future__ import annotations

import msgspec
import pytest

from llmws.engine_api import Chunk
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.shelf import EVICT_AFTER_S
from tests.support.stages import HubStage
from tests.support.stories import ASK, client, finish, types, welcomed

# --- log before wire -------------------------------------------------------------------------------------------------


async def test_nothing_of_a_request_is_sent_while_the_store_is_silent():
    stage = HubStage()
    user, _ = await welcomed(stage)
    stage.is_store_stuck = True
    await user.send(ASK)
    await finish(stage)
    assert await types(user) == []
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert await types(user) == ["start", "token", "token", "done"]


async def test_an_acceptance_is_told_only_when_it_is_durable():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send(ASK)
    stage.is_store_stuck = True
    await user.send({**ASK, "request_id": "b"})
    assert "queue" not in await types(user)
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert "queue" in await types(user)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"input_ids": [1]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {"user": "x", "images": [{"data": "", "mime": "image/png"}]}}, "prompt.images[0].data"),
        ({"prompt": {"user": "x", "images": [{"data": "e HA=", "mime": "image/png"}]}}, "prompt.images[0].data"),
        ({"prompt": {"user": "x", "images": [{"data": "eHB=", "mime": "image/png"}]}}, "prompt.images[0].data"),
        ({"parent_id": "x"}, "parent_id"),
    ],
)
async def test_a_request_without_a_clear_context_is_refused(change, field):
    user, _ = await welcomed(HubStage())
    await user.send({**ASK, **change})
    error = await user.receive()
    assert (error["code"], error["field"], error["request_id"]) == ("bad_request", field, "a")


async def test_requests_of_a_session_run_in_the_order_in_which_they_were_accepted():
    stage = HubStage()
    user, _ = await welcomed(stage)
    for request_id in ("a", "b", "c"):
        await user.send({**ASK, "request_id": request_id})
    for _ in range(4):
        await finish(stage)
    seen = [await user.receive() for _ in range(len(user.frames))]
    assert [each["request_id"] for each in seen if each["type"] == "start"] == ["a", "b", "c"]
    assert [each["request_id"] for each in seen if each["type"] == "done"] == ["a", "b", "c"]


async def test_a_full_queue_refuses_and_loses_nothing():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    for number in range(welcome["limits"]["max_queue"] + 1):
        await user.send({**ASK, "request_id": f"r{number}"})
    assert (await types(user))[-1] == "queue_full"
    for _ in range(40):
        await finish(stage)
    assert (await types(user)).count("done") == welcome["limits"]["max_queue"]


async def test_a_lost_connection_ends_only_what_asked_for_it():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**ASK, "on_disconnect": "cancel"})
    await user.send({**ASK, "request_id": "b"})
    await user.cut()
    await finish(stage)
    again, _ = await welcomed(stage, session_id=welcome["session_id"])
    ends = [each for each in [await again.receive() for _ in range(len(again.frames))] if each["type"] == "done"]
    assert [(end["request_id"], end["finish_reason"]) for end in ends] == [("a", "cancelled"), ("b", "stop")]


async def test_a_generation_that_nobody_collects_ends_with_its_ttl():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**ASK, "ttl_s": 60})
    await stage.step()
    await user.cut()
    stage.clock.now_s += 61
    stage.post(e.Tick())
    again, _ = await welcomed(stage, session_id=welcome["session_id"])
    ends = [each for each in [await again.receive() for _ in range(len(again.frames))] if each["type"] == "done"]
    assert [end["finish_reason"] for end in ends] == ["interrupted"]


async def test_a_request_that_kills_the_process_again_and_again_is_ended():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    for _ in range(4):
        await stage.restart()
    again, _ = await welcomed(stage, session_id=welcome["session_id"])
    errors = [each for each in [await again.receive() for _ in range(len(again.frames))] if each["type"] == "error"]
    assert [error["code"] for error in errors] == ["model_failed"]


async def test_while_draining_a_new_request_is_sent_away_and_what_runs_goes_on():
    stage = HubStage()
    user, _ = await welcomed(stage)
    late, _ = await welcomed(stage)
    await user.send(ASK)
    stage.post(e.Drain())
    await late.send(ASK)
    assert await late.closed() == 4503
    await finish(stage)
    assert (await types(user))[-1] == "done"


# --- sessions --------------------------------------------------------------------------------------------------------


async def test_the_conversation_and_the_settings_survive_a_kill():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({"type": "config", "data": {"temperature": 0.25}})
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack"})
    await stage.restart()
    again, _ = await welcomed(stage, session_id=welcome["session_id"])
    await types(again)
    await again.send({"type": "history"})
    history = await again.receive()
    assert [(each["role"], each["content"]) for each in history["messages"]] == [("user", "hi"), ("assistant", "Hello")]
    await again.send({"type": "config", "data": {}})
    assert (await again.receive())["config"]["temperature"] == 0.25


async def test_an_idle_session_leaves_memory_and_comes_back():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    last = [await user.receive() for _ in range(len(user.frames))][-1]
    await user.cut()
    stage.clock.now_s += EVICT_AFTER_S + 1
    stage.post(e.Tick())
    observer, _ = await welcomed(stage)
    await observer.send({"type": "get_status"})
    assert (await observer.receive())["sessions"] == 1
    position = {"epoch": last["epoch"], "last_seq": last["seq"] - 1}
    again, resumed = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert resumed["status"] == "resumed"
    assert resumed["epoch"] > last["epoch"]
    assert await again.receive() == last


async def test_messages_that_come_before_a_session_is_open_are_not_lost():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await stage.restart()
    await finish(stage)
    stage.is_store_stuck = True
    eager = await client(stage, session_id="6f1c0000-0000-4000-8000-000000000000")
    await eager.send({**ASK, "request_id": "eager"})
    stage.is_store_stuck = False
    stage.post(e.Tick())
    await finish(stage)
    assert await types(eager) == ["welcome", "start", "token", "token", "done"]
    assert welcome["session_id"]


async def test_when_the_log_cannot_be_written_the_client_is_sent_away_and_nothing_it_saw_is_lost():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await stage.step()
    seen = [await user.receive() for _ in range(len(user.frames))]
    stage.disk.failing.add(welcome["session_id"])
    await stage.step()
    assert await types(user) == ["storage_failed"]
    assert await user.closed() == 4500
    position = {"epoch": seen[-1]["epoch"], "last_seq": seen[-1]["seq"]}
    again, resumed = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert resumed["status"] == "resumed"
    await finish(stage)
    rest = [await again.receive() for _ in range(len(again.frames))]
    assert "".join(each["data"] for each in (*seen, *rest) if each["type"] == "token") == "Hello"


async def test_the_log_stays_while_a_request_is_open_however_much_is_acknowledged():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await user.send({"type": "ack", "seq": 1})
    assert await stage.has_buffer(welcome["session_id"])
    await stage.restart()
    again, _ = await welcomed(stage, session_id=welcome["session_id"])
    await finish(stage)
    assert (await types(again))[-1] == "done"


async def test_a_session_is_said_to_be_gone_when_it_is():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await types(user)
    stage.is_store_stuck = True
    await user.send({"type": "end_session", "session_id": welcome["session_id"]})
    assert await types(user) == []
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert await types(user) == ["session_ended"]


async def test_an_ended_session_is_gone_for_good():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await user.send({"type": "end_session", "session_id": welcome["session_id"]})
    assert (await types(user))[-1] == "session_ended"
    assert await user.closed() == 1000
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert (again["status"], again["reason"]) == ("new", "session_unknown")


async def test_a_session_can_be_ended_from_another_one_of_the_same_owner():
    stage = HubStage()
    user, old = await welcomed(stage)
    await user.send(ASK)
    await user.cut()
    await stage.restart()
    await finish(stage)
    user, _ = await welcomed(stage)
    await user.send({"type": "end_session", "session_id": old["session_id"]})
    await user.send({"type": "end_session", "session_id": old["session_id"]})
    stranger = await stage.connect()
    stage.post(e.Attach(stranger.number, "stranger", "user", m.Hello(session_id=old["session_id"])))
    assert await types(user) == ["session_ended", "bad_request"]
    assert (await stranger.receive())["reason"] == "session_unknown"
    stage.post(e.Receive(stranger.number, m.EndSession(session_id="00000000-0000-4000-8000-000000000002")))
    assert await types(stranger) == ["bad_request"]


@pytest.mark.parametrize("kind", ["list_peers"])
async def test_what_comes_in_a_later_version_is_refused(kind):
    user, _ = await welcomed(HubStage())
    await user.send({"type": kind})
    assert await types(user) == ["unknown_type"]


async def test_a_hello_behind_the_end_of_a_session_gets_a_new_one():
    """Both come while the session is still being opened; the second must not be attached to what is deleted."""
    stage = HubStage()
    user, old = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack"})
    await stage.restart()
    stage.is_store_stuck = True
    first = await client(stage, session_id=old["session_id"])
    await first.send({"type": "end_session", "session_id": old["session_id"]})
    second = await client(stage, session_id=old["session_id"])
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert (await types(first))[-1] == "session_ended"
    assert (await second.receive())["reason"] == "session_unknown"
    await second.send(ASK)
    await finish(stage)
    assert (await types(second))[-1] == "done"


async def test_a_snapshot_holds_the_whole_text_of_what_ended_behind_the_floor():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack", "seq": 2})
    again, _ = await welcomed(
        stage, session_id=welcome["session_id"], resume={"epoch": welcome["epoch"], "last_seq": 1}
    )
    (request,) = (await again.receive())["requests"]
    assert (request["state"], request["text"], request["next_index"]) == ("done", "Hello", 4)


async def test_a_confirmed_floor_survives_a_kill():
    """The newer owner's ack comes within the quarter of a second in which the floor is not recorded again."""
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await user.send({**ASK, "request_id": "b"})
    await finish(stage)
    await user.send({"type": "ack", "seq": 2})
    await user.send({"type": "ack", "seq": 4})
    await user.cut()
    await stage.restart()
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["floor_seq"] == 4


async def test_records_of_another_version_send_the_client_away_and_end_nothing_else():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    records = stage.disk.sessions[welcome["session_id"]].records["buffer"]
    records[0] = msgspec.structs.replace(records[0], value=b'{"request_id":"a"}')
    await stage.restart()
    again = await client(stage, session_id=welcome["session_id"])
    assert await types(again) == ["storage_failed"]
    assert await again.closed() == 4500
    _, fresh = await welcomed(stage)
    assert fresh["status"] == "new"


async def test_a_refused_ack_changes_no_window():
    stage = HubStage()
    user, _ = await welcomed(stage, window=1)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack", "seq": 99, "window": 99})
    assert await types(user) == ["start", "bad_request"]


async def test_an_observers_ack_moves_only_its_own_window():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    observer, _ = await welcomed(stage, session_id=welcome["session_id"], mode="observe", window=2)
    assert await types(observer) == ["start", "token"]
    await observer.send({"type": "ack", "seq": 2})
    assert await types(observer) == ["ack_received", "token", "done", "caught_up"]
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["floor_seq"] == 0


async def test_what_the_engine_still_says_of_a_cancelled_request_is_ignored():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send(ASK)
    key = stage.engine.keys[0]
    await user.send({"type": "cancel", "request_id": "a"})
    await user.send({**ASK, "request_id": "b"})
    stage.post(Chunk(key=key, index=0, ids=(1,), text="late"))
    await finish(stage)
    assert await types(user) == ["start", "done", "start", "token", "token", "done"]


async def test_at_most_eight_observers():
    stage = HubStage()
    _, welcome = await welcomed(stage)
    for _ in range(8):
        await welcomed(stage, session_id=welcome["session_id"], mode="observe")
    ninth = await client(stage, session_id=welcome["session_id"], mode="observe")
    assert await types(ninth) == ["rate_limited"]
    assert await ninth.closed() == 1013


async def test_a_congested_connection_is_served_from_the_file_later():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({"type": "inference", "request_id": "n", "input_ids": [9], "config": {"max_new_tokens": 50}})
    stage.post(e.Congested(user.number))
    for _ in range(60):
        await stage.step()
    assert await types(user) == ["start"]
    stage.post(e.Drained(user.number))
    assert (await types(user)).count("token") == 50
