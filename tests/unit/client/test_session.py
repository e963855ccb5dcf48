"""The client's core under any order of sends, losses, restarts and reads: every answer arrives once and whole."""

import hashlib
from collections import deque

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmws.client.answer import Reset
from llmws.client.cursor import Cursor, StoryFaultError, Verdict
from llmws.client.errors import ClientError, SessionLostError
from llmws.client.session import Session
from llmws.protocol import messages as m

PIECES = ("a", "b", "c")
TEXT = "".join(PIECES)


class PureServer:
    """One session, as the protocol has it; frames go to `wire`, which a loss empties."""

    def __init__(self) -> None:
        self.epoch = 1
        self.events: list[m.Event] = []
        self.asked: dict[str, m.Inference] = {}
        self.open: list[str] = []
        self.floor = 0
        self.wire: deque[m.ServerMessage] = deque()
        self.session_id = "s"

    def attach(self, hello: m.Hello, *, reset: bool = False) -> m.Welcome:
        self.wire.clear()
        is_known = hello.session_id == self.session_id
        status = "new" if not is_known else "reset" if reset else "resumed"
        after = hello.resume.last_seq if hello.resume and is_known else self.floor
        if status == "reset":
            self.wire.append(m.Snapshot(as_of=len(self.events), epoch=self.epoch, requests=self._states()))
        elif status == "resumed":
            self.wire.extend(self.events[after:])
        if status != "new":
            self.wire.append(m.Log(code="caught_up", message="", head_seq=len(self.events)))
        return m.Welcome(
            protocol=1,
            session_id=self.session_id,
            status=status,
            epoch=self.epoch,
            head_seq=len(self.events),
            floor_seq=self.floor,
            requests=[m.RequestState(request_id=each, state="running") for each in self.open],
            model=None,
            capabilities=m.Capabilities(vision=False, resume=True, flash_attention=False, max_context=0),
            resources=m.DeviceSummary(device="", total_gb=0, free_gb=0),
            limits=m.Limits(max_message_bytes=1, max_queue=1),
            heartbeat=m.Heartbeat(interval_s=1),
            durability="os",
            server=m.ServerInfo(node_id="", version=""),
        )

    def receive(self, message: m.ClientMessage) -> None:
        match message:
            case m.Inference(request_id=str(request_id)) if request_id not in self.asked:
                self.asked[request_id] = message
                self.open.append(request_id)
            case m.Inference(request_id=str(request_id)):
                self.wire.append(m.Queue(request_id=request_id, position=0))
            case m.Ack(seq=int(seq)):
                assert self.floor <= seq <= len(self.events)
                self.floor = seq

    def work(self) -> None:
        """Appends the next event of the request whose turn it is."""
        if not self.open:
            return
        request_id = self.open[0]
        mine = [each for each in self.events if each.request_id == request_id]
        if not mine:
            event = m.Start(request_id=request_id, model="", tokens_in=1, max_tokens=9, seed=1)
        elif len(mine) <= len(PIECES):
            index = len(mine) - 1
            event = m.Token(request_id=request_id, index=index, data=PIECES[index], ids=[index])
        else:
            event = done(request_id)
            self.open.pop(0)
        placed = {name: getattr(event, name) for name in event.__struct_fields__}
        self.events.append(type(event)(**{**placed, "seq": len(self.events) + 1, "epoch": self.epoch}))
        self.wire.append(self.events[-1])

    def _states(self) -> list[m.RequestSnapshot]:
        states = []
        for request_id in self.asked:
            mine = [each for each in self.events if each.request_id == request_id]
            text = "".join(each.data for each in mine if isinstance(each, m.Token))
            end = next((each for each in mine if isinstance(each, m.Done)), None)
            if end is None or end.seq > self.floor:
                terminal = None if end is None else {"type": "done", **_plain(end)}
                state = "running" if end is None else "done"
                states.append(
                    m.RequestSnapshot(
                        request_id=request_id, state=state, text=text, next_index=len(text), terminal=terminal
                    )
                )
        return states


def done(request_id: str) -> m.Done:
    return m.Done(
        request_id=request_id,
        total_tokens=3,
        finish_reason="stop",
        usage=m.Usage(prompt_tokens=1, completion_tokens=3, cached_tokens=0),
        timing=m.Timing(queued_ms=0, ttft_ms=0, tokens_per_s=0),
        text_sha256=hashlib.sha256(TEXT.encode()).hexdigest(),
    )


def _plain(end: m.Done) -> dict:
    import msgspec

    return {key: value for key, value in msgspec.to_builtins(end).items() if key != "type"}


