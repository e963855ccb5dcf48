"""What goes wrong at the edges: damaged logs, late failures, slow disks, long lives; a story each."""

from __future__ import annotations

import json

import msgspec
import pytest

from llmws.session import events as e
from llmws.session.rules import Rules
from llmws.session.shelf import EVICT_AFTER_S, RETRY_S
from llmws.store_api import Open
from tests.support.stages import HubStage
from tests.support.stories import (
    ASK,
    NUMBERS,
    client,
    finish,
    history,
    lose_records,
    noted,
    received,
    seqs,
    text,
    types,
    wait,
    welcomed,
)

DAY_S = 86_400.0


async def test_a_lost_parent_does_not_kill_the_server():
    stage = HubStage(max_running=1)
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    first = (await history(user))[-1]["id"]
    await user.send({**NUMBERS, "request_id": "busy"})
    await user.send({"type": "inference", "request_id": "b", "prompt": "and", "parent_id": first})
    lose_records(stage, welcome["session_id"], "conversation", 2)
    await stage.restart()
    await finish(stage, 110)
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    ended = [each["request_id"] for each in received(back) if each["type"] in ("done", "error") and "seq" in each]
    assert ended == ["a", "busy", "b"]


async def test_the_next_start_dies_too():
    stage = HubStage(max_running=1)
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    question, _answer = await history(user)
    await user.send({"type": "inference", "request_id": "b", "parent_id": question["id"]})
    lose_records(stage, welcome["session_id"], "conversation", 2)
    lose_records(stage, welcome["session_id"], "buffer", 2)  # the prompt and the start: not yet durable
    for _ in range(2):
        await stage.restart()
        await finish(stage, 5)


async def test_a_session_whose_creation_failed_is_not_opened_again_for_ever():
    stage = HubStage()
    user, _ = await welcomed(stage)
    carry_out = stage.store._create
    stage.store._create = lambda op: stage.store._fail(op.session_id, "the disk failed: full")
    await user.send(ASK)
    stage.store._create = carry_out
    assert user.close_code == 4500
    await user.cut()
    wait(stage, RETRY_S)  # Unknown: there is nothing on the disk
    opens = noted(stage, Open)
    for _ in range(20):
        wait(stage, RETRY_S)
    assert (opens, stage.hub._shelf._retries) == ([], {})


async def test_an_answer_torn_off_the_conversation_is_told_again_from_the_buffer():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    lose_records(stage, welcome["session_id"], "conversation", 1)
    await stage.restart()
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    assert [each["content"] for each in await history(back)] == ["hi", "Hello"]


async def test_a_question_cancelled_in_the_queue_does_not_become_the_parent_of_what_runs():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({"type": "inference", "request_id": "a", "prompt": "first"})
    await user.send({"type": "inference", "request_id": "b", "prompt": "second"})
    await user.send({"type": "cancel", "request_id": "b"})
    await finish(stage, 5)
    messages = {each["content"]: each for each in await history(user)}
    assert messages["first"]["parent_id"] is None


async def test_a_question_cancelled_in_the_queue_does_not_set_the_system_message():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({"type": "inference", "request_id": "a", "prompt": "first"})
    await user.send({"type": "inference", "request_id": "b", "prompt": {"user": "x", "system": "be rude"}})
    await user.send({"type": "cancel", "request_id": "b"})
    await finish(stage, 5)
    session = next(iter(stage.hub._state.sessions.values()))
    assert session.conversation.settings.system is None


async def test_a_session_over_its_quota_takes_no_more_disk():
    stage = HubStage(rules=Rules(max_unacknowledged_bytes=65536), requests_per_minute=10**6)
    user, welcome = await welcomed(stage)
    for number in range(200):
        await user.send(
            {"type": "inference", "request_id": f"r{number}", "messages": [{"role": "user", "content": "x" * 100_000}]}
        )
        await user.send({"type": "cancel", "request_id": f"r{number}"})
    size = sum(len(each.value) for each in stage.disk.sessions[welcome["session_id"]].records["buffer"])
    assert size < 2 * 65536 + 100_000, size


async def test_the_welcome_lists_no_request_whose_record_is_not_safe():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({"type": "config", "data": {}})
    await user.send({"type": "update_session", "title": "kept"})
    stage.is_store_stuck = True
    await user.send(ASK)
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["requests"] == []
    await stage.restart()
    stage.is_store_stuck = False
    stage.post(e.Tick())
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["requests"] == []


async def test_asking_again_for_a_cancelled_request_waits_for_its_record():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({"type": "update_session", "title": "kept"})
    received(user)
    stage.is_store_stuck = True
    await user.send(ASK)
    await user.send({"type": "cancel", "request_id": "a"})
    await user.send(ASK)
    assert received(user) == []


