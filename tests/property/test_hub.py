"""The hub under everything that a network, its users, a disk, a clock and a kill can do to it, in any order.

Two devices of one user take a session from one another, a third watches; none of them believes anything. Neighbours ask
and leave. There are three models, two fit at once, and any of them makes room or breaks at any time. Mutants of the
product that this kills are listed in docs/mutants.md.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.request import MAX_RESUMES
from llmws.session.rules import Durability, Rules
from tests.support.model_client import ModelClient, Story
from tests.support.stages import GUIDE, OTHER, THIRD, HubClient, HubStage

ANSWERS = ("hi", "count")
MODELS = {each.name: each for each in (GUIDE, OTHER, THIRD)}
WANTED = st.sampled_from([None, None, *MODELS, OTHER.path])
DEVICES = st.sampled_from(["phone", "laptop", "page"])
WINDOWS = st.one_of(st.none(), st.integers(0, 6))
DAY_S = 86_400.0
IMPORT = {"type": "import", "messages": [{"role": "user", "content": "so that the session is kept"}]}


def whole_answer(model: str, *, counts: bool) -> str:
    """What a model says when nothing cuts it short; each speaks its own way."""
    accent = "" if model == GUIDE.name else model
    return "".join(f"{number}{accent} " for number in range(1, 101)) if counts else f"He{accent}llo"


class HubMachine(RuleBasedStateMachine):
    """One user with one session on three devices, a stranger, and neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.story = Story()
        self.devices = {
            "phone": ModelClient(self.story),
            "laptop": ModelClient(self.story),
            "page": ModelClient(self.story, "observe"),
        }
        self.lines: dict[str, HubClient] = {}
        self.dead_lines: list[int] = []
        self.asked: dict[str, dict[str, Any]] = {}
        self.count = 0
        self.cancelled: set[str] = set()
        self.restarts = 0
        self.has_disk_failed = False
        self.has_been_away = False
        self.ran_on: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.has_broken: set[str] = set()
        self.neighbours: dict[str, dict[str, Any]] = {}

    # --- connections -----------------------------------------------------------------------------------------------

    @initialize(durability=st.sampled_from(["os", "disk"]))
    def begin(self, durability: Durability) -> None:
        rules = Rules(
            durability=durability,
            max_unacknowledged_events=60,
            compact_bytes=1024,
            tail_bytes=1500,
            burst_bytes=1000,
        )
        self.stage = HubStage(
            token=None,
            models=tuple(MODELS.values()),
            broken=self.broken,
            max_resident=2,
            max_running=2,
            rules=rules,
            max_pause_s=3600.0,
        )
        self.connect("phone", None)

    @rule(device=DEVICES, window=WINDOWS)
    def connect(self, device: str, window: int | None) -> None:
        """A new connection; an old one of the device dies late, or never."""
        if self.story.session_id is None and device == "page":
            return
        self.stall(stuck=False)
        self.leave(device, told=False)
        line = self.lines[device] = self.new_line()
        hello = self.devices[device].hello(window=window)
        self.send(device, hello)
        if device != "page" and not self.story.has_asked and self.lines.get(device) is line:
            self.send(device, IMPORT)

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), told=st.booleans())
    def cut(self, data: st.DataObject, told: bool) -> None:
        self.leave(self.one_of(data), told=told)

    def leave(self, device: str, *, told: bool) -> None:
        """The line dies; the server learns of it now, or late."""
        if (line := self.lines.pop(device, None)) is not None:
            if told:
                self.stage.post(e.Detach(line.number))
            else:
                self.dead_lines.append(line.number)

    @precondition(lambda self: self.dead_lines)
    @rule(data=st.data())
    def learn_late(self, data: st.DataObject) -> None:
        """The server learns of a connection that died, whatever came since."""
        number = data.draw(st.sampled_from(self.dead_lines))
        self.dead_lines.remove(number)
        self.stage.post(e.Detach(number))

    @precondition(lambda self: self.taken_over())
    @rule(data=st.data(), seq=st.integers(0, 100))
    def late_ack(self, data: st.DataObject, seq: int) -> None:
        """What a connection that was taken over still says counts for nothing."""
        self.stage.post(e.Receive(data.draw(st.sampled_from(self.taken_over())), m.Ack(seq=seq)))
        self.read_all()

    def taken_over(self) -> list[int]:
        return [number for number in self.dead_lines if self.stage.clients[number].close_code == 4409]

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), congested=st.booleans())
    def congest(self, data: st.DataObject, congested: bool) -> None:
        line = self.lines[self.one_of(data)]
        self.stage.post((e.Congested if congested else e.Drained)(line.number))
        self.read_all()

    @precondition(lambda self: self.story.session_id is not None)
    @rule()
    def stranger(self) -> None:
        """Another principal with the right id gets a session of its own."""
        self.stall(stuck=False)
        line = self.new_line()
        hello = m.Hello(session_id=self.story.session_id)
        self.stage.post(e.Attach(line.number, "stranger", "user", hello))
        welcome = json.loads(line.frames.popleft())
        assert welcome["session_id"] != self.story.session_id
        assert not line.frames
        self.stage.post(e.Detach(line.number))
        self.read_all()

    # --- requests --------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.asked) < 25)
    @rule(
        count=st.integers(1, 3),
        prompt=st.sampled_from(ANSWERS),
        model=WANTED,
        tokens=st.integers(1, 60),
        keeps=st.booleans(),
        steps=st.integers(0, 100),
    )
    def ask(self, *, count: int, prompt: str, model: str | None, tokens: int, keeps: bool, steps: int) -> None:
        if not self.has_owner():
            self.connect("laptop", None)
        for _ in range(count):
            if not (self.has_owner() and self.story.has_asked):
                return
            self.count += 1
            request_id = f"r{self.count}"
            self.asked[request_id] = {
                "type": "inference",
                "request_id": request_id,
                "model": model,
                "config": {"max_new_tokens": tokens, "do_sample": False},
                **({"prompt": "hi"} if prompt == "hi" and keeps else {"input_ids": [9 if prompt == "count" else 1]}),
            }
            self.send(self.owner(), self.asked[request_id])
        self.step(steps)

    @precondition(lambda self: len(self.neighbours) < 8)
    @rule(count=st.integers(1, 3), model=WANTED, counts=st.booleans())
    def neighbour(self, count: int, model: str | None, counts: bool) -> None:
        """Others ask, and leave at once: the answers are for later."""
        self.stall(stuck=False)
        for _ in range(count):
            line = self.new_line()
            question = {"input_ids": [9 if counts else 1], "model": model, "config": {"max_new_tokens": 40}}
            self.stage.post(e.Attach(line.number, "neighbour", "user", m.Hello()))
            self.stage.post(e.Receive(line.number, msgspec.convert({"request_id": "n", **question}, m.Inference)))
            welcome, *rest = (json.loads(frame) for frame in line.frames)
            line.frames.clear()
            if not any(each.get("code") == "no_model" and "seq" not in each for each in rest):
                self.neighbours[welcome["session_id"]] = question
            self.stage.post(e.Detach(line.number))
        self.read_all()

    @rule(model=st.sampled_from(sorted(MODELS)), seconds=st.sampled_from([0.1, 1.0]))
    def passer_by(self, model: str, seconds: float) -> None:
        """Somebody asks, and does not want the answer any more."""
        self.stall(stuck=False)
        line = self.new_line()
        message = m.Inference(request_id="p", input_ids=[9], model=model, on_disconnect="cancel")
        self.stage.post(e.Attach(line.number, "passer-by", "user", m.Hello()))
        self.stage.post(e.Receive(line.number, message))
        self.wait(seconds)
        self.stage.post(e.Detach(line.number))
        self.read_all()

    @precondition(lambda self: self.has_owner() and self.asked)
    @rule(data=st.data(), is_other=st.booleans())
    def ask_again(self, data: st.DataObject, is_other: bool) -> None:
        """The same request once more: it must not run twice; with another body: it must not run at all."""
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        # What the server did not take, since it died, may come again with any body.
        is_taken = any(request_id in each.started for each in self.devices.values())
        message = self.asked[request_id]
        self.send(self.owner(), {**message, "input_ids": [2], "prompt": None} if is_other and is_taken else message)

    @precondition(lambda self: self.lines and self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.cancelled.add(request_id)
        self.send(self.one_of(data), {"type": "cancel", "request_id": request_id})

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), back=st.integers(0, 3), window=st.one_of(st.none(), st.integers(0, 40)))
    def ack(self, data: st.DataObject, back: int, window: int | None) -> None:
        self.acknowledge(self.one_of(data), back=back, window=window)

    def acknowledge(self, device: str, *, back: int = 0, window: int | None = None) -> None:
        client = self.devices[device]
        if not client.is_resetting:
            seq = max(client.acked, client.last_seq - back)
            client.ack(seq)
            client.window = client.window if window is None else window
            self.send(device, {"type": "ack", "seq": seq, "window": window})

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def ack_bare(self, data: st.DataObject) -> None:
        device = self.one_of(data)
        self.devices[device].ack(None)
        self.send(device, {"type": "ack"})

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def ack_too_far(self, data: st.DataObject) -> None:
        self.send(self.one_of(data), {"type": "ack", "seq": 10**6, "window": 10**6})

    @precondition(lambda self: self.has_owner() and self.story.has_asked)
    @rule(temperature=st.sampled_from([0.1, 0.2]))
    def configure(self, temperature: float) -> None:
        self.send(self.owner(), {"type": "config", "data": {"temperature": temperature}})

    # --- the server ------------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.stage.engine.step()
            self.stage.post(e.Tick())
        self.read_all()

    @rule(seconds=st.sampled_from([0.1, 1.0, 400.0, DAY_S + 500.0]))
    def wait(self, seconds: float) -> None:
        if seconds > DAY_S:
            self.story.may_have_expired = True
            self.has_been_away = True
        for part_s in (seconds - min(seconds, 400.0), min(seconds, 400.0)):
            self.stage.clock.now_s += part_s
            self.stage.post(e.Tick())
        self.read_all()

    @rule(jump_s=st.sampled_from([-3e7, 3e7]))
    def jump(self, jump_s: float) -> None:
        """The wall clock is set."""
        self.stage.clock.wall_s += jump_s

    @rule(gently=st.booleans())
    def restart(self, gently: bool) -> None:
        """The server stops, or is killed, and starts again."""
        self.stall(stuck=False)
        self.restarts += 1
        self.lines.clear()
        self.dead_lines.clear()
        if gently:
            self.stage.post(e.Shutdown())
        self.stage.store.crash()
        self.stage.clock.now_s += 1
        self.stage.start()

    @rule(stuck=st.booleans())
    def stall(self, stuck: bool) -> None:
        """The disk is slow: nothing is written, and so nothing sent, until it is not."""
        self.stage.is_store_stuck = stuck
        self.stage.post(e.Tick())
        self.read_all()

    @precondition(lambda self: self.story.has_asked)
    @rule()
    def fail_disk(self) -> None:
        """A write fails: whoever is there is sent away, and comes back to what the disk has."""
        self.stall(stuck=False)
        self.stage.disk.failing.add(self.story.session_id)
        self.restarts += 1
        self.has_disk_failed = True

    # --- models ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.has_owner() and self.story.has_asked)
    @rule(name=st.sampled_from(sorted(MODELS)))
    def switch(self, name: str) -> None:
        self.send(self.owner(), {"type": "switch_model", "name": name})

    @rule(name=st.sampled_from(sorted(MODELS)))
    def unload(self, name: str) -> None:
        """A model makes room, at any time."""
        self.stage.engine.unload(name)
        self.stage.post(e.Tick())
        self.read_all()

    @rule(name=st.sampled_from(sorted(MODELS)), whole=st.booleans())
    def damage(self, name: str, whole: bool) -> None:
        """From now on a model cannot be loaded, or can be again."""
        if whole:
            self.broken.pop(name, None)
        else:
            self.broken[name] = "damaged"
            self.has_broken.add(name)

    @rule(stuck=st.booleans())
    def hold(self, stuck: bool) -> None:
        """The engine is inside a load, or a long step: what it is told waits, and it tells nothing."""
        self.stage.is_engine_stuck = stuck
        self.stage.post(e.Tick())
        self.read_all()

    # --- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def starts_in_order(self) -> None:
        for client in self.devices.values():
            order = [int(each[1:]) for each in client.started]
            assert len(order) == len(set(order))
            # A request that a failing disk did not take is accepted later, when it is sent again.
            assert order == sorted(order) or self.has_disk_failed, order

    @invariant()
    def ends_are_right(self) -> None:
        for client in self.devices.values():
            for request_id, end in client.terminals.items():
                asked = self.asked[request_id]
                text = client.texts.get(request_id, "")
                model = self.ran_on.get(request_id, GUIDE.name)
                is_whole = request_id in client.started and request_id in self.ran_on
                answer = whole_answer(model, counts=asked.get("input_ids") == [9])
                assert answer.startswith(text) or not is_whole
                assert (
                    end in ("stop", "length")
                    or (end == "cancelled" and request_id in self.cancelled)
                    or (end == "model_failed" and self.restarts >= MAX_RESUMES)
                    or (end == "buffer_full" and self.has_been_away)
                    or self.had_no_model(asked["model"], request_id, end)
                )
                if end == "stop" and is_whole:
                    assert text == answer

    def had_no_model(self, wanted: str | None, request_id: str, end: str) -> bool:
        """Whether a request may have ended so because its model could not be loaded."""
        name = self.ran_on.get(request_id) or (self.stage.hub._models.find(wanted).name if wanted else None)
        may_fail = name in self.has_broken if name is not None else bool(self.has_broken)
        return may_fail and end in (("model_failed",) if name is not None else ("model_failed", "no_model"))

    @invariant()
    def the_hub_knows_what_the_engine_holds(self) -> None:
        if not self.stage.is_engine_stuck:
            assert self.stage.hub.resident == self.stage.engine.resident
            assert self.stage.hub._models._loading == self.stage.engine.wanted, "a load of which only one side knows"

    @invariant()
    def nothing_is_loaded_that_nobody_waits_for(self) -> None:
        hub = self.stage.hub
        waiting = (hub._models.serving(hub._state.sessions[each].queue[0].model) for each in hub._turns._line)
        chosen = [wish.ref for wish in (hub._models._switch, *hub._models._wishes) if wish is not None]
        wanted = {ref.name for ref in (*waiting, *chosen) if ref is not None}
        assert hub._models._loading <= wanted | {hub._models.name}

    @invariant()
    def only_a_switch_changes_the_default(self) -> None:
        default = self.stage.hub.default
        assert default is None or default.ref.name == self.stage.selected.name

    @invariant()
    def nobody_waits_beside_a_model_with_room(self) -> None:
        hub = self.stage.hub
        running = Counter(each.info.ref.name for each in hub._turns._active.values())
        assert all(count <= self.stage.max_running for count in running.values())
        if hub._models.is_settled:
            for session_id in hub._turns._line:
                ref = hub._models.serving(hub._state.sessions[session_id].queue[0].model)
                is_full = running[ref.name] == self.stage.max_running
                assert is_full if ref.name in hub.resident else hub._models._loading

    @invariant()
    def what_was_sent_is_written(self) -> None:
        if (kept := self.stage.disk.sessions.get(self.story.session_id or "")) is not None:
            assert all(seq <= kept.last_seq for _, seq in self.story.payloads)

    @invariant()
    def memory_is_bounded(self) -> None:
        session = self.stage.hub._state.sessions.get(self.story.session_id or "")
        if session is not None and not self.stage.is_store_stuck:
            assert session.log._tail_bytes <= session.rules.tail_bytes
            assert len(self.stage.hub._state.connections) <= len(self.lines) + len(self.dead_lines)

    def teardown(self) -> None:
        """With a network and time, everything asked for comes to its end, once, and nothing of it is unknown."""
        self.stall(stuck=False)
        self.hold(stuck=False)
        self.stage.disk.failing.clear()
        self.connect("phone", None)
        if "phone" not in self.lines:
            return
        for message in list(self.asked.values()):
            self.send("phone", message)  # as a client does with what was not answered before the line died
        idle = 0
        while idle < 5:  # an answer that the quota has paused needs an acknowledgement first
            idle = 0 if self.stage.engine.step() else idle + 1
            self.stage.post(e.Tick())
            self.read_all()
            self.acknowledge("phone")
        ended = set().union(*(client.terminals for client in self.devices.values()))
        missing = set(self.asked) - ended
        assert not missing or self.has_been_away, missing
        self.no_turn_is_lost_or_doubled()
        self.a_watcher_reaches_the_end()
        self.neighbours_have_their_answers()
        self.stage.engine.close()

    def no_turn_is_lost_or_doubled(self) -> None:
        line = self.lines["phone"]
        self.send_line(line, {"type": "history", "limit": 200})
        messages = json.loads(line.frames.pop())["messages"]
        turns = [(each["request_id"], each["role"]) for each in messages if each["request_id"]]
        assert len(turns) == len(set(turns))
        questions = [request_id for request_id, role in turns if role == "user"]
        assert set(questions) == {each for each, message in self.asked.items() if message.get("prompt")}

    def a_watcher_reaches_the_end(self) -> None:
        """However narrow its window, and whatever was compacted meanwhile: it gets on, or is sent to resume."""
        if "page" not in self.lines:
            return
        page, line = self.devices["page"], self.lines["page"]
        self.stage.post(e.Drained(line.number))
        self.read_all()
        while line.close_code is None and page.last_seq < self.devices["phone"].last_seq:
            before = page.last_seq
            self.acknowledge("page", window=3)
            assert page.last_seq > before or line.close_code is not None, "a watcher is stuck"

    def neighbours_have_their_answers(self) -> None:
        for session_id, question in self.neighbours.items():
            line = self.new_line()
            self.stage.post(e.Attach(line.number, "neighbour", "user", m.Hello(session_id=session_id)))
            welcome, *seen = (json.loads(frame) for frame in line.frames)
            if self.has_been_away:
                continue
            assert welcome["status"] == "resumed"
            starts = [each["model"] for each in seen if each["type"] == "start"]
            (end,) = [each for each in seen if each["type"] in ("done", "error")]
            if "code" in end:
                name = starts[0] if starts else None
                may_resume = self.restarts < MAX_RESUMES
                assert not may_resume or (self.has_broken and end["code"] in ("model_failed", "no_model")), end
                assert name is None or name in self.has_broken or not may_resume
            else:
                (name,) = starts
                text = "".join(each["data"] for each in seen if each["type"] == "token")
                answer = whole_answer(name, counts=question["input_ids"] == [9])
                assert text == (answer if end["finish_reason"] == "stop" else answer[: len(text)])
                assert end["total_tokens"] == 40 or end["finish_reason"] == "stop"
            if starts and question["model"] is not None:
                assert starts == [self.stage.hub._models.find(question["model"]).name]

    # --- plumbing --------------------------------------------------------------------------------------------------

    def has_owner(self) -> bool:
        return "phone" in self.lines or "laptop" in self.lines

    def owner(self) -> str:
        return "phone" if "phone" in self.lines else "laptop"

    def one_of(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.lines)))

    def new_line(self) -> HubClient:
        line = HubClient(self.stage, max(self.stage.clients, default=0) + 1)
        self.stage.clients[line.number] = line
        return line

    def send(self, device: str, message: dict[str, Any]) -> None:
        self.send_line(self.lines[device], message)
        self.read_all()

    def send_line(self, line: HubClient, message: dict[str, Any]) -> None:
        for outcome in line.door.receive(json.dumps(message).encode(), text=True):
            line.take(outcome)

    def read_all(self) -> None:
        """Every device reads what has come to it."""
        for device, line in list(self.lines.items()):
            while line.frames:
                self.read(device, json.loads(line.frames.popleft()))
            if line.close_code is not None:
                assert line.close_code in (4409, 4500, 4510, 1013), line.close_code
                assert line.close_code != 4510 or device == "page" or self.has_been_away
                del self.lines[device]
                self.dead_lines.append(line.number)

    def read(self, device: str, message: dict[str, Any]) -> None:
        code = message.get("code")
        assert code not in ("internal", "bad_message", "unknown_type"), message
        if message["type"] == "session_updated":
            self.story.has_asked = True
        if code in ("queue_full", "rate_limited") or (code == "no_model" and "seq" not in message):
            self.asked.pop(message.get("request_id"), None)
        if message["type"] == "start":
            assert self.ran_on.setdefault(message["request_id"], message["model"]) == message["model"]
            wanted = self.asked[message["request_id"]]["model"]
            assert wanted is None or message["model"] in (wanted, self.stage.hub._models.find(wanted).name)
        self.devices[device].receive(message)


TestHub = HubMachine.TestCase
TestHub.settings = settings(stateful_step_count=60)
