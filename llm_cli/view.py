"""What the person in front of the terminal knows of the session: a value, and how messages change it.

Pure: knows neither terminal nor client. Every string of the server's passes `clean_line` here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llm_cli.render import clean_line
from llmws.client import Connected, Disconnected, Done, Queue
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m


class View(m.Value, frozen=True, kw_only=True):
    """The state of the session as it is shown.

    Attributes:
        retry_in_s: when the next attempt to connect begins; None when there is none.
        model: the server's present model; None while it has none.
        memory: the device and its free memory, as a word or two.
        tokens_per_s: of the last answer.
        is_observer: another client has the session; it is only watched here.
        is_refused: the server ended the last connection over a fault of its own before anything came.
    """

    connection: Literal["connecting", "online", "offline", "closed"] = "connecting"
    reason: str = ""
    retry_in_s: float | None = None
    session_id: str | None = None
    model: str | None = None
    memory: str = ""
    tokens_per_s: float | None = None
    is_observer: bool = False
    is_refused: bool = False


def reduce(view: View, message: object) -> View:
    """The view after a notice of the client, or an event of an answer."""
    replace = msgspec.structs.replace
    match message:
        case Connected(welcome=welcome, mode=mode):
            return replace(
                view,
                is_observer=mode == "observe",
                connection="online",
                reason="",
                retry_in_s=None,
                session_id=welcome.session_id,
                model=_name(welcome.model),
                memory=_memory(welcome.resources),
            )
        case Disconnected():
            connection: Literal["offline", "closed"] = "closed" if message.retry_in_s is None else "offline"
            return replace(
                view,
                connection=connection,
                reason=clean_line(message.reason),
                retry_in_s=message.retry_in_s,
                is_refused=message.is_refusal,
            )
        case Done():
            return replace(view, tokens_per_s=message.timing.tokens_per_s)
        case m.ModelSwitched():
            return replace(view, model=_name(message.name))
        case m.Status():
            return replace(view, model=_name(message.model), memory=_memory(message.memory))
        case _:
            return view


def notice(view: View, message: object) -> str | None:
    """The line that a person should see when `message` arrives at `view`; None for most."""
    match message:
        case Connected(welcome=welcome, mode=mode):
            return _greeting(view, welcome) or _change_of_hands(view, is_observer=mode == "observe")
        case Disconnected(retry_in_s=None):
            return None  # whoever waits for something is told, as an error
        case Disconnected(is_refusal=True) if view.is_refused:
            return None  # said the first time
        case Disconnected() if view.connection == "connecting":
            return f"not connected ({clean_line(message.reason)}); trying again"
        case Disconnected() if view.connection == "online":
            return f"{clean_line(message.reason)}; connecting again"
        case m.ModelSwitched():
            return f"the model is now {clean_line(message.name)}"
        case m.Error(code=ErrorCode.STORAGE_FAILED):
            return None  # the connection ends over it, and its end is told
        case m.Error() | m.Log():
            return clean_line(message.message)
        case _:
            return None


def toolbar(view: View) -> str:
    """The bottom line of the chat."""
    parts = [_connection(view)]
    if view.connection == "online":
        parts += ["another client has this session"] if view.is_observer else []
        parts.append(f"model {view.model}" if view.model else "no model yet")
    if view.tokens_per_s is not None:
        parts.append(f"{view.tokens_per_s:.0f} tokens/s")
    if view.connection == "online":
        parts.append(view.memory)
    return " · ".join(part for part in parts if part)


def place(queue: Queue) -> str:
    """A request's place in the queue, in words; empty when it is its turn."""
    if queue.position <= 0:
        return ""
    words = f"waiting: {queue.position} to be answered before"
    return words if queue.eta_ms is None else f"{words}, about {max(1, round(queue.eta_ms / 1000))} s"


def _change_of_hands(view: View, *, is_observer: bool) -> str | None:
    if is_observer == view.is_observer:
        return None
    if is_observer:
        return "another client took this session over; what it does is shown here, and what you send takes it back"
    return "this session is yours again"


def _connection(view: View) -> str:
    match view.connection:
        case "connecting":
            return "connecting…"
        case "online":
            return "connected"
        case "offline":
            return f"not connected: {view.reason}; trying again"
        case "closed":
            return f"closed: {view.reason}"


def _greeting(view: View, welcome: m.Welcome) -> str | None:
    if welcome.reason == "session_unknown":
        if view.is_refused:
            return None  # it was never kept, and nothing of it was shown
        return f"the server no longer has this session; this is a new one: {clean_line(welcome.session_id)}"
    if welcome.reason == "below_floor":
        return "what was missed here is kept in the conversation alone; in the chat, /history shows it"
    if welcome.status == "reset":
        return f"the server cannot tell what was missed ({clean_line(welcome.reason or 'unknown')})"
    if view.connection == "offline" and not view.is_refused:
        return "connected" if view.session_id is None else "connected again"
    return None


def _name(model: str | None) -> str | None:
    return None if model is None else clean_line(model)


def _memory(device: m.DeviceSummary) -> str:
    return f"{clean_line(device.device)}, {device.free_gb:.1f} of {device.total_gb:.1f} GB free"
