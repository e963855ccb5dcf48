"""What the server has of a session at the end, set beside what its user has seen of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

from tests.faults.askers import Address
from tests.faults.journal import AnyEntry, Seen

TIMEOUT_S = 60
PAGE = 200


class Account(msgspec.Struct, frozen=True):
    """A session as the server has it: the events that nobody has acknowledged, and the conversation's answers."""

    head_seq: int
    events: list[Seen]
    answers: dict[str, str]


async def fetch(address: Address, session_id: str) -> Account:
    """Reads a session without taking it over or acknowledging anything."""
    async with (
        asyncio.timeout(TIMEOUT_S),
        connect(address.url, compression=None, max_size=2**25, proxy=None) as line,
    ):
        hello = {"type": "hello", "session_id": session_id, "mode": "observe", "auth": address.token}
        welcome = await _ask(line, hello, "welcome")
        assert welcome["session_id"] == session_id, "the server does not have the session"
        events = []
        message = await _next(line)
        while message.get("code") != "caught_up":
            if "seq" in message and "epoch" in message:
                events.append(msgspec.convert({**message, "entry": "seen"}, Seen))
            message = await _next(line)
        return Account(welcome["head_seq"], events, await _answers(line))


async def _answers(line: ClientConnection) -> dict[str, str]:
    """Every answer of the conversation, by its request."""
    answers: dict[str, str] = {}
    page = await _ask(line, {"type": "history", "limit": PAGE}, "history")
    while True:
        for each in page["messages"]:
            if each["role"] == "assistant":
                assert answers.setdefault(each["request_id"], each["content"]) == each["content"]
        if not page["more"]:
            return answers
        oldest = page["messages"][0]["id"]
        page = await _ask(line, {"type": "history", "limit": PAGE, "before_id": oldest}, "history")


async def _ask(line: ClientConnection, question: dict[str, Any], kind: str) -> dict[str, Any]:
    await line.send(json.dumps(question))
    while (message := await _next(line))["type"] != kind:
        assert message["type"] != "error", message
    return message


async def _next(line: ClientConnection) -> dict[str, Any]:
    return json.loads(await line.recv())


def differences(account: Account, entries: list[AnyEntry]) -> list[str]:
    """What the user has otherwise than the server, in words."""
    seen = [each for each in entries if isinstance(each, Seen)]
    ends = {each.request_id: each.text_sha256 for each in seen if each.type == "done"}
    found = []
    if seen and account.head_seq != seen[-1].seq:
        found.append(f"the log ends at {account.head_seq}, the user at {seen[-1].seq}")
    if (mine := _tokens(seen)) != mine | _tokens(account.events):
        found.append("the log has other tokens than the user has seen")
    seqs = [each.seq for each in account.events]
    if seqs != list(range(account.head_seq - len(seqs) + 1, account.head_seq + 1)):
        found.append("the log has a gap")
    hashes = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in account.answers.items()}
    if hashes != ends:
        found.append(f"the conversation has other answers: {sorted(set(hashes.items()) ^ set(ends.items()))[:4]}")
    return found


def _tokens(events: list[Seen]) -> dict[tuple[str | None, int], int]:
    return {(each.request_id, each.index + place): token for each in events for place, token in enumerate(each.ids)}
