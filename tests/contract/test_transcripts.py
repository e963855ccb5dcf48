"""The golden transcripts: what any client may rely on, word for word.

`...` stands for any value, a name in angle brackets for one that must be the same wherever it stands; fields that are
not shown may be present.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.stages import HubStage, SocketStage, Stage

ANY: Any = ...
HELLO_SHA256 = hashlib.sha256(b"Hello").hexdigest()


@pytest.fixture(params=["hub", "socket"])
def stage_kind(request) -> str:
    return request.param


async def _stage(kind: str, folder: Path, **options: Any) -> AsyncIterator[Stage]:
    if kind == "hub":
        stage: Any = HubStage(**options)
    else:
        stage = SocketStage(folder, **options)
        await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()


@pytest.fixture
async def stage(stage_kind, tmp_path):
    async for each in _stage(stage_kind, tmp_path):
        yield each


@pytest.fixture
async def open_stage(stage_kind, tmp_path):
    """A server without authentication, for clients that know none."""
    async for each in _stage(stage_kind, tmp_path, token=None):
        yield each


class Script:
    """One connection's side of a transcript. Names in angle brackets are bound at their first sight."""

    def __init__(self, stage: Stage, client: Any, names: dict[str, Any]) -> None:
        self.stage = stage
        self.client = client
        self.names = names

    async def c(self, message: dict[str, Any] | str | bytes) -> None:
        """The client sends."""
        if isinstance(message, dict) and message.get("auth", None) is ANY:
            message = {**message, "auth": self.stage.token}
        await self.client.send(self.fill(message))

    async def s(self, expected: dict[str, Any]) -> dict[str, Any]:
        """The server sends exactly this next."""
        message = await self.client.receive()
        self.match(expected, message, str(message))
        return message

    async def s_unsequenced(self, expected: dict[str, Any]) -> None:
        message = await self.s(expected)
        assert "seq" not in message
        assert "epoch" not in message

    async def closed(self, code: int) -> None:
        assert await self.client.closed() == code

    def fill(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.fill(each) for key, each in value.items()}
        if isinstance(value, str) and value in self.names:
            return self.names[value]
        return value

    def match(self, expected: Any, actual: Any, where: str) -> None:
        if expected is ANY:
            return
        if isinstance(expected, str) and expected.startswith("<"):
            assert self.names.setdefault(expected, actual) == actual, where
        elif isinstance(expected, dict):
            assert isinstance(actual, dict), where
            for key, each in expected.items():
                assert key in actual, f"no {key} in {where}"
                self.match(each, actual[key], where)
        elif isinstance(expected, list):
            assert len(expected) == len(actual), where
            for one, other in zip(expected, actual, strict=True):
                self.match(one, other, where)
        else:
            assert actual == expected, where


async def open_script(stage: Stage, names: dict[str, Any] | None = None) -> Script:
    return Script(stage, await stage.connect(), {} if names is None else names)


HELLO = {"type": "hello", "protocol": [1], "auth": ANY}
ASK = {
    "type": "inference",
    "request_id": "a",
    "prompt": {"system": "", "user": "hi"},
    "config": {"max_new_tokens": 8, "do_sample": False},
}
START = {
    "type": "start",
    "seq": 1,
    "epoch": "<E>",
    "request_id": "a",
    "model": ANY,
    "tokens_in": ANY,
    "max_tokens": 8,
    "seed": ANY,
}
FIRST = {"type": "token", "seq": 2, "epoch": "<E>", "request_id": "a", "index": 0, "data": "He", "ids": [1]}
SECOND = {"type": "token", "seq": 3, "epoch": "<E>", "request_id": "a", "index": 1, "data": "llo", "ids": [2, 3, 0]}
DONE = {
    "type": "done",
    "seq": 4,
    "epoch": "<E>",
    "request_id": "a",
    "total_tokens": 4,
    "finish_reason": "stop",
    "usage": {"prompt_tokens": ANY, "completion_tokens": 4, "cached_tokens": ANY},
    "timing": ANY,
    "text_sha256": HELLO_SHA256,
}


