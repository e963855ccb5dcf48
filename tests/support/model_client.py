"""A client that believes nothing: it applies events as the protocol says and fails at the first one out of place."""

from __future__ import annotations

import hashlib
from typing import Any


class ModelClient:
    """What one user's client knows of a session, over all its connections."""

    def __init__(self) -> None:
        self.session_id: str | None = None
        self.epoch = 0
        self.last_seq = 0
        self.acked = 0
        self.has_asked = False
        self.last_terminal = 0
        self.window: int | None = None
        self.window_base = 0
        self.texts: dict[str, str] = {}
        self.next_index: dict[str, int] = {}
        self.terminals: dict[str, str] = {}
        self.started: list[str] = []
        self.payloads: dict[tuple[int, int], Any] = {}

    def hello(self, *, window: int | None) -> dict[str, Any]:
        self.window = window
        self.last_terminal = 0
        hello: dict[str, Any] = {"type": "hello", "window": window}
        if self.session_id is not None:
            hello |= {"session_id": self.session_id, "resume": {"epoch": self.epoch, "last_seq": self.last_seq}}
        return hello

    def ack(self, seq: int | None) -> None:
        """Notes what an ack does; a bare one covers what came up to the last terminal event on this connection."""
        seq = max(self.last_terminal, self.acked) if seq is None else seq
        self.acked = max(self.acked, seq)
        self.window_base = max(self.window_base, seq)

    def receive(self, message: dict[str, Any]) -> None:
        if "seq" in message and "epoch" in message:
            self._event(message)
        elif message["type"] == "welcome":
            self._welcome(message)
        elif message["type"] == "snapshot":
            self._snapshot(message)
        elif message["type"] == "ack_received":
            assert message["floor_seq"] <= self.acked, "the floor passed the owner's ack"

    def _welcome(self, message: dict[str, Any]) -> None:
        if self.session_id is None or (message["session_id"] != self.session_id and not self.has_asked):
            # A session in which nothing was asked yet lives in memory only, and a kill takes it.
            assert message["status"] == "new"
            self.session_id, self.epoch = message["session_id"], message["epoch"]
            self.last_seq = self.acked = 0
        assert message["session_id"] == self.session_id, "the session was lost"
        assert message["status"] != "reset", f"a needless reset: {message['reason']}"
        assert message["head_seq"] >= self.last_seq, "the server forgot events that it had sent"
        self.window_base = max(self.acked, self.last_seq)

    def _snapshot(self, message: dict[str, Any]) -> None:
        raise AssertionError("a snapshot without a reset")

    def _event(self, message: dict[str, Any]) -> None:
        assert message["seq"] == self.last_seq + 1, f"expected seq {self.last_seq + 1}: {message}"
        if self.window is not None:
            assert message["seq"] <= self.window_base + self.window, "more in flight than the window allows"
        assert self.payloads.setdefault((message["epoch"], message["seq"]), message) == message
        self.last_seq, self.epoch = message["seq"], message["epoch"]
        request_id = message.get("request_id")
        if request_id is None:
            return
        assert request_id not in self.terminals, "an event after the terminal one"
        if message["type"] in ("done", "error"):
            self.last_terminal = message["seq"]
        match message["type"]:
            case "start":
                self.started.append(request_id)
            case "token":
                assert message["index"] == self.next_index.get(request_id, 0), "a token index was skipped or repeated"
                self.next_index[request_id] = message["index"] + len(message["ids"])
                self.texts[request_id] = self.texts.get(request_id, "") + message["data"]
            case "done":
                assert message["total_tokens"] == self.next_index.get(request_id, 0)
                text = self.texts.get(request_id, "")
                assert message["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()
                self.terminals[request_id] = message["finish_reason"]
            case "error":
                self.terminals[request_id] = message["code"]