class World:
    """A client and a server with a network between that a test tells what to do."""

    def __init__(self) -> None:
        self.server = PureServer()
        self.session = Session(session_id=None, position=None, window=4, mode="takeover", client_name="t")
        self.answers = {}
        self.taken: dict[str, list] = {}
        self.attach()

    def attach(self, *, reset: bool = False) -> None:
        self.session.welcomed(self.server.attach(self.session.hello(None), reset=reset))
        self.session.settle()

    def restart(self) -> None:
        self.server.epoch += 1
        self.attach()

    def ask(self) -> None:
        request_id = f"r{len(self.answers)}"
        self.answers[request_id] = self.session.ask(m.Inference(request_id=request_id, prompt="hi"))
        self.taken[request_id] = []

    def send(self) -> None:
        if self.session.outbox:
            self.server.receive(self.session.outbox.popleft())
        for event in self.server.events[: self.server.floor]:
            assert not isinstance(event, m.Done) or self.has_ended(event.request_id), "acknowledged but not taken"

    def receive(self) -> None:
        if not self.server.wire:
            return
        try:
            self.session.receive(self.server.wire.popleft())
        except StoryFaultError:
            self.attach()
        self.session.settle()

    def repeat(self) -> None:
        """The network delivers an old event again."""
        if self.server.events:
            self.server.wire.appendleft(self.server.events[0])

    def lose(self) -> None:
        """The network drops a frame."""
        if self.server.wire:
            self.server.wire.popleft()

    def take(self) -> None:
        for request_id, answer in self.answers.items():
            while (event := answer.take()) is not None:
                self.taken[request_id].append(event)
        self.session.settle()

    def work(self) -> None:
        self.server.work()

    def reset(self) -> None:
        self.attach(reset=True)

    def finish(self) -> None:
        """A good network for as long as it takes."""
        self.attach()
        for _ in range(20 * (len(self.answers) + 1)):
            self.send()
            self.work()
            self.receive()
            self.take()

    def has_ended(self, request_id: str) -> bool:
        return any(isinstance(each, m.Done) for each in self.taken[request_id])

    def text(self, request_id: str) -> str:
        text = ""
        for event in self.taken[request_id]:
            if isinstance(event, Reset):
                text = event.text
            elif isinstance(event, m.Token):
                text += event.data
        return text


ACTIONS = ("ask", "send", "work", "receive", "take", "repeat", "lose", "attach", "restart", "reset")
runs = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 4)), min_size=12, max_size=30)


def check(actions: list[tuple[str, int]]) -> None:
    world = World()
    world.ask()
    for action, times in actions:
        for _ in range(times):
            getattr(world, action)()
    world.finish()
    for request_id in world.answers:
        assert world.text(request_id) == TEXT
        assert [type(each) for each in world.taken[request_id]].count(m.Done) == 1
        assert type(world.taken[request_id][-1]) is m.Done
        assert not any(isinstance(each, Reset) for each in world.taken[request_id])
    assert list(world.server.asked) == list(world.answers)
    assert world.server.floor == len(world.server.events)


@given(runs)
@example([*[("ask", 1)] * 4, *[("send", 1)] * 3, ("send", 2), ("work", 2), ("work", 4), ("reset", 1), ("receive", 1)])
@settings(deadline=None, max_examples=60)
def test_every_answer_arrives_once_and_whole(actions):
    check(actions)


def _take_gaps(monkeypatch):
    def take_event(self, seq, epoch):
        if not isinstance(seq, int):
            return Verdict.ASIDE
        if seq <= self.last_seq:
            return Verdict.DROP
        self.resume = m.Position(epoch=epoch, last_seq=seq)
        return Verdict.APPLY

    monkeypatch.setattr(Cursor, "take_event", take_event)


def _never_say_again(monkeypatch):
    monkeypatch.setattr(Session, "_say_again", lambda self, answer: None)


def _forget_snapshots(monkeypatch):
    monkeypatch.setattr(Session, "_reconcile", lambda self, snapshot: None)


def _acknowledge_what_arrived(monkeypatch):
    monkeypatch.setattr(Session, "_consumed", lambda self: self.applied_seq)


@pytest.mark.parametrize(
    ("mutant", "run"),
    [
        (_take_gaps, [("send", 1), ("work", 3), ("receive", 1), ("lose", 1), ("receive", 1)]),
        (_never_say_again, [("attach", 1)]),
        (_forget_snapshots, [("send", 1), ("work", 3), ("reset", 1), ("receive", 1)]),
        (_acknowledge_what_arrived, [("send", 1), ("work", 5), ("receive", 5), ("send", 1)]),
    ],
)
def test_the_property_kills_planted_mutants(mutant, run, monkeypatch):
    check(run)
    mutant(monkeypatch)
    with pytest.raises((AssertionError, ClientError)):
        check(run)


# --- stories ---------------------------------------------------------------------------------------------------------


def test_nothing_is_acknowledged_that_was_not_taken():
    world = World()
    world.ask()
    for _ in range(10):
        world.send()
        world.work()
        world.receive()
    assert world.server.floor == 0
    world.take()
    world.send()
    assert world.server.floor == len(world.server.events) == 5


def test_a_lost_acknowledgement_is_sent_again():
    world = World()
    world.ask()
    for _ in range(10):
        world.send()
        world.work()
        world.receive()
    world.take()
    world.attach()
    world.send()
    assert world.server.floor == 5