async def welcomed(stage: Stage, names: dict[str, Any] | None = None, **hello: Any) -> Script:
    """A fresh session, hello and welcome done."""
    script = await open_script(stage, names)
    await script.c({**HELLO, **hello})
    await script.s({"type": "welcome", "status": "new", "session_id": "<S>", "epoch": "<E>"})
    return script


async def asked(stage: Stage, *, steps: int = 2) -> Script:
    """A fresh session with one question, and the first `steps` steps of its answer received."""
    script = await welcomed(stage)
    await script.c(ASK)
    await script.s(START)
    if steps > 0:
        await stage.step()
        await script.s(FIRST)
    if steps > 1:
        await stage.step()
        await script.s(SECOND)
        await script.s(DONE)
    return script


async def test_01_fresh_session_one_question(stage):
    script = await open_script(stage)
    await script.c(HELLO)
    await script.s(
        {
            "type": "welcome",
            "protocol": 1,
            "session_id": "<S>",
            "status": "new",
            "epoch": "<E>",
            "head_seq": 0,
            "floor_seq": 0,
            "requests": [],
            "model": ANY,
            "capabilities": {"max_context": ANY, "vision": False},
        }
    )
    await script.c(ASK)
    await script.s(START)
    await stage.step()
    await script.s(FIRST)
    await stage.step()
    await script.s(SECOND)
    await script.s(DONE)
    assert await stage.has_buffer(script.names["<S>"])
    await script.c({"type": "ack", "seq": 4})
    await script.s({"type": "ack_received", "seq": 4, "floor_seq": 4})
    assert not await stage.has_buffer(script.names["<S>"])


async def test_01b_the_last_seq_is_remembered_after_the_buffer_is_gone(stage):
    script = await asked(stage)
    await script.c({"type": "ack", "seq": 4})
    await script.s({"type": "ack_received", "seq": 4, "floor_seq": 4})
    await stage.restart()
    again = await open_script(stage, script.names)
    await again.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 4}})
    await again.s({"type": "welcome", "session_id": "<S>", "status": "resumed", "head_seq": 4, "floor_seq": 4})


async def test_02_cut_and_resume(stage):
    first = await asked(stage, steps=1)
    watcher = await open_script(stage, first.names)
    await watcher.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 2}, "mode": "observe"})
    await watcher.s({"type": "welcome", "status": "resumed"})
    await watcher.s({"type": "log", "code": "caught_up"})
    await first.client.cut()
    await stage.step()
    await watcher.s(SECOND)
    await watcher.s(DONE)
    script = await open_script(stage, first.names)
    await script.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 2}})
    await script.s(
        {
            "type": "welcome",
            "session_id": "<S>",
            "status": "resumed",
            "epoch": "<E>",
            "head_seq": 4,
            "floor_seq": 0,
            "requests": [],
        }
    )
    await script.s(SECOND)
    await script.s(DONE)
    await script.s_unsequenced({"type": "log", "code": "caught_up", "head_seq": 4, "message": ANY})


async def test_03_by_uuid_alone(open_stage):
    first = await asked(open_stage)
    await first.client.cut()
    script = await open_script(open_stage, first.names)
    await script.c({"session_id": "<S>"})
    await script.s(
        {
            "type": "welcome",
            "session_id": "<S>",
            "status": "resumed",
            "epoch": "<E>",
            "head_seq": 4,
            "floor_seq": 0,
        }
    )
    for event in (START, FIRST, SECOND, DONE):
        await script.s(event)
    await script.s_unsequenced({"type": "log", "code": "caught_up"})
    await script.c({"type": "ack"})
    await script.s({"type": "ack_received", "seq": 4, "floor_seq": 4})


