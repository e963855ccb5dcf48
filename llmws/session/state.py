"""What the parts of the hub share: the tables of sessions and connections, the outbox, and the arguments of the whole.

Holds no decision. Invariant: `connections` maps just the attached connections, each to the session it is attached to.
"""

from __future__ import annotations

import msgspec

from llmws.protocol import CloseCode, ErrorCode, encode
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.attachment import Attachment
from llmws.session.rules import Rules
from llmws.session.session import Session


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub takes from the configuration, whose documentation tells what is not told here.

    Attributes:
        uptime_s: how long the server has been up in all its earlier starts.
        session_ttl_s: how long what is not acknowledged is kept for an absent client.
    """

    limits: m.Limits
    heartbeat: m.Heartbeat
    server: m.ServerInfo
    generation_defaults: m.Sampling
    rules: Rules = Rules()
    uptime_s: float = 0.0
    max_observers: int = 8
    max_sessions: int = 64
    max_pause_s: float = 3600.0
    requests_per_minute: int = 600
    session_ttl_s: float = 86_400.0
    conversation_ttl_d: float = 0.0
    load_on_demand: bool = True


class HubState:
    """The shared tables; `dirty` holds the sessions whose logs must be flushed at the end of the event."""

    def __init__(self, settings: HubSettings, *, clock: e.Clock, entropy: e.Entropy) -> None:
        self.settings = settings
        self.clock = clock
        self.entropy = entropy
        self.started_s = clock.monotonic()
        self.out: list[e.HubCommand] = []
        self.sessions: dict[str, Session] = {}
        self.connections: dict[int, Session] = {}
        self.detached_s: dict[str, float] = {}
        self.dirty: dict[str, Session] = {}
        self.device = m.DeviceSummary(device="", total_gb=0.0, free_gb=0.0)
        self.is_draining = False

    def uptime_s(self) -> float:
        """How long the server has been up, over all its starts: what sessions expire by, as no clock can jump it."""
        return self.settings.uptime_s + self.clock.monotonic() - self.started_s

    def attached(self) -> list[Session]:
        """The sessions that somebody is attached to."""
        return list({each.id: each for each in self.connections.values()}.values())

    def attachment(self, connection: int) -> Attachment | None:
        """The connection's attachment, if it is still attached."""
        session = self.connections.get(connection)
        return session.find(connection) if session else None

    def send(self, connection: int, message: m.Message) -> None:
        """Sends an un-sequenced message."""
        self.out.append(e.Send(connection, (encode(message),)))

    def reject(
        self,
        connection: int,
        code: ErrorCode,
        text: str,
        message: m.ClientMessage | None = None,
        *,
        field: str | None = None,
    ) -> None:
        """Answers a message that is not taken; nothing of the session's story changes."""
        self.send(connection, rejection(getattr(message, "request_id", None), code, text, field=field))

    def forget(self, session: Session) -> None:
        """The session leaves memory; see `Turns.forget`, which also stops its requests."""
        for attachment in session.attachments():
            self.connections.pop(attachment.connection, None)
        self.sessions.pop(session.id, None)
        self.dirty.pop(session.id, None)
        self.detached_s.pop(session.id, None)

    def send_away(self, connection: int, message: str) -> None:
        """The session's log cannot be used: its client is told, and comes back later."""
        self.reject(connection, ErrorCode.STORAGE_FAILED, message)
        self.out.append(e.Disconnect(connection, CloseCode.INTERNAL, "storage failed"))


def rejection(request_id: str | None, code: ErrorCode, message: str, *, field: str | None = None) -> m.Error:
    """An `error` without `seq`: it ends no request."""
    return m.Error(request_id=request_id, code=code, message=message, retryable=code.retryable, field=field)
