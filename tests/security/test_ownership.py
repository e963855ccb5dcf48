"""What one user of a server may learn of another, and do to them: nothing."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import Any

import pytest

from tests.security.box import Box, Line

QUESTION = {"type": "inference", "prompt": "whose is this?"}
IDS = {"session_id", "epoch", "created", "last_activity"}


@pytest.fixture(scope="module")
def ann(box: Box) -> str:
    return box.token("ann")


@pytest.fixture(scope="module")
def bob(box: Box) -> str:
    return box.token("bob")


def session_of(box: Box, token: str) -> str:
    with box.line(token) as line:
        line.send(QUESTION)
        line.until("done")
        return line.first["session_id"]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in IDS}


def answers_about(line: Line, session_id: str) -> list[dict[str, Any]]:
    """What is said of a session to every message that can name one."""
    return [
        line.ask({"type": "history", "session_id": session_id}),
        line.ask({"type": "update_session", "session_id": session_id, "title": "mine"}),
        line.ask({"type": "get_status", "session_id": session_id}),
        line.ask({"type": "end_session", "session_id": session_id}),
    ]


def test_a_foreign_session_is_answered_like_one_that_never_was(box: Box, ann: str, bob: str) -> None:
    """An id is an address, no secret, and a guess must not even tell that it exists: CVE-2026-44570, Open WebUI."""
    foreign, unknown = session_of(box, ann), str(uuid.uuid4())
    position = {"epoch": 1, "last_seq": 0}
    for hello in ({}, {"resume": position}, {"mode": "observe"}, {"mode": "takeover", "resume": position}):
        with box.line(bob, session_id=foreign, **hello) as one, box.line(bob, session_id=unknown, **hello) as other:
            assert one.first.get("session_id") != foreign
            assert without_ids(one.first) == without_ids(other.first)
            assert other.first.get("session_id") != unknown, "an id is the server's to choose"
    with box.line(bob) as line:
        told_of_foreign = json.dumps(answers_about(line, foreign)).replace(foreign, "ID")
        told_of_unknown = json.dumps(answers_about(line, unknown)).replace(unknown, "ID")
        assert told_of_foreign == told_of_unknown
        assert foreign not in json.dumps(line.ask({"type": "list_sessions"}))
    with box.line(ann, session_id=foreign) as line:
        assert line.first["status"] == "resumed"


def test_an_admin_sees_no_contents_either(box: Box, ann: str) -> None:
    """A role that administers is no master key."""
    foreign = session_of(box, ann)
    with box.line(box.admin_token, session_id=foreign) as line:
        assert line.first["reason"] == "session_unknown"
        assert "whose is this" not in json.dumps(answers_about(line, foreign))


@pytest.mark.parametrize("session_id", ["../decoy", "..", ".", "/", "x" * 64, "a/../../decoy", "%2e%2e/decoy", "~"])
def test_a_session_id_is_never_a_path(box: Box, ann: str, session_id: str) -> None:
    """MLflow opened the file that an id led to: CVE-2023-1177. Even to a session's own files there is no other way."""
    real = session_of(box, ann)
    shutil.copytree(box.state / "sessions" / real, box.state / "decoy", dirs_exist_ok=True)
    with box.line(ann, session_id=session_id) as line:
        assert line.first["reason"] == "session_unknown"
        refused = line.ask({"type": "end_session", "session_id": session_id})
        assert refused["type"] == "error"
    assert (box.state / "decoy" / "meta.json").exists()


def test_an_observer_cannot_write(box: Box, ann: str) -> None:
    """Whoever is shown a session may look at it."""
    with box.line(ann) as owner:
        owner.send(QUESTION)
        owner.until("done")
        with box.line(ann, session_id=owner.first["session_id"], mode="observe") as guest:
            writes = [
                QUESTION,
                {"type": "config", "data": {"max_new_tokens": 1}},
                {"type": "import", "messages": [{"role": "user", "content": "x"}]},
                {"type": "update_session", "session_id": owner.first["session_id"], "title": "mine"},
                {"type": "end_session", "session_id": owner.first["session_id"]},
            ]
            guest.until("log")
            assert [guest.ask(write)["code"] for write in writes] == ["forbidden"] * len(writes)


def test_a_user_administers_nothing(box: Box, ann: str) -> None:
    """Any user of Ollama could delete every model."""
    with box.line(ann) as line:
        for message in (
            {"type": "switch_model", "name": "llmws-guide"},
            {"type": "delete_model", "model_name": "llmws-guide"},
            {"type": "download_model", "source": "hub", "id": "x/y"},
        ):
            assert line.ask(message)["code"] in ("forbidden", "bad_request"), message
        assert [model["name"] for model in line.ask({"type": "list_models"})["models"]] == ["llmws-guide"]


def test_a_role_that_only_measures_opens_no_session(box: Box) -> None:
    """A monitor's token lies in more places than a person's."""
    with box.line(box.token("meter", "metrics")) as line:
        assert (line.first["code"], line.close_code()) == ("forbidden", 4403)