async def test_04_kill_and_resume(stage):
    first = await asked(stage, steps=1)
    await stage.restart()
    script = await open_script(stage, first.names)
    await script.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 2}})
    welcome = await script.s(
        {
            "type": "welcome",
            "session_id": "<S>",
            "status": "resumed",
            "epoch": "<F>",
            "head_seq": ANY,
            "requests": [{"request_id": "a", "state": "running"}],
        }
    )
    assert script.names["<F>"] > script.names["<E>"]
    # The notice that a replay is over comes after whatever was in the log at the hello: nothing yet, or the event
    # that says that the request goes on.
    resumed = {
        "type": "log",
        "seq": 3,
        "epoch": "<F>",
        "code": "resumed_after_restart",
        "request_id": "a",
        "from_index": 1,
        "exact": True,
        "message": ANY,
    }
    caught_up = {"type": "log", "code": "caught_up", "head_seq": welcome["head_seq"]}
    for expected in (caught_up, resumed) if welcome["head_seq"] == 2 else (resumed, caught_up):
        await script.s(expected)
    await stage.step()
    await script.s({**SECOND, "seq": 4, "epoch": "<F>"})
    await script.s({**DONE, "seq": 5, "epoch": "<F>"})


@pytest.mark.parametrize(
    ("reason", "resume"),
    [
        ("unknown_epoch", {"epoch": 1, "last_seq": 2}),
        ("client_ahead", {"epoch": "<E>", "last_seq": 99}),
        ("below_floor", {"epoch": "<E>", "last_seq": 0}),
    ],
)
async def test_05_resets(stage, reason, resume):
    first = await asked(stage, steps=1)
    await first.c({"type": "ack", "seq": 1})
    await first.s({"type": "ack_received", "seq": 1, "floor_seq": 1})
    script = await open_script(stage, first.names)
    await script.c({**HELLO, "session_id": "<S>", "resume": resume})
    await script.s({"type": "welcome", "session_id": "<S>", "status": "reset", "reason": reason})
    await script.s(
        {
            "type": "snapshot",
            "as_of": 2,
            "epoch": ANY,
            "requests": [{"request_id": "a", "state": "running", "text": "He", "next_index": 1}],
        }
    )
    await script.s_unsequenced({"type": "log", "code": "caught_up", "head_seq": 2})
    await stage.step()
    await script.s(SECOND)
    await script.s(DONE)


async def test_05_reset_after_damage(stage):
    first = await asked(stage)
    await stage.damage_log(first.names["<S>"])
    await stage.restart()
    script = await open_script(stage, first.names)
    await script.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 1}})
    await script.s({"type": "welcome", "session_id": "<S>", "status": "reset", "reason": "log_corrupt"})
    snapshot = await script.s({"type": "snapshot", "as_of": ANY, "requests": ANY})
    await script.s_unsequenced({"type": "log", "code": "caught_up", "head_seq": snapshot["as_of"]})


@pytest.mark.parametrize("session_id", ["6f1c0000-0000-4000-8000-000000000000", "", "../../etc"])
async def test_05_unknown_session(stage, session_id):
    script = await open_script(stage)
    await script.c({**HELLO, "session_id": session_id})
    welcome = await script.s({"type": "welcome", "status": "new", "reason": "session_unknown"})
    assert welcome["session_id"] != session_id


async def test_06_takeover_and_observer(stage):
    first = await asked(stage, steps=1)
    second = await open_script(stage, first.names)
    await second.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 2}, "mode": "takeover"})
    await second.s({"type": "welcome", "status": "resumed"})
    await second.s_unsequenced({"type": "log", "code": "caught_up", "head_seq": 2})
    await first.closed(4409)
    await first.c({"type": "ack", "seq": 2})
    observer = await open_script(stage, first.names)
    await observer.c({**HELLO, "session_id": "<S>", "resume": {"epoch": "<E>", "last_seq": 1}, "mode": "observe"})
    await observer.s({"type": "welcome", "status": "resumed", "floor_seq": 0})
    await observer.s(FIRST)
    await observer.s_unsequenced({"type": "log", "code": "caught_up", "head_seq": 2})
    await observer.c({**ASK, "request_id": "b"})
    await observer.s_unsequenced({"type": "error", "code": "forbidden", "request_id": "b"})
    await stage.step()
    for script in (second, observer):
        await script.s(SECOND)
        await script.s(DONE)


