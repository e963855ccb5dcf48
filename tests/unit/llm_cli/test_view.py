"""What a person knows of the session."""

import pytest

from llm_cli.view import View, notice, reduce, toolbar
from llmws.client import Connected, Disconnected
from llmws.protocol import messages as m

DEVICE = m.DeviceSummary(device="NVIDIA\x1b H200", total_gb=139.8, free_gb=120.06)


def connected(mode="takeover", **changes) -> Connected:
    fields = {
        "protocol": 1,
        "session_id": "s",
        "status": "resumed",
        "epoch": 1,
        "head_seq": 0,
        "floor_seq": 0,
        "requests": [],
        "model": "guide",
        "capabilities": m.Capabilities(vision=False, resume=True, flash_attention=False, max_context=0),
        "resources": DEVICE,
        "limits": m.Limits(max_message_bytes=1, max_queue=1),
        "heartbeat": m.Heartbeat(interval_s=1),
        "durability": "os",
        "server": m.ServerInfo(node_id="", version=""),
    }
    return Connected(welcome=m.Welcome(**(fields | changes)), mode=mode)


def done(rate: float) -> m.Done:
    return m.Done(
        request_id="r",
        total_tokens=1,
        finish_reason="stop",
        usage=m.Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=0),
        timing=m.Timing(queued_ms=0, ttft_ms=0, tokens_per_s=rate),
        text_sha256="",
    )


def after(*messages) -> View:
    view = View()
    for message in messages:
        view = reduce(view, message)
    return view


LOST = Disconnected(reason="the connection was\x1b lost", retry_in_s=1.0)


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        ([], "connecting…"),
        ([connected()], "connected · model guide · NVIDIA H200, 120.1 of 139.8 GB free"),
        ([connected(model=None)], "connected · no model yet · NVIDIA H200, 120.1 of 139.8 GB free"),
        ([connected(), done(88.1)], "connected · model guide · 88 tokens/s · NVIDIA H200, 120.1 of 139.8 GB free"),
        (
            [connected(mode="observe")],
            "connected · another client has this session · model guide · NVIDIA H200, 120.1 of 139.8 GB free",
        ),
        ([connected(), LOST], "not connected: the connection was lost; trying again"),
        ([Disconnected(reason="taken over", retry_in_s=None)], "closed: taken over"),
        (
            [connected(), m.ModelSwitched(name="big", path="", message="", max_context=1)],
            "connected · model big · NVIDIA H200, 120.1 of 139.8 GB free",
        ),
    ],
)
def test_the_toolbar(messages, line):
    assert toolbar(after(*messages)) == line


@pytest.mark.parametrize(
    ("view", "message", "line"),
    [
        (View(), connected(), None),
        (View(), connected(model=None), None),
        (
            View(),
            connected(status="new", reason="session_unknown"),
            "the server no longer has this session; this is a new one: s",
        ),
        (
            View(),
            connected(status="reset", reason="below_floor"),
            "what was missed here is kept in the conversation alone; in the chat, /history shows it",
        ),
        (
            View(),
            connected(status="reset", reason="log_corrupt"),
            "the server cannot tell what was missed (log_corrupt)",
        ),
        (View(connection="offline"), connected(), "connected"),
        (View(connection="offline", session_id="s"), connected(), "connected again"),
        (
            View(connection="online"),
            connected(mode="observe"),
            "another client took this session over; what it does is shown here, and what you send takes it back",
        ),
        (View(connection="online", is_observer=True), connected(mode="observe"), None),
        (
            View(connection="online", is_observer=True),
            connected(),
            "this session is yours again",
        ),
        (View(), LOST, "not connected (the connection was lost); trying again"),
        (View(connection="online"), LOST, "the connection was lost; connecting again"),
        (View(connection="offline"), LOST, None),
        (View(connection="offline", is_refused=True), connected(status="new", reason="session_unknown"), None),
        (
            View(connection="online"),
            Disconnected(reason="full", retry_in_s=1, is_refusal=True),
            "full; connecting again",
        ),
        (View(connection="online", is_refused=True), Disconnected(reason="full", retry_in_s=1, is_refusal=True), None),
        (View(), m.Error(code="storage_failed", message="full", retryable=True), None),
        (View(), Disconnected(reason="x", retry_in_s=None), None),
        (View(), m.ModelSwitched(name="b\x07ig", path="", message="", max_context=1), "the model is now big"),
        (View(), m.Log(code="x", message="a\nb"), "a b"),
        (View(), m.Error(code="x", message="no", retryable=False), "no"),
        (View(), done(1), None),
    ],
)
def test_notices(view, message, line):
    assert notice(view, message) == line