def test_an_unknown_session_loses_what_had_begun_and_asks_the_rest_again():
    world = World()
    world.ask()
    world.ask()
    world.send()
    world.work()
    world.receive()
    world.server = PureServer()
    world.server.session_id = "another"
    world.attach()
    assert [each.request_id for each in world.session.outbox] == ["r1"]
    world.answers["r0"].take()
    with pytest.raises(SessionLostError):
        world.answers["r0"].take()


def test_a_finished_answer_does_not_come_again_with_a_snapshot():
    world = World()
    world.ask()
    for _ in range(10):
        world.send()
        world.work()
        world.receive()
    world.take()
    world.reset()
    world.receive()
    assert list(world.session.uncollected) == []


def came_later(server: PureServer) -> Session:
    """Another client of the session, without a position, that has received all there is."""
    later = Session(session_id="s", position=None, window=4, mode="takeover", client_name="t")
    later.welcomed(server.attach(later.hello(None)))
    for frame in server.wire:
        later.receive(frame)
    return later


def test_answers_nobody_asked_for_here_are_kept_in_order():
    world = World()
    world.ask()
    world.ask()
    for _ in range(20):
        world.send()
        world.work()
    later = came_later(world.server)
    assert [answer.request_id for answer in later.uncollected] == ["r0", "r1"]
    assert [answer.text for answer in later.uncollected] == [TEXT, TEXT]


def test_what_is_open_is_collected_after_what_ended_before_it():
    """Whoever read the open one first would hold back the acknowledgement that it may be waiting for."""
    server = PureServer()
    for request_id in ("a", "b", "c"):
        server.receive(m.Inference(request_id=request_id, prompt="hi"))
    while server.open != ["b", "c"]:
        server.work()
    server.work()
    later = Session(session_id="s", position=None, window=4, mode="takeover", client_name="t")
    later.welcomed(server.attach(later.hello(None)))
    for frame in server.wire:
        later.receive(frame)
    assert [answer.request_id for answer in later.uncollected] == ["a", "b", "c"]


def test_what_ended_and_was_read_during_the_replay_is_not_collected_once_more():
    world = World()
    world.ask()
    for _ in range(10):
        world.send()
        world.work()
    later = Session(session_id="s", position=None, window=4, mode="takeover", client_name="t")
    welcome = world.server.attach(later.hello(None))
    later.welcomed(msgspec.structs.replace(welcome, requests=[m.RequestState(request_id="r0", state="running")]))
    *replay, caught_up = world.server.wire
    for frame in replay:
        later.receive(frame)
    answer = later.uncollected.popleft()
    while answer.take() is not None:
        later.settle()
    later.receive(caught_up)
    assert list(later.uncollected) == []


def test_the_window_moves_as_events_arrive():
    world = World()
    world.ask()
    for _ in range(4):
        world.send()
        world.work()
        world.receive()
    assert [each for each in world.session.outbox if isinstance(each, m.Ack)] == [m.Ack(seq=0, window=8)]


def test_a_pause_is_answered_by_acknowledging_what_was_consumed():
    world = World()
    world.ask()
    for _ in range(3):
        world.send()
        world.work()
        world.receive()
    world.take()
    assert world.server.floor == 0
    paused = m.Log(code="paused", message="", request_id="r0", seq=len(world.server.events) + 1, epoch=1)
    world.server.events.append(paused)
    world.server.wire.append(paused)
    world.receive()
    world.take()
    while world.session.outbox:
        world.send()
    assert world.server.floor == paused.seq


def test_a_pause_that_only_an_earlier_client_was_told_of_is_answered_too():
    server = PureServer()
    server.receive(m.Inference(request_id="a", prompt="hi"))
    server.work()
    later = Session(
        session_id="s", position=m.Position(epoch=1, last_seq=1), window=4, mode="takeover", client_name="t"
    )
    later.welcomed(server.attach(later.hello(None)))
    later.settle()
    assert list(later.outbox) == [m.Ack(seq=1, window=4)]


def test_what_has_come_of_an_answer_is_part_of_it_when_it_is_asked_for_again():
    """A program that was restarted asks by the same id: nothing that is here already may be thrown away."""
    world = World()
    world.ask()
    for _ in range(20):
        world.send()
        world.work()
    later = came_later(world.server)
    answer = later.ask(world.server.asked["r0"])
    assert (answer.text, answer.is_whole, answer.is_over) == (TEXT, True, True)
    assert type(answer.take()) is m.Start
    assert list(later.uncollected) == []
    with pytest.raises(ValueError, match="r0 is still open"):
        later.ask(world.server.asked["r0"])


def test_a_request_is_not_made_twice_while_it_is_open_here():
    world = World()
    world.ask()
    with pytest.raises(ValueError, match="r0 is still open"):
        world.session.ask(m.Inference(request_id="r0", prompt="another"))