async def test_07_the_same_request_again(stage):
    script = await asked(stage, steps=1)
    queue = {"type": "queue", "request_id": "a", "position": 0}
    conflict = {"type": "error", "request_id": "a", "code": "conflict", "retryable": False, "message": ANY}
    await script.c(ASK)
    await script.s_unsequenced(queue)
    await stage.step()
    await script.s(SECOND)
    await script.s(DONE)
    await script.c(ASK)
    await script.s_unsequenced(queue)
    await script.c({**ASK, "prompt": "other"})
    await script.s_unsequenced(conflict)
    await script.c({"type": "ack", "seq": 4})
    await script.s({"type": "ack_received", "seq": 4, "floor_seq": 4})
    duplicate = {
        "type": "error",
        "request_id": "a",
        "code": "duplicate",
        "terminal": "done",
        "retryable": False,
        "message": ANY,
    }
    await script.c(ASK)
    await script.s_unsequenced(duplicate)
    await script.c({**ASK, "prompt": "other"})
    await script.s_unsequenced(conflict)
    await stage.restart()
    again = await open_script(stage, script.names)
    await again.c({**HELLO, "session_id": "<S>"})
    await again.s({"type": "welcome", "status": "resumed"})
    await again.s({"type": "log", "code": "caught_up"})
    await again.c(ASK)
    await again.s_unsequenced(duplicate)


async def test_08_fifo_queue_notices_cancel(stage):
    script = await welcomed(stage)
    for request_id in ("a", "b", "c"):
        await script.c({**ASK, "request_id": request_id})
    seen = [await script.client.receive() for _ in range(3)]
    starts = [each for each in seen if each["type"] == "start"]
    queues = [(each["request_id"], each["position"]) for each in seen if each["type"] == "queue"]
    assert [each["request_id"] for each in starts] == ["a"]
    assert queues == [("b", 1), ("c", 2)]
    await script.c({"type": "cancel", "request_id": "b"})
    await script.s(
        {
            "type": "done",
            "seq": 2,
            "request_id": "b",
            "total_tokens": 0,
            "finish_reason": "cancelled",
            "text_sha256": ANY,
        }
    )
    await stage.step()
    await script.s({"type": "token", "seq": 3, "request_id": "a", "data": "He"})
    await script.c({"type": "cancel", "request_id": "a"})
    await script.s({"type": "done", "seq": 4, "request_id": "a", "total_tokens": 1, "finish_reason": "cancelled"})
    await script.s({"type": "start", "seq": 5, "request_id": "c"})
    await script.c({"type": "cancel", "request_id": "zzz"})
    await script.s_unsequenced(
        {"type": "error", "request_id": "zzz", "code": "bad_request", "message": "no such request"}
    )


async def test_09_rejections_and_errors(stage):
    script = await welcomed(stage)
    await script.c({**ASK, "config": {"temperature": -1}})
    await script.s_unsequenced(
        {
            "type": "error",
            "request_id": "a",
            "code": "bad_request",
            "field": "config.temperature",
            "retryable": False,
            "message": ANY,
        }
    )
    await script.c({**ASK, "model": "nope"})
    await script.s_unsequenced({"type": "error", "request_id": "a", "code": "model_not_found"})
    await script.c({**ASK, "prompt": "word " * 200})
    await script.s(
        {
            "type": "error",
            "seq": 1,
            "epoch": "<E>",
            "request_id": "a",
            "code": "context_too_long",
            "retryable": False,
            "message": ANY,
        }
    )
    await script.c("not JSON")
    await script.s_unsequenced({"type": "error", "code": "bad_message"})
    await script.c({"type": "nonsense"})
    await script.s_unsequenced({"type": "error", "code": "unknown_type"})
    await script.c({"type": "ping", "t": 5})
    await script.s({"type": "pong", "t": 5})