async def test_history_shows_only_what_is_safe():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    stage.engine.step()
    stage.post(e.Tick())
    stage.is_store_stuck = True
    await finish(stage, 5)
    shown = await history(user)
    await stage.restart()
    stage.is_store_stuck = False
    stage.post(e.Tick())
    await finish(stage, 5)
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    kept = {each["id"] for each in await history(back)}
    assert {each["id"] for each in shown} <= kept


def unreadable(stage: HubStage, session_id: str) -> None:
    """Another version wrote a record of it."""
    kept = stage.disk.sessions[session_id]
    kept.records["conversation"][0] = msgspec.structs.replace(kept.records["conversation"][0], value=b'{"v2":1}')


async def test_whoever_ends_a_session_that_cannot_be_opened_gets_an_answer():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack"})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    unreadable(stage, welcome["session_id"])
    user, _ = await welcomed(stage)
    await user.send({"type": "end_session", "session_id": welcome["session_id"]})
    assert received(user) != []


async def test_a_session_of_another_version_is_not_opened_every_minute():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    unreadable(stage, welcome["session_id"])
    wait(stage, DAY_S)
    opens = noted(stage, Open)
    for _ in range(60):
        wait(stage, 61)
    assert len(opens) <= 2


async def test_messages_that_wait_for_an_opening_are_bounded():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack"})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    stage.is_store_stuck = True
    back = await client(stage, session_id=welcome["session_id"])
    for number in range(5000):
        await back.send({"type": "inference", "request_id": f"r{number}", "prompt": "x"})
    assert sum(map(len, stage.hub._shelf._opening.values())) < 1000


async def test_a_request_whose_end_could_not_be_written_goes_on_without_its_client():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage, 1)
    await user.cut()
    stage.disk.failing.add(welcome["session_id"])
    await finish(stage, 1)
    assert welcome["session_id"] not in stage.hub._state.sessions
    wait(stage, RETRY_S)
    wait(stage, RETRY_S)
    await finish(stage, 5)
    kinds = [
        json.loads(each.value).get("type")
        for each in stage.disk.sessions[welcome["session_id"]].records["buffer"]
        if each.kind == "event"
    ]
    assert "done" in kinds, kinds


async def test_after_a_kill_between_the_two_logs_both_tell_the_same():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage, 1)
    stage.is_store_stuck = True
    await user.send({"type": "cancel", "request_id": "a"})
    del stage.store._queue[1:]  # killed after the first write(2) of the two
    stage.store.take()
    stage.is_store_stuck = False
    await stage.restart()
    await finish(stage, 6)
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    seen = received(back)
    answer = (await history(back))[-1]
    done = next(each for each in seen if each["type"] == "done")
    assert (answer["content"], answer["finish_reason"]) == (text(seen), done["finish_reason"])


async def test_the_time_to_the_first_token_is_not_that_of_a_pause():
    stage = HubStage(rules=Rules(max_unacknowledged_events=16))
    user, _ = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    seen = []
    await finish(stage, 20)
    seen += received(user)
    assert seen[-1]["code"] == "paused"
    wait(stage, 3000)
    for _ in range(10):
        await user.send({"type": "ack", "seq": seqs(seen)[-1]})
        await finish(stage, 10)
        seen += received(user)
    done = next(each for each in seen if each["type"] == "done")
    assert done["timing"]["ttft_ms"] < 1000, done["timing"]


async def test_a_pause_does_not_count_in_what_others_are_told_to_wait():
    stage = HubStage(rules=Rules(max_unacknowledged_events=16), max_running=1)
    user, _ = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 20)
    wait(stage, 3000)
    await user.send({"type": "cancel", "request_id": "a"})
    assert stage.hub._turns._mean_s < 60, stage.hub._turns._mean_s


async def test_a_session_that_could_not_be_deleted_is_still_listed():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    other, _ = await welcomed(stage)
    stage.store._delete = lambda op: stage.store._fail(op.session_id, "the disk failed")
    await other.send({"type": "end_session", "session_id": welcome["session_id"]})
    assert other.close_code == 4500
    user, _ = await welcomed(stage)
    await user.send({"type": "list_sessions"})
    assert [each["session_id"] for each in received(user)[-1]["sessions"]] == [welcome["session_id"]]


async def test_a_session_whose_expiry_failed_expires_later():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({"type": "config", "data": {"temperature": 0.5}})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    delete = stage.store._delete
    stage.store._delete = lambda op: stage.store._fail(op.session_id, "the disk failed")
    wait(stage, DAY_S)
    wait(stage, 61)
    stage.store._delete = delete
    for _ in range(10):
        wait(stage, DAY_S)
    assert stage.disk.sessions == {}


