"""The hub under everything that a network, a user and a kill can do to it, in any order.

Mutants of the product that this kills, each planted by hand and taken out again, are listed in docs/mutants.md.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.request import MAX_RESUMES
from tests.support.model_client import ModelClient
from tests.support.stages import HubClient, HubStage

ANSWERS = {1: "Hello", 9: "".join(f"{number} " for number in range(1, 101))}


class HubMachine(RuleBasedStateMachine):
    """One user with one session, an observer, and a stranger."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = HubStage(token=None)
        self.user = ModelClient()
        self.line: HubClient | None = None
        self.asked: dict[str, tuple[int, int]] = {}
        self.cancelled: set[str] = set()
        self.count = 0
        self.restarts = 0
        self.has_disk_failed = False

    # --- the user
    # ------------------------------------------------------------------------------------------------------

    @rule(window=st.one_of(st.none(), st.integers(0, 6)))
    def connect(self, window: int | None) -> None:
        """A new connection; if there was one it is taken over and dies late, or never."""
        self.stall(stuck=False)
        self.line = self.new_line()
        self.send(self.user.hello(window=window))

    @precondition(lambda self: self.line is not None)
    @rule(told=st.booleans())
    def cut(self, told: bool) -> None:
        """The line dies; the server learns of it now, or not before the next takeover."""
        assert self.line is not None
        if told:
            self.stage.post(e.Detach(self.line.number))
        self.line = None

    @precondition(lambda self: self.line is not None)
    @rule(prompt=st.sampled_from([1, 9]), tokens=st.integers(1, 120))
    def ask(self, prompt: int, tokens: int) -> None:
        self.count += 1
        request_id = f"r{self.count}"
        self.asked[request_id] = (prompt, tokens)
        self.send_request(request_id)

    @precondition(lambda self: self.line is not None and self.asked)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """The same request once more: it must not run twice."""
        self.send_request(data.draw(st.sampled_from(sorted(self.asked))))

    @precondition(lambda self: self.line is not None and self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.cancelled.add(request_id)
        self.send({"type": "cancel", "request_id": request_id})

    @precondition(lambda self: self.line is not None)
    @rule(back=st.integers(0, 3), window=st.one_of(st.none(), st.integers(0, 40)))
    def ack(self, back: int, window: int | None) -> None:
        seq = max(self.user.acked, self.user.last_seq - back)
        self.user.ack(seq)
        if window is not None:
            self.user.window = window
        self.send({"type": "ack", "seq": seq, "window": window})

    @precondition(lambda self: self.line is not None)
    @rule()
    def ack_bare(self) -> None:
        self.user.ack(None)
        self.send({"type": "ack"})

    # --- the others
    # ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.user.session_id is not None)
    @rule()
    def observe(self) -> None:
        """Somebody watches for a moment, from the floor on."""
        self.stall(stuck=False)
        line = self.new_line()
        hello = {"type": "hello", "session_id": self.user.session_id, "mode": "observe"}
        assert self.exchange(line, hello)[0]["type"] == "welcome"
        self.stage.post(e.Detach(line.number))

    @precondition(lambda self: self.user.session_id is not None)
    @rule()
    def stranger(self) -> None:
        """Another principal with the right id gets a session of its own."""
        self.stall(stuck=False)
        line = self.new_line()
        hello = m.Hello(session_id=self.user.session_id)
        self.stage.post(e.Attach(line.number, "stranger", "user", hello))
        welcome = json.loads(line.frames.popleft())
        assert welcome["session_id"] != self.user.session_id
        assert not line.frames
        self.stage.post(e.Detach(line.number))

    # --- the server
    # ----------------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.stage.engine.step()
            self.stage.post(e.Tick())
        self.drain()

    @rule(seconds=st.sampled_from([0.1, 1.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.stage.clock.now_s += seconds
        self.stage.post(e.Tick())
        self.drain()

    @rule()
    def kill(self) -> None:
        self.stall(stuck=False)
        self.restarts += 1
        self.line = None
        self.stage.store.crash()
        self.stage.clock.now_s += 1
        self.stage.start()

    @rule(stuck=st.booleans())
    def stall(self, stuck: bool) -> None:
        """The disk is slow: nothing is written, and so nothing sent, until it is not."""
        self.stage.is_store_stuck = stuck
        self.stage.post(e.Tick())
        self.drain()

    @precondition(lambda self: self.user.has_asked)
    @rule()
    def fail_disk(self) -> None:
        """A write fails: whoever is there is sent away, and comes back to what the disk has."""
        self.stall(stuck=False)
        self.stage.disk.failing.add(self.user.session_id)
        self.restarts += 1
        self.has_disk_failed = True

    @precondition(lambda self: self.line is not None)
    @rule(temperature=st.sampled_from([0.1, 0.2]))
    def configure(self, temperature: float) -> None:
        self.user.has_asked = True
        self.send({"type": "config", "data": {"temperature": temperature}})

    @precondition(lambda self: self.line is not None)
    @rule(congested=st.booleans())
    def congest(self, congested: bool) -> None:
        assert self.line is not None
        self.stage.post((e.Congested if congested else e.Drained)(self.line.number))
        self.drain()

    # --- what must hold
    # ------------------------------------------------------------------------------------------------

    @invariant()
    def starts_in_order(self) -> None:
        order = [int(each[1:]) for each in self.user.started]
        assert len(order) == len(set(order))
        # A request that a failing disk did not take is accepted later, when it is sent again.
        assert order == sorted(order) or self.has_disk_failed

    @invariant()
    def ends_are_right(self) -> None:
        for request_id, end in self.user.terminals.items():
            prompt, _ = self.asked[request_id]
            text = self.user.texts.get(request_id, "")
            assert ANSWERS[prompt].startswith(text)
            assert (
                end in ("stop", "length")
                or (end == "cancelled" and request_id in self.cancelled)
                or (end == "model_failed" and self.restarts >= MAX_RESUMES)
            )
            if end == "stop":
                assert text == ANSWERS[prompt]

    def teardown(self) -> None:
        """With a network and time, everything asked for comes to its end and the user has all of it."""
        self.stall(stuck=False)
        self.stage.disk.failing.clear()
        self.connect(None)
        for request_id in self.asked:
            self.send_request(request_id)  # as a client does with what was not answered before the line died
        for _ in range(130 * (len(self.asked) + 1)):
            if not self.stage.engine.step():
                break
            self.stage.post(e.Tick())
        self.drain()
        assert set(self.user.terminals) == set(self.asked)
        self.stage.engine.close()

    # --- plumbing
    # ------------------------------------------------------------------------------------------------------

    def new_line(self) -> HubClient:
        line = HubClient(self.stage, max(self.stage.clients, default=0) + 1)
        self.stage.clients[line.number] = line
        return line

    def send_request(self, request_id: str) -> None:
        self.user.has_asked = True
        prompt, tokens = self.asked[request_id]
        config = {"max_new_tokens": tokens, "do_sample": False}
        self.send({"type": "inference", "request_id": request_id, "input_ids": [prompt], "config": config})

    def send(self, message: dict[str, Any]) -> None:
        assert self.line is not None
        for outcome in self.line.door.receive(json.dumps(message).encode(), text=True):
            self.line.take(outcome)
        self.drain()

    def drain(self) -> None:
        """The user reads what has come."""
        while self.line is not None and self.line.frames:
            message = json.loads(self.line.frames.popleft())
            assert message.get("code") not in ("conflict", "internal", "bad_message"), message
            if message.get("code") == "queue_full":
                del self.asked[message["request_id"]]
            self.user.receive(message)
        if self.line is not None and self.line.close_code is not None:
            self.line = None

    def exchange(self, line: HubClient, message: dict[str, Any]) -> list[dict[str, Any]]:
        for outcome in line.door.receive(json.dumps(message).encode(), text=True):
            line.take(outcome)
        return [json.loads(frame) for frame in line.frames]


TestHub = HubMachine.TestCase
TestHub.settings = settings(stateful_step_count=40)