async def test_10_ping_before_any_hello(stage):
    script = await open_script(stage)
    await script.c({"type": "ping"})
    await script.s({"type": "pong"})
    await script.c(HELLO)
    await script.s({"type": "welcome", "status": "new"})


@pytest.mark.parametrize(
    ("frame", "code", "close"),
    [
        (ASK, "bad_message", 4400),
        ({"type": "hello", "auth": "wrong"}, "unauthorized", 4401),
        ({"type": "hello"}, "unauthorized", 4401),
    ],
)
async def test_10_refused_at_the_door(stage, frame, code, close):
    script = await open_script(stage)
    await script.c(frame)
    await script.s_unsequenced({"type": "error", "code": code})
    await script.closed(close)


async def test_10_no_hello_in_time(stage):
    script = await open_script(stage)
    await stage.hello_timeout()
    await script.closed(4408)


async def test_10_second_hello(stage):
    script = await welcomed(stage)
    await script.c(HELLO)
    await script.s_unsequenced({"type": "error", "code": "bad_message"})
    await script.c(ASK)
    await script.s(START)


async def test_11_original_client(open_stage):
    script = await open_script(open_stage)
    await script.c({})
    await script.s({"type": "welcome", "status": "new", "session_id": ANY, "capabilities": ANY})
    config = {
        "max_new_tokens": 40,
        "temperature": 0.7,
        "top_p": 0.95,
        "top_k": 50,
        "repetition_penalty": 1.1,
        "do_sample": True,
    }
    await script.c({"type": "config", "data": config})
    await script.s({"type": "config_ack", "config": config})
    await script.c({"type": "inference", "prompt": {"system": "", "user": "hello"}, "config": {"max_new_tokens": 30}})
    await script.s({"type": "start", "max_tokens": 30})
    await open_stage.step()
    await script.s({"type": "token", "data": "He"})
    await open_stage.step()
    await script.s({"type": "token", "data": "llo"})
    await script.s({"type": "done", "total_tokens": 4})
    entry = {"name": "llmws-guide", "path": "models/llmws-guide", "size_mb": ANY, "source": ANY}
    await script.c({"type": "get_resources"})
    await script.s(
        {
            "type": "resources",
            "cuda": ANY,
            "model": {"name": "llmws-guide", "path": "models/llmws-guide", "vision": False},
            "available_models": [entry],
        }
    )
    await script.c({"type": "list_models"})
    await script.s({"type": "models_list", "models": [entry]})
    await script.c({"type": "switch_model", "model_path": "models/llmws-guide"})
    message = await script.s({"type": ANY, "message": ANY})
    while message["type"] == "log":
        message = await script.s({"type": ANY, "message": ANY})
    assert message["type"] == "model_switched"
    await script.c({"type": "delete_model", "model_name": "../../etc"})
    await script.s({"type": "error", "code": "bad_request", "message": ANY})
    await script.c({"type": "ack"})
    await script.s({"type": "ack_received"})


async def test_12_slow_client(stage):
    script = await welcomed(stage, window=2)
    await script.c({"type": "inference", "request_id": "n", "input_ids": [9], "config": {"max_new_tokens": 20}})
    await script.s({"type": "start", "seq": 1})
    for _ in range(20):
        await stage.step()
    await script.s({"type": "token", "seq": 2})
    await script.c({"type": "ack", "seq": 2})
    await script.s({"type": "ack_received", "seq": 2, "floor_seq": 2})
    await script.s({"type": "token", "seq": 3})
    await script.s({"type": "token", "seq": 4})
    await script.c({"type": "ack", "seq": 4, "window": 1000})
    seen = await script.client.receive()
    while seen["type"] in ("ack_received", "token"):
        last = seen
        seen = await script.client.receive()
    assert (seen["type"], last["type"]) == ("done", "token")
    assert seen["total_tokens"] == 20