async def test_sessions_expire_on_a_machine_that_is_switched_off_often():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    for _ in range(70):  # 58 hours of uptime
        for _ in range(40):
            wait(stage, 60)
        stage.post(e.Shutdown())
        await stage.restart()
        wait(stage, EVICT_AFTER_S)
        wait(stage, EVICT_AFTER_S)
    assert stage.store.unfinished() == []


async def test_whoever_was_taken_over_is_told_nothing_more():
    stage = HubStage()
    one, first = await welcomed(stage)
    await one.send(ASK)
    await finish(stage)
    user, welcome = await welcomed(stage)
    await user.send({"type": "config", "data": {}})
    received(user)
    stage.is_store_stuck = True
    await user.send({"type": "end_session", "session_id": first["session_id"]})
    await client(stage, session_id=welcome["session_id"])
    assert user.close_code == 4409
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert received(user) == []


async def test_the_limit_holds_before_the_survey_has_ended():
    stage = HubStage(max_sessions=1)
    user, _ = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack"})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    stage.is_store_stuck = True
    await stage.restart()
    user, _ = await welcomed(stage)
    await user.send(ASK)
    stage.is_store_stuck = False
    stage.post(e.Tick())
    await finish(stage)
    await user.send({"type": "list_sessions"})
    states = [each["state"] for each in received(user)[-1]["sessions"]]
    assert sorted(states) == ["archived", "attached"]


async def test_a_session_attached_at_a_shutdown_was_left_then():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({"type": "config", "data": {"temperature": 0.5}})
    for _ in range(59):
        wait(stage, 60)
    stage.post(e.Shutdown())
    assert stage.disk.sessions[welcome["session_id"]].meta.idle_since_s == pytest.approx(stage.uptime_s, abs=1)


async def test_a_switch_of_the_model_does_not_get_round_the_limit():
    stage = HubStage(max_sessions=1)
    user, _ = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    user, welcome = await welcomed(stage)
    await user.send({"type": "switch_model", "name": "llmws-guide"})
    assert welcome["session_id"] not in stage.disk.sessions


async def test_retries_do_not_queue_up_behind_a_slow_disk():
    stage = HubStage()
    lost = []
    for _ in range(6):
        user, welcome = await welcomed(stage)
        await user.send({**NUMBERS, "request_id": "a"})
        await finish(stage, 2)
        await user.cut()
        lost.append(welcome["session_id"])
    stage.disk.failing.update(lost)
    await finish(stage, 1)
    stage.is_store_stuck = True
    for _ in range(100):
        wait(stage, RETRY_S)
    assert len(stage.hub._shelf._unasked) <= len(lost)


async def test_a_request_refused_for_want_of_room_takes_nothing_of_the_allowance():
    stage = HubStage(max_sessions=1, requests_per_minute=2)
    user, _ = await welcomed(stage)
    await user.send({**ASK, "input_ids": [1], "prompt": None})
    await finish(stage)
    received(user)
    full, _ = await welcomed(stage)
    for number in range(5):
        await full.send({"type": "inference", "request_id": f"x{number}", "prompt": "hi"})
    await user.send({"type": "inference", "request_id": "b", "input_ids": [1]})
    await finish(stage)
    assert "rate_limited" not in await types(user)


async def test_a_session_that_expires_is_the_first_to_leave_memory():
    stage = HubStage()
    user, expired = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    wait(stage, DAY_S)  # opened, and its buffer dropped
    assert stage.store.unfinished() == []
    wait(stage, 0.25)
    assert expired["session_id"] not in stage.hub._state.sessions


async def test_an_expiry_does_not_keep_other_sessions_in_memory():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    wait(stage, DAY_S - EVICT_AFTER_S - 1)
    user, _ = await welcomed(stage)
    await user.cut()
    wait(stage, 61)
    assert stage.store.unfinished() == []
    wait(stage, EVICT_AFTER_S - 1)
    assert list(stage.hub._state.sessions) == []


async def test_a_client_that_comes_and_goes_without_a_new_event_is_never_reset():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    last = [each for each in received(user) if "epoch" in each and "seq" in each][-1]
    await user.cut()
    for visit in range(70):
        wait(stage, EVICT_AFTER_S)
        user, again = await welcomed(
            stage, session_id=welcome["session_id"], resume={"epoch": last["epoch"], "last_seq": last["seq"]}
        )
        assert (visit, again["status"], again.get("reason")) == (visit, "resumed", None)
        await user.cut()


