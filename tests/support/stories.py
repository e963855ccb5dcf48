"""Sentences of the stories that are told on a `HubStage`."""

from __future__ import annotations

import json
from typing import Any

from llmws.session import events as e
from tests.support.stages import HubClient, HubStage

ASK: dict[str, Any] = {"type": "inference", "request_id": "a", "prompt": "hi"}
NUMBERS: dict[str, Any] = {
    "type": "inference",
    "input_ids": [9],
    "config": {"max_new_tokens": 60, "do_sample": False},
}
"""Sixty tokens, `1 2 3 …`; needs a `request_id`."""


async def client(stage: HubStage, **hello: Any) -> HubClient:
    """A connection that has said hello."""
    made = await stage.connect()
    await made.send({"type": "hello", "auth": stage.token, **hello})
    return made


async def welcomed(stage: HubStage, **hello: Any) -> tuple[HubClient, dict[str, Any]]:
    """A connection that has said hello, and its welcome."""
    made = await client(stage, **hello)
    return made, await made.receive()


def received(made: HubClient) -> list[dict[str, Any]]:
    """Everything that has come."""
    frames = [json.loads(frame) for frame in made.frames]
    made.frames.clear()
    return frames


async def types(made: HubClient) -> list[str]:
    """The types of everything that has come, `code` for errors and logs."""
    return [message.get("code", message["type"]) for message in received(made)]


def seqs(messages: list[dict[str, Any]]) -> list[int]:
    """The numbers of the events among messages."""
    return [message["seq"] for message in messages if "epoch" in message and "seq" in message]


def text(messages: list[dict[str, Any]]) -> str:
    """What the tokens among messages say."""
    return "".join(message["data"] for message in messages if message["type"] == "token")


async def finish(stage: HubStage, steps: int = 3) -> None:
    """Lets what runs go on."""
    for _ in range(steps):
        await stage.step()


def wait(stage: HubStage, seconds: float) -> None:
    """Lets time pass."""
    stage.clock.now_s += seconds
    stage.post(e.Tick())


def lose_records(stage: HubStage, session_id: str, log: str, count: int) -> None:
    """The process died before the last records of a log were written. The server must be down."""
    kept = stage.disk.sessions[session_id]
    lost = kept.records[log][-count:]
    del kept.records[log][-count:]
    kept.next_n[log] -= count
    kept.last_seq -= sum(record.kind == "event" for record in lost)


async def history(user: HubClient, **page: Any) -> list[dict[str, Any]]:
    """A page of the conversation; whatever came before is read too."""
    await user.send({"type": "history", "limit": 200, **page})
    return received(user)[-1]["messages"]


def noted(stage: HubStage, kind: type) -> list[Any]:
    """The store's operations of a kind, from now on."""
    seen: list[Any] = []
    submit = stage.store.submit

    def noting(*ops: Any) -> None:
        seen.extend(op for op in ops if isinstance(op, kind))
        submit(*ops)

    stage.store.submit = noting
    return seen
