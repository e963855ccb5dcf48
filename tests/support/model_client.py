"""Clients that believe nothing: they apply events as the protocol says and fail at the first one out of place."""

from __future__ import annotations

import hashlib
from typing import Any, Literal


class Story:
    """What all clients of a session have seen of it together: no event may ever say two things."""

    def __init__(self) -> None:
        self.payloads: dict[tuple[int, int], dict[str, Any]] = {}
        self.session_id: str | None = None
        self.has_asked = False
        """Whether the session was used, so that the server has to keep it."""
        self.floor = 0
        """The newest acknowledgement of an owner."""
        self.may_have_expired = False
        self.has_lost_power = False
        """Whether the server may know less than it has sent, as at the level `os` only ends are sure to be kept."""
        self.is_old_copy = False
        """Whether the server was given an old copy of its files, so that it may have to start over."""

    def tell(self, message: dict[str, Any]) -> None:
        position = (message["epoch"], message["seq"])
        assert self.payloads.setdefault(position, message) == message, "one position, two payloads"


class ModelClient:
    """What one device knows of the session, over all its connections."""

    def __init__(self, story: Story | None = None, mode: Literal["takeover", "observe"] = "takeover") -> None:
        self.story = story or Story()
        self.mode = mode
        self.epoch = 0
        self.last_seq = 0
        self.acked = 0
        self.last_terminal = 0
        self.window: int | None = None
        self.window_base = 0
        self.texts: dict[str, str] = {}
        self.next_index: dict[str, int] = {}
        self.terminals: dict[str, str] = {}
        self.started: list[str] = []
        self.is_resetting = False

    @property
    def session_id(self) -> str | None:
        return self.story.session_id

    @session_id.setter
    def session_id(self, session_id: str | None) -> None:
        self.story.session_id = session_id

    def hello(self, *, window: int | None) -> dict[str, Any]:
        self.window = window
        self.last_terminal = 0
        hello: dict[str, Any] = {"type": "hello", "window": window, "mode": self.mode}
        if self.story.session_id is not None:
            hello["session_id"] = self.story.session_id
            if self.epoch:
                hello["resume"] = {"epoch": self.epoch, "last_seq": self.last_seq}
        return hello

    def ack(self, seq: int | None) -> None:
        """Notes what an ack does; a bare one covers what came up to the last terminal event on this connection."""
        seq = max(self.last_terminal, self.story.floor) if seq is None else seq
        self.acked = max(self.acked, seq)
        self.window_base = max(self.window_base, seq)
        if self.mode == "takeover":
            self.story.floor = max(self.story.floor, seq)

    def receive(self, message: dict[str, Any]) -> None:
        if "seq" in message and "epoch" in message:
            self._event(message)
        elif message["type"] == "welcome":
            self._welcome(message)
        elif message["type"] == "snapshot":
            self._snapshot(message)
        elif message["type"] == "ack_received":
            assert message["floor_seq"] <= self.story.floor, "the floor passed the owner's ack"

    def _welcome(self, message: dict[str, Any]) -> None:
        story = self.story
        if story.session_id is None or (message["session_id"] != story.session_id and not story.has_asked):
            # A session in which nothing was asked yet lives in memory only, and a kill takes it.
            assert message["status"] == "new"
            story.session_id, story.floor = message["session_id"], 0
            self.epoch, self.last_seq = message["epoch"], 0
        assert message["session_id"] == story.session_id, "the session was lost"
        self.is_resetting = message["status"] == "reset"
        if story.may_have_expired:
            story.floor = max(story.floor, message["floor_seq"])
        if self.is_resetting and story.is_old_copy:
            self.terminals = {}
            return
        if self.is_resetting and story.has_lost_power and message["reason"] == "client_ahead":
            return
        if self.is_resetting:
            assert message["reason"] == "below_floor", f"a needless reset: {message['reason']}"
            assert self.last_seq < story.floor, "a reset though nothing was missing"
        elif not self.epoch:
            assert message["floor_seq"] <= story.floor
            self.epoch, self.last_seq = message["epoch"], message["floor_seq"]
        assert message["head_seq"] >= self.last_seq, "the server forgot events that it had sent"
        self.window_base = self.last_seq

    def _snapshot(self, message: dict[str, Any]) -> None:
        assert self.is_resetting, "a snapshot without a reset"
        self.is_resetting = False
        self.epoch, self.last_seq = message["epoch"], message["as_of"]
        self.window_base = max(self.acked, self.last_seq)
        for request in message["requests"]:
            request_id = request["request_id"]
            # One that was cancelled in the queue has ended without a start.
            has_started = request["state"] == "running" or request["next_index"] > 0
            if has_started and request_id not in self.started:
                self.started.append(request_id)
            assert request_id not in self.terminals or request.get("terminal") is not None, "an end was taken back"
            self.texts[request_id] = request["text"]
            self.next_index[request_id] = request["next_index"]
            if request.get("terminal") is not None:
                self._end(request_id, request["terminal"])

    def _event(self, message: dict[str, Any]) -> None:
        assert not self.is_resetting, "an event before the snapshot"
        assert message["seq"] == self.last_seq + 1, f"expected seq {self.last_seq + 1}: {message}"
        if self.window is not None:
            assert message["seq"] <= self.window_base + self.window, "more in flight than the window allows"
        self.story.tell(message)
        self.last_seq, self.epoch = message["seq"], message["epoch"]
        request_id = message.get("request_id")
        if request_id is None:
            return
        assert request_id not in self.terminals, "an event after the terminal one"
        match message["type"]:
            case "start":
                self.started.append(request_id)
            case "token" if request_id in self.started:  # else it came to a session whose floor is inside an answer
                assert message["index"] == self.next_index.get(request_id, 0), "a token index was skipped or repeated"
                self.next_index[request_id] = message["index"] + len(message["ids"])
                self.texts[request_id] = self.texts.get(request_id, "") + message["data"]
            case "done" | "error":
                self.last_terminal = message["seq"]
                self._end(request_id, message)

    def _end(self, request_id: str, message: dict[str, Any]) -> None:
        self.terminals[request_id] = message.get("finish_reason") or message["code"]
        if message["type"] == "done" and request_id in self.started:
            assert message["total_tokens"] == self.next_index.get(request_id, 0)
            text = self.texts.get(request_id, "")
            assert message["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()
