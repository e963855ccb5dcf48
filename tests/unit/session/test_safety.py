"""What the store is asked to keep for certain, and what is told of events that are not, or that were lost."""

from __future__ import annotations

import msgspec
import pytest

from llmws.session.shelf import EVICT_AFTER_S
from llmws.store_api import Append, Keep, Record
from tests.support.stages import HubStage
from tests.support.stories import ASK, NUMBERS, finish, lose_records, noted, received, wait, welcomed

SYNCED = {"request", "prompt", "done", "error", "message"}


def kind(record: Record) -> str:
    """A record's kind; of an event, its type."""
    return msgspec.json.decode(record.value)["type"] if record.kind == "event" else record.kind


async def test_what_must_survive_a_loss_of_power_is_synced_and_nothing_else():
    """Source: log-format, "What a record has been through"."""
    stage = HubStage()
    user, _ = await welcomed(stage)
    appends = noted(stage, Append)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack", "seq": 2})
    await user.send({**NUMBERS, "request_id": "b", "input_ids": [4] * 100})

    kinds = [{kind(record) for record in append.records} for append in appends]
    assert {"start", "token", "ack", *SYNCED} <= set().union(*kinds)
    assert [append.sync for append in appends] == [not each.isdisjoint(SYNCED) for each in kinds]


async def test_a_position_beyond_what_may_be_sent_is_not_of_this_server():
    """Nor does meta speak of such events: a later opening would take them for lost."""
    stage = HubStage()
    user, welcome = await welcomed(stage)
    session_id = welcome["session_id"]
    await user.send({**NUMBERS, "request_id": "a"})
    await finish(stage, 5)
    sent = received(user)[-1]["seq"]
    stage.is_store_stuck = True
    kept = noted(stage, Keep)
    await stage.step()
    await user.send({"type": "update_session", "session_id": session_id, "title": "x"})
    assert [each.meta.last_seq for each in kept] == [sent]
    for last_seq, status in ((sent, "resumed"), (sent + 1, "reset")):
        _, again = await welcomed(
            stage, session_id=session_id, resume={"epoch": welcome["epoch"], "last_seq": last_seq}
        )
        assert again["status"] == status
    assert again["reason"] == "client_ahead"


@pytest.mark.parametrize("is_followed", [False, True], ids=["at the end", "in the middle"])
async def test_whoever_comes_without_a_position_is_told_of_a_hole_in_the_log(is_followed):
    """It would begin at the floor; what meta had seen after it is gone."""
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await user.send(ASK)
    await finish(stage)
    await user.send({"type": "ack", "seq": 1})
    await user.cut()
    wait(stage, EVICT_AFTER_S)
    lose_records(stage, welcome["session_id"], "buffer", 2)
    if is_followed:
        user, _ = await welcomed(stage, session_id=welcome["session_id"])
        await user.send({**ASK, "request_id": "b"})
        await finish(stage)
        await user.cut()
    await stage.restart()
    _, again = await welcomed(stage, session_id=welcome["session_id"])
    assert (again["status"], again.get("reason")) == ("reset", "log_corrupt")
