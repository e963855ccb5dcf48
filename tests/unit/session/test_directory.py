"""What is known of sessions that are not in memory, while it is still being found out."""

from __future__ import annotations

from llmws.protocol import messages as m
from llmws.session.directory import Directory
from llmws.session.state import HubSettings, HubState
from llmws.store_api import SessionMeta, Surveyed
from tests.support.stages import CountingEntropy, ManualClock

META = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0, messages=2)


def directory() -> Directory:
    settings = HubSettings(
        limits=m.Limits(max_message_bytes=1, max_queue=1),
        heartbeat=m.Heartbeat(interval_s=1),
        server=m.ServerInfo(node_id="", version=""),
        generation_defaults=m.Sampling(),
    )
    return Directory(HubState(settings, clock=ManualClock(), entropy=CountingEntropy()))


def test_a_survey_does_not_bring_back_what_was_opened_or_ended_since_it_looked():
    made = directory()
    made.surveyed(Surveyed(sessions=(("a", META),), is_last=False))
    made.remove("b")
    made.surveyed(Surveyed(sessions=(("b", META), ("c", META)), is_last=True))
    assert [session_id for session_id, _ in made.of("local")] == ["a", "c"]


def test_what_left_memory_meanwhile_is_known_better_than_the_survey_knows_it():
    made = directory()
    made.remove("a")
    made.put("a", SessionMeta(owner="local", created_s=1.0, last_activity_s=9.0))
    made.surveyed(Surveyed(sessions=(("a", META),), is_last=True))
    assert [meta.last_activity_s for _, meta in made.of("local")] == [9.0]
