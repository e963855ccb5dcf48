"""The cursor applies a contiguous run of the session's story, whatever the network does to it."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llmws.client.cursor import Cursor, StoryFaultError, Verdict
from llmws.protocol import messages as m


def event(seq: int, epoch: int = 1) -> m.Log:
    return m.Log(code="x", message="", seq=seq, epoch=epoch)


def welcome(status: str = "resumed", *, epoch: int = 1, head: int = 0, floor: int = 0) -> m.Welcome:
    return m.Welcome(
        protocol=1,
        session_id="s",
        status=status,
        epoch=epoch,
        head_seq=head,
        floor_seq=floor,
        requests=[],
        model=None,
        capabilities=m.Capabilities(vision=False, resume=True, flash_attention=False, max_context=0),
        resources=m.DeviceSummary(device="", total_gb=0, free_gb=0),
        limits=m.Limits(max_message_bytes=1, max_queue=1),
        heartbeat=m.Heartbeat(interval_s=1),
        durability="os",
        server=m.ServerInfo(node_id="", version=""),
    )


def caught_up(head: int) -> m.Log:
    return m.Log(code="caught_up", message="", head_seq=head)


def attached(*seqs: int, status: str = "resumed", floor: int = 0) -> Cursor:
    cursor = Cursor()
    cursor.attach(welcome(status, floor=floor))
    for seq in seqs:
        assert cursor.take(event(seq)) is Verdict.APPLY
    return cursor


# --- single steps ----------------------------------------------------------------------------------------------------


def test_a_new_session_begins_at_its_welcome():
    cursor = attached(status="new")
    assert (cursor.resume, cursor.is_caught_up) == (m.Position(epoch=1, last_seq=0), True)


def test_without_a_position_the_replay_begins_after_the_floor():
    assert attached(8, 9, floor=7).resume == m.Position(epoch=1, last_seq=9)


def test_a_position_survives_the_welcome_of_a_later_epoch():
    cursor = Cursor(m.Position(epoch=1, last_seq=4))
    cursor.attach(welcome(epoch=3, head=9, floor=2))
    assert cursor.resume == m.Position(epoch=1, last_seq=4)


def test_the_epoch_follows_the_events():
    cursor = attached(1, 2)
    cursor.take(event(3, epoch=5))
    assert cursor.resume == m.Position(epoch=5, last_seq=3)
    assert [cursor.position(seq) for seq in (2, 3)] == [
        m.Position(epoch=1, last_seq=2),
        m.Position(epoch=5, last_seq=3),
    ]


def test_an_event_that_was_applied_is_dropped():
    assert attached(1, 2).take(event(1)) is Verdict.DROP


def test_a_replay_may_begin_in_an_earlier_epoch_than_the_welcomes():
    cursor = Cursor()
    cursor.attach(welcome(epoch=9))
    assert cursor.take(event(1, epoch=4)) is Verdict.APPLY


@pytest.mark.parametrize(
    "bad",
    [event(4), event(3, epoch=0), event(2, epoch=2), caught_up(3)],
    ids=["gap", "earlier epoch", "old number in a later epoch", "end of the replay before its head"],
)
def test_a_contradiction_is_a_fault_and_changes_nothing(bad):
    cursor = attached(1, 2)
    before = cursor.resume
    with pytest.raises(StoryFaultError):
        cursor.take(bad)
    assert cursor.resume == before
    assert cursor.take(event(3)) is Verdict.APPLY


def test_caught_up_is_said_by_the_server():
    cursor = attached(1, 2)
    assert not cursor.is_caught_up
    assert cursor.take(caught_up(2)) is Verdict.ASIDE
    assert cursor.is_caught_up


def test_a_snapshot_sets_the_position():
    cursor = attached(1, 2)
    cursor.attach(welcome("reset", epoch=7, head=40))
    cursor.take(m.Snapshot(as_of=40, epoch=7, requests=[]))
    assert cursor.take(event(41, epoch=7)) is Verdict.APPLY
    assert cursor.resume == m.Position(epoch=7, last_seq=41)


def test_an_event_before_the_snapshot_is_a_fault_and_the_old_position_is_kept():
    cursor = attached(1, 2)
    cursor.attach(welcome("reset", epoch=7, head=40))
    with pytest.raises(StoryFaultError):
        cursor.take(event(41, epoch=7))
    assert cursor.resume == m.Position(epoch=1, last_seq=2)


def test_replies_are_not_events():
    assert attached(1).take(m.Pong()) is Verdict.ASIDE
    assert attached(1).take(m.Log(code="loading", message="")) is Verdict.ASIDE


# --- any network -----------------------------------------------------------------------------------------------------

Story = list[m.Log]

stories = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(
    lambda lengths: [
        event(seq, epoch)
        for seq, epoch in enumerate((epoch for epoch, length in enumerate(lengths, 1) for _ in range(length)), start=1)
    ]
)
FAULTS = ("as it is", "twice", "left out", "an old one again", "cut")
connections = st.lists(st.lists(st.sampled_from(FAULTS), max_size=12), max_size=6)


def deliver(story: Story, after: int, faults: list[str]) -> list[m.Log]:
    """What arrives of the story after `after` on a connection with these faults; whole when there are none."""
    arriving: list[m.Log] = []
    for place, each in enumerate(story[after:]):
        fault = faults[place] if place < len(faults) else "as it is"
        match fault:
            case "cut":
                return arriving
            case "twice":
                arriving += [each, each]
            case "an old one again":
                arriving += [story[max(0, after - 1)], each]
            case "as it is":
                arriving.append(each)
    return arriving


def applied_over(kind: type[Cursor], story: Story, faults: list[list[str]], start: int) -> list[m.Log]:
    """Everything a client applies over faulty connections and one good one."""
    resume = m.Position(epoch=story[start - 1].epoch, last_seq=start) if start else None
    cursor = kind(resume)
    applied: list[m.Log] = []
    for connection in [*faults, []]:
        cursor.attach(welcome(epoch=story[-1].epoch, head=len(story)))
        try:
            arriving = deliver(story, cursor.last_seq, connection)
            applied.extend(each for each in arriving if cursor.take(each) is Verdict.APPLY)
        except StoryFaultError:
            continue
    return applied


@given(stories, connections, st.data())
def test_the_applied_events_are_a_contiguous_run_to_the_end(story, faults, data):
    start = data.draw(st.integers(0, len(story)))
    assert applied_over(Cursor, story, faults, start) == story[start:]


class TakesGaps(Cursor):
    def take(self, message):
        if isinstance(message.seq, int) and message.seq > self.last_seq:
            self.resume = m.Position(epoch=message.epoch, last_seq=message.seq - 1)
        return super().take(message)


class TakesDuplicates(Cursor):
    def take(self, message):
        verdict = super().take(message)
        return Verdict.APPLY if verdict is Verdict.DROP else verdict


class ForgetsItsPlace(Cursor):
    def attach(self, welcome):
        self.resume = None
        super().attach(welcome)


class ResumesOneTooFar(Cursor):
    def attach(self, welcome):
        super().attach(welcome)
        self.resume = m.Position(epoch=self.resume.epoch, last_seq=self.last_seq + 1)


@pytest.mark.parametrize("mutant", [TakesGaps, TakesDuplicates, ForgetsItsPlace, ResumesOneTooFar])
def test_the_property_kills_planted_mutants(mutant):
    @settings(database=None, derandomize=True, phases=[Phase.generate])
    @given(stories, connections)
    def holds(story, faults):
        assert applied_over(mutant, story, faults, 0) == story

    with pytest.raises(AssertionError):
        holds()
