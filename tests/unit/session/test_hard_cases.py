"""What happens when two things come together that each are simple: one story a case, on the synchronous stage.

The store's own hard cases (a torn log, a retired key, a full disk) are told in tests/unit/store.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from llmws.session import events as e
from llmws.session.rules import Rules
from llmws.session.shelf import EVICT_AFTER_S
from llmws.store_api import Compact, Read
from tests.support.stages import HubClient, HubStage
from tests.support.stories import (
    ASK,
    NUMBERS,
    client,
    finish,
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
YEAR_S = 365 * DAY_S


async def answers(stage: HubStage, user: HubClient, count: int, *, first: int = 1) -> list[dict[str, Any]]:
    """The user asks for that many answers of sixty tokens and reads them."""
    seen: list[dict[str, Any]] = []
    for number in range(first, first + count):
        await user.send({**NUMBERS, "request_id": f"n{number}"})
        await finish(stage, 62)
        seen += received(user)
    return seen


async def compact(stage: HubStage, user: HubClient) -> None:
    """The user asks for enough, and acknowledges enough of it, that the log is written anew; a request stays open."""
    seen = await answers(stage, user, 14)
    await user.send({**NUMBERS, "request_id": "open"})
    await user.send({"type": "ack", "seq": seqs(seen)[-1]})


async def test_01_an_observer_overtaken_by_a_compaction_is_sent_to_resume_and_never_gets_a_wrong_byte():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    done = noted(stage, Compact)
    first = await answers(stage, user, 1)
    watcher, _ = await welcomed(stage, session_id=welcome["session_id"], mode="observe", window=5)
    seen = received(watcher)
    await compact(stage, user)
    assert len(done) == 1
    assert received(watcher) == []
    await watcher.send({"type": "ack", "seq": 5, "window": 1000})
    assert await types(watcher) == ["ack_received"]
    assert watcher.close_code == 4510
    assert seqs(seen) == [1, 2, 3, 4, 5]
    assert seen == first[:5]


async def test_01_a_read_that_the_compaction_did_not_overtake_is_served_whole():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    done = noted(stage, Compact)
    watcher, _ = await welcomed(stage, session_id=welcome["session_id"], mode="observe", window=0)
    seen = await answers(stage, user, 14)
    await user.send({**NUMBERS, "request_id": "open"})
    stage.is_store_stuck = True
    await watcher.send({"type": "ack", "seq": 0, "window": 10_000})
    await user.send({"type": "ack", "seq": seqs(seen)[-1]})
    assert len(done) == 1
    stage.is_store_stuck = False
    stage.post(e.Tick())
    got = received(watcher)
    # What comes after the read is still in memory.
    assert [message for message in got if "epoch" in message][: len(seen)] == seen
    assert watcher.close_code is None


async def test_02_a_takeover_while_a_pump_reads_the_file_leaves_nothing_to_the_old_connection():
    stage = HubStage()
    old, welcome = await welcomed(stage)
    all_events = await answers(stage, old, 8)
    await old.cut()
    stage.is_store_stuck = True
    old, _ = await welcomed(stage, session_id=welcome["session_id"])
    new = await client(stage, session_id=welcome["session_id"], resume={"epoch": welcome["epoch"], "last_seq": 3})
    assert old.close_code == 4409
    before = len(old.frames)
    stage.is_store_stuck = False
    stage.post(e.Tick())
    assert len(old.frames) == before
    assert [message for message in received(new) if "epoch" in message][1:] == all_events[3:]


async def test_03_a_pump_hands_over_to_live_without_a_gap_or_a_duplicate():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    seen = await answers(stage, user, 8)
    await user.cut()
    back = await client(stage, session_id=welcome["session_id"], window=100)
    await back.send({**NUMBERS, "request_id": "live"})
    got: list[dict[str, Any]] = []
    for _ in range(62):
        await stage.step()
        fresh = [message for message in received(back) if "seq" in message and message["type"] != "ack_received"]
        got += fresh
        if fresh:
            await back.send({"type": "ack", "seq": fresh[-1]["seq"], "window": 100})
    wait(stage, 1)
    for _ in range(20):
        got += [message for message in received(back) if "epoch" in message and "seq" in message]
        await back.send({"type": "ack", "seq": got[-1]["seq"]})
    assert seqs(got) == list(range(1, len(got) + 1))
    assert got[: len(seen)] == seen
    assert got[-1]["type"] == "done"


async def test_04_a_session_does_not_expire_while_a_generation_runs_nor_before_its_result_could_be_fetched():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await stage.step()
    await user.cut()
    wait(stage, 2 * DAY_S)
    await finish(stage, 62)
    wait(stage, DAY_S - 3600)
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["status"] == "resumed"
    assert received(back)[-2]["type"] == "done"
    await back.cut()
    wait(stage, EVICT_AFTER_S)
    wait(stage, DAY_S)
    wait(stage, 61)
    _, late = await welcomed(stage, session_id=welcome["session_id"])
    assert (late["status"], late["reason"]) == ("new", "session_unknown")
    assert welcome["session_id"] not in stage.disk.sessions


async def test_04_what_is_not_acknowledged_expires_but_the_conversation_stays():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    wait(stage, DAY_S)
    wait(stage, 61)
    assert stage.store.unfinished() == []
    back, again = await welcomed(
        stage, session_id=welcome["session_id"], resume={"epoch": welcome["epoch"], "last_seq": 2}
    )
    assert (again["status"], again["reason"]) == ("reset", "below_floor")
    received(back)
    await back.send({"type": "history"})
    assert [each["content"] for each in received(back)[0]["messages"]] == ["hi", "Hello"]


async def test_05_a_generation_that_nobody_collects_ends_when_its_ttl_is_over():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a", "ttl_s": 60})
    await stage.step()
    await user.cut()
    wait(stage, 59)
    await stage.step()
    wait(stage, 1)
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    seen = received(back)
    assert text(seen) == "1 2 "
    assert seen[-2]["finish_reason"] == "interrupted"


async def test_06_a_request_is_known_after_its_events_were_compacted_also_in_the_next_process():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    done = noted(stage, Compact)
    await compact(stage, user)
    assert len(done) == 1
    received(user)
    await user.send({**NUMBERS, "request_id": "n1"})
    assert [(each["code"], each["terminal"]) for each in received(user)] == [("duplicate", "done")]
    await stage.restart()
    user, _ = await welcomed(stage, session_id=welcome["session_id"])
    received(user)
    await user.send({**NUMBERS, "request_id": "n1"})
    assert [(each["code"], each["terminal"]) for each in received(user)] == [("duplicate", "done")]
    await user.send({"type": "inference", "request_id": "n1", "prompt": "another body"})
    assert await types(user) == ["conflict"]


SMALL = Rules(max_unacknowledged_events=20)


async def test_07_a_request_that_the_quota_has_paused_stays_paused_over_a_restart_and_goes_on_when_there_is_room():
    stage = HubStage(rules=SMALL)
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 62)
    seen = received(user)
    assert seen[-1]["code"] == "paused"
    assert len(seen) == 22
    await stage.restart()
    await finish(stage, 5)
    position = {"epoch": welcome["epoch"], "last_seq": 22}
    user, again = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert (again["status"], again["head_seq"]) == ("resumed", 22)
    assert again["requests"] == [{"request_id": "a", "state": "running"}]
    received(user)
    for _ in range(9):
        fresh = received(user)
        seen += [message for message in fresh if "epoch" in message]
        await user.send({"type": "ack", "seq": seen[-1]["seq"]})
        await finish(stage, 20)
    codes = [message["code"] for message in seen if message["type"] == "log"]
    assert codes[:3] == ["paused", "resumed_after_restart", "paused"]
    assert set(codes[3:]) <= {"paused", "continued"}
    assert text(seen) == "".join(f"{number} " for number in range(1, 61))
    assert seqs(seen) == list(range(1, len(seen) + 1))
    assert seen[-1]["type"] == "done"


async def test_07_a_restart_while_paused_counts_as_a_disconnect():
    stage = HubStage(rules=SMALL)
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a", "on_disconnect": "cancel"})
    await finish(stage, 62)
    assert received(user)[-1]["code"] == "paused"
    await stage.restart()
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["requests"] == []
    assert received(back)[-2]["finish_reason"] == "cancelled"


async def test_08_two_restarts_within_one_request_change_nothing_in_its_text():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    for _ in range(2):
        await finish(stage, 10)
        await stage.restart()
    await finish(stage, 62)
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    seen = received(back)
    assert text(seen) == "".join(f"{number} " for number in range(1, 61))
    notices = [message["from_index"] for message in seen if message.get("code") == "resumed_after_restart"]
    assert notices == [10, 20]


async def test_08_a_request_that_kills_the_process_three_times_is_ended():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "poison"})
    for _ in range(4):
        await stage.restart()
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    seen = [message for message in received(back) if message.get("request_id") == "poison"]
    codes = [message.get("code", message["type"]) for message in seen]
    assert codes == ["start", *["resumed_after_restart"] * 3, "model_failed"]
    await back.send(ASK)
    await finish(stage)
    assert (await types(back))[-1] == "done"


async def test_09_a_crash_between_the_last_token_and_done_ends_the_answer_once_and_unchanged():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    before = received(user)
    lose_records(stage, welcome["session_id"], "buffer", 1)
    lose_records(stage, welcome["session_id"], "conversation", 2)
    await stage.restart()
    await finish(stage)
    position = {"epoch": welcome["epoch"], "last_seq": before[-2]["seq"]}
    back, again = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert again["status"] == "resumed"
    seen = received(back)
    assert [message["type"] for message in seen] == ["log", "done", "log"]
    assert (seen[1]["total_tokens"], seen[1]["text_sha256"]) == (4, before[-1]["text_sha256"])


async def test_10_the_log_wins_over_a_meta_that_is_older():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    assert stage.disk.sessions[welcome["session_id"]].meta.last_seq == 0
    await stage.restart()
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert (again["head_seq"], again["requests"]) == (4, [])
    received(back)
    await back.send(ASK)
    assert received(back) == [{"type": "queue", "request_id": "a", "position": 0}]


@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
async def test_11_a_wall_clock_that_jumps_expires_nothing_and_breaks_no_position(jump_s):
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    received(user)
    await user.cut()
    stage.clock.wall_s += jump_s
    wait(stage, EVICT_AFTER_S)
    wait(stage, 3 * 3600)
    await stage.restart()
    wait(stage, 3 * 3600)
    position = {"epoch": welcome["epoch"], "last_seq": 2}
    back, again = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert again["status"] == "resumed"
    assert again["epoch"] > welcome["epoch"]
    assert seqs(received(back)) == [3, 4]


async def test_12_when_the_log_cannot_be_written_the_client_is_told_and_later_gets_what_the_disk_has():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 5)
    seen = received(user)
    stage.disk.failing.add(welcome["session_id"])
    await stage.step()
    assert await types(user) == ["storage_failed"]
    assert user.close_code == 4500
    position = {"epoch": welcome["epoch"], "last_seq": seen[-1]["seq"]}
    back, again = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert again["status"] == "resumed"
    await finish(stage, 62)
    assert text(seen + received(back)) == "".join(f"{number} " for number in range(1, 61))


async def test_12_a_generation_goes_on_after_a_failure_of_the_disk_also_when_nobody_comes_back():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 5)
    stage.disk.failing.add(welcome["session_id"])
    await stage.step()
    wait(stage, 10)
    await finish(stage, 62)
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["requests"] == []
    assert text(received(back)) == "".join(f"{number} " for number in range(1, 61))


async def test_13_an_acknowledgement_beyond_what_was_sent_is_refused_and_moves_nothing():
    stage = HubStage()
    user, welcome = await welcomed(stage, window=2)
    await user.send(ASK)
    await finish(stage)
    assert len(received(user)) == 2
    await user.send({"type": "ack", "seq": 3})
    assert [(each["code"], each["field"]) for each in received(user)] == [("bad_request", "seq")]
    again = await client(stage, session_id=welcome["session_id"])
    assert received(again)[0]["floor_seq"] == 0


async def test_14_a_bare_acknowledgement_in_the_middle_of_an_answer_reaches_to_the_last_end_only():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({**NUMBERS, "request_id": "b"})
    await finish(stage, 5)
    received(user)
    await user.send({"type": "ack"})
    assert received(user) == [{"type": "ack_received", "seq": 4, "floor_seq": 4}]


async def test_15_with_a_window_of_zero_for_ever_the_queue_is_served_up_to_the_quota_and_then_ends_in_buffer_full():
    stage = HubStage(rules=SMALL, max_pause_s=100.0)
    user, welcome = await welcomed(stage, window=0)
    for number in range(17):
        await user.send({**NUMBERS, "request_id": f"n{number}"})
    assert [message["type"] for message in received(user)] == ["queue"] * 15 + ["error"]
    await finish(stage, 62)
    assert received(user) == []
    for _ in range(16):
        wait(stage, 100)
    assert seqs(received(user)) == []
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["requests"] == []
    ends = [message["code"] for message in received(back) if message["type"] == "error"]
    assert ends == ["buffer_full"] * 16


async def test_16_a_client_that_names_no_window_gets_everything_at_once_unless_its_socket_is_full():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 30)
    stage.post(e.Congested(user.number))
    await finish(stage, 62)
    first = received(user)
    stage.post(e.Drained(user.number))
    rest = received(user)
    assert (len(first), len(rest)) == (31, 31)
    assert seqs(first + rest) == list(range(1, 63))


async def test_18_after_a_full_acknowledgement_by_one_device_another_with_an_older_position_gets_a_snapshot():
    stage = HubStage()
    phone, welcome = await welcomed(stage)
    await phone.send(ASK)
    await finish(stage)
    laptop, _ = await welcomed(stage, session_id=welcome["session_id"])
    await laptop.send({"type": "ack", "seq": 4})
    phone, again = await welcomed(
        stage, session_id=welcome["session_id"], resume={"epoch": welcome["epoch"], "last_seq": 1}
    )
    assert (again["status"], again["reason"]) == ("reset", "below_floor")
    snapshot, caught_up = received(phone)
    assert (snapshot["as_of"], snapshot["requests"], caught_up["code"]) == (4, [], "caught_up")
    await phone.send({"type": "history"})
    assert [each["content"] for each in received(phone)[0]["messages"]] == ["hi", "Hello"]


async def test_19_the_floor_after_a_kill_is_one_that_was_acknowledged_and_every_position_above_it_resumes():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 20)
    await user.send({"type": "ack", "seq": 5})
    await user.send({"type": "ack", "seq": 15})  # within 250 ms of the first: not in the log yet
    await stage.restart()
    position = {"epoch": welcome["epoch"], "last_seq": 15}
    back, again = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert (again["status"], again["floor_seq"]) == ("resumed", 5)
    assert seqs(received(back))[0] == 16


async def test_20_a_crash_between_done_and_the_conversation_loses_no_turn_and_doubles_none():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    lose_records(stage, welcome["session_id"], "conversation", 2)
    await stage.restart()
    await stage.restart()
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    received(back)
    await back.send({"type": "history"})
    assert [each["content"] for each in received(back)[0]["messages"]] == ["hi", "Hello"]


async def test_21_a_hello_to_a_session_that_is_being_recovered_waits_and_so_does_what_follows_it():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    stage.is_store_stuck = True
    await stage.restart()
    back = await client(stage, session_id=welcome["session_id"])
    await back.send({**ASK, "request_id": "b"})
    gone = await client(stage, session_id=welcome["session_id"])
    await gone.cut()
    assert (received(back), received(gone)) == ([], [])
    stage.is_store_stuck = False
    stage.post(e.Tick())
    await finish(stage)
    seen = received(back)
    assert [message["type"] for message in seen[:6]] == ["welcome", "start", "token", "token", "done", "log"]
    assert [message["request_id"] for message in seen[6:]] == ["b"] * 4
    assert received(gone) == []


async def test_22_an_old_copy_of_a_session_is_noticed_by_a_client_that_saw_more():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 10)
    backup = copy.deepcopy(stage.disk.sessions[welcome["session_id"]])
    await finish(stage, 20)
    seen = received(user)
    stage.disk.sessions[welcome["session_id"]] = backup
    await stage.restart()
    await finish(stage, 62)  # by now the restored log is longer than what the client saw
    position = {"epoch": welcome["epoch"], "last_seq": seen[-1]["seq"]}
    back, again = await welcomed(stage, session_id=welcome["session_id"], resume=position)
    assert again["head_seq"] > seen[-1]["seq"]
    assert (again["status"], again["reason"]) == ("reset", "client_ahead")
    snapshot = received(back)[0]
    assert snapshot["requests"][0]["text"] == "".join(f"{number} " for number in range(1, 61))


async def test_a_snapshot_that_a_compaction_overtakes_is_not_sent_in_part():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    seen = await answers(stage, user, 14)
    watcher = await client(
        stage, session_id=welcome["session_id"], mode="observe", resume={"epoch": 1, "last_seq": 1}, window=0
    )
    assert received(watcher)[0]["reason"] == "unknown_epoch"
    stage.is_store_stuck = True
    late = await client(stage, session_id=welcome["session_id"], mode="observe", resume={"epoch": 1, "last_seq": 1})
    done = noted(stage, Compact)
    await user.send({**NUMBERS, "request_id": "open"})
    stage.is_store_stuck = False
    reads = _hold_reads(stage)
    stage.post(e.Tick())
    await user.send({"type": "ack", "seq": seqs(seen)[-1]})
    assert len(done) == 1
    for read in reads:
        stage.store.submit(read)
    stage.post(e.Tick())
    assert [message["type"] for message in received(late)] == ["welcome"]
    assert late.close_code == 4510


def _hold_reads(stage: HubStage) -> list[Read]:
    """Takes the reads that the store has not carried out yet out of its hands."""
    held = [op for op in stage.store._queue if isinstance(op, Read)]
    stage.store._queue = [op for op in stage.store._queue if not isinstance(op, Read)]
    return held


async def test_what_the_quota_has_paused_goes_on_when_half_of_it_is_free_and_not_before():
    stage = HubStage(rules=SMALL)
    user, _ = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 30)
    assert seqs(received(user))[-1] == 22
    await user.send({"type": "ack", "seq": 11})
    await finish(stage, 5)
    assert seqs(received(user)) == []
    await user.send({"type": "ack", "seq": 12})
    await finish(stage, 1)
    assert [message.get("code", message["type"]) for message in received(user)][-2:] == ["continued", "token"]


async def test_05_also_a_paused_generation_ends_when_its_ttl_is_over():
    stage = HubStage(rules=SMALL)
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a", "ttl_s": 60})
    await finish(stage, 30)
    await user.cut()
    wait(stage, 60)
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["requests"] == []
    assert received(back)[-2]["finish_reason"] == "interrupted"


async def test_04_a_session_whose_disk_failed_does_not_expire_before_its_generation_has_ended():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 5)
    stage.disk.failing.add(welcome["session_id"])
    await stage.step()
    wait(stage, 2 * DAY_S)
    await finish(stage, 62)
    back, again = await welcomed(stage, session_id=welcome["session_id"])
    assert again["status"] == "resumed"
    assert received(back)[-2]["finish_reason"] == "length"


async def test_a_compaction_keeps_an_unacknowledged_event_that_belongs_to_no_request():
    stage = HubStage(rules=Rules(compact_bytes=256))
    user, welcome = await welcomed(stage)
    done = noted(stage, Compact)
    seen = await answers(stage, user, 2)
    for _ in range(2):
        await user.send({"type": "switch_model", "name": "llmws-guide"})
    await user.send({**NUMBERS, "request_id": "open"})
    await user.send({"type": "ack", "seq": seqs(seen)[-1]})
    assert len(done) == 1
    wait(stage, EVICT_AFTER_S)
    await user.cut()
    await stage.restart()
    back, _ = await welcomed(stage, session_id=welcome["session_id"])
    assert [message["type"] for message in received(back)[:3]] == ["model_switched", "model_switched", "start"]