async def test_a_log_of_acknowledged_prompts_is_compacted():
    stage = HubStage(requests_per_minute=10**6)
    user, welcome = await welcomed(stage)
    asked = done = 0
    while asked < 100:
        while asked - done < 3:  # so that the buffer is never dropped
            asked += 1
            messages = [{"role": "user", "content": "x" * 100_000}]
            await user.send({"type": "inference", "request_id": f"r{asked}", "messages": messages})
        await stage.step()
        seen = received(user)
        done += sum(each["type"] == "done" for each in seen)
        if seqs(seen):
            await user.send({"type": "ack", "seq": seqs(seen)[-1]})
        stage.clock.now_s += 0.3
    size = sum(len(each.value) for each in stage.disk.sessions[welcome["session_id"]].records["buffer"])
    assert size < 20 * 100_000, size


async def test_imports_are_limited_too():
    stage = HubStage(requests_per_minute=3)
    user, _ = await welcomed(stage)
    messages = [{"role": "user", "content": "x"}]
    for _ in range(50):
        await user.send({"type": "import", "messages": messages})
    assert "rate_limited" in await types(user)


async def test_a_session_that_is_used_again_is_live_after_a_kill_too():
    stage = HubStage(max_sessions=1)
    ids = []
    for _ in range(2):
        user, welcome = await welcomed(stage)
        ids.append(welcome["session_id"])
        await user.send(ASK)
        await finish(stage)
        await user.send({"type": "ack"})
        await user.cut()
    wait(stage, EVICT_AFTER_S)
    user, _ = await welcomed(stage, session_id=ids[0])  # archived for the second
    await user.send({**ASK, "request_id": "b"})
    await finish(stage)
    await stage.restart()
    user, _ = await welcomed(stage)
    await user.send({"type": "list_sessions"})
    states = {each["session_id"]: each["state"] for each in received(user)[-1]["sessions"]}
    assert states[ids[0]] == "detached"


async def test_a_late_failure_of_a_close_does_not_hurt_who_has_come_since():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    stage.disk.failing.add(welcome["session_id"])
    stage.is_store_stuck = True
    wait(stage, EVICT_AFTER_S)  # Close, which will fail
    first = await client(stage, session_id=welcome["session_id"])  # Open
    failed, opened = stage.store.take()
    stage.post(failed)
    stage.post(opened)
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert first.close_code is None
    assert received(first)[0]["status"] == "resumed"


async def test_an_observer_whose_whole_window_was_compacted_away_is_sent_to_resume():
    stage = HubStage(rules=Rules(compact_bytes=1024, tail_bytes=0))
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 62)
    seen = received(user)
    watcher, _ = await welcomed(stage, session_id=welcome["session_id"], mode="observe", window=5)
    assert seqs(received(watcher)) == [1, 2, 3, 4, 5]
    await user.send({**NUMBERS, "request_id": "open"})
    await user.send({"type": "ack", "seq": seqs(seen)[-1]})
    await watcher.send({"type": "ack", "seq": 5, "window": 10})
    assert watcher.close_code == 4510


async def test_an_acknowledgement_that_was_confirmed_survives_a_kill():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 20)
    received(user)
    for seq in (5, 6, 15):
        await user.send({"type": "ack", "seq": seq})
    wait(stage, 0.3)
    confirmed = [message["floor_seq"] for message in received(user) if message["type"] == "ack_received"]
    assert confirmed == [5, 15]
    await stage.restart()
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["floor_seq"] == 15


async def test_a_branch_that_is_cancelled_while_it_waits_takes_nothing_from_the_conversation():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({**ASK, "request_id": "q0"})
    await finish(stage)
    await user.send({"type": "inference", "request_id": "p1", "prompt": "and"})
    await user.send({"type": "inference", "request_id": "p2", "prompt": "other", "parent_id": ""})
    await user.send({"type": "inference", "request_id": "p3", "prompt": "then"})
    await user.send({"type": "cancel", "request_id": "p2"})
    await finish(stage, 8)
    follows = {each["id"]: each for each in await history(user)}
    last = list(follows.values())[-1]
    line = []
    while last is not None:
        line.append(last["content"])
        last = follows.get(last["parent_id"])
    assert line[::-1] == ["hi", "Hello", "and", "Hello", "then", "Hello"]


async def test_that_a_part_of_the_conversation_is_lost_is_told():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack"})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    stage.store._answers = []
    opened = stage.store._open_session

    def damaged(session_id: str) -> None:
        opened(session_id)
        stage.store._answers[-1] = msgspec.structs.replace(stage.store._answers[-1], is_conversation_damaged=True)

    stage.store._open_session = damaged
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["status"] == "resumed"
    assert "conversation_damaged" in await types(back)
