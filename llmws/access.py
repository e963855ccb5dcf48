"""Who may do what: one table of the least role for every HTTP route, WebSocket route and message type.

Owns the roles, and the identity that doors and sessions speak of. Knows neither sockets nor tokens. Invariant: what has
no entry here is refused to everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from llmws.protocol import messages as m

Role = Literal["metrics", "user", "admin", "peer"]
"""`metrics`, `user` and `admin` may each do what the ones before may. `peer` is another server, and none of them."""

Access = Role | Literal["open"]

LOCAL_PRINCIPAL: Final = "local"
"""Who runs the server's account: the owner of the first admin token, and everybody where no token is required."""

_RANKS: Final = ("metrics", "user", "admin")


class Identity(msgspec.Struct, frozen=True):
    """An authenticated caller. Sessions belong to `principal`, not to the token; `token_id` None: by no token."""

    principal: str
    role: Role
    token_id: str | None = None


HTTP_ROUTES: Final[Mapping[str, Mapping[str, Access]]] = {
    "/": {"GET": "open"},
    "/healthz": {"GET": "open"},
    "/health": {"GET": "open"},
    "/readyz": {"GET": "open"},
    "/v1/auth/exchange": {"POST": "open"},
}
"""The least role for each method of each path. HEAD is asked for as GET."""

WEBSOCKET_ROUTES: Final[Mapping[str, Role]] = {"/": "user", "/v1/ws": "user"}
"""The least role for a hello on each WebSocket path."""

MESSAGES: Final[Mapping[type[m.ClientMessage], Role]] = {
    m.Hello: "user",
    m.Ping: "user",
    m.Inference: "user",
    m.Cancel: "user",
    m.Ack: "user",
    m.Config: "user",
    m.GetResources: "user",
    m.GetStatus: "user",
    m.ListModels: "user",
    m.ListPeers: "user",
    m.History: "user",
    m.UpdateSession: "user",
    m.Import: "user",
    m.ListSessions: "user",
    m.EndSession: "user",
    m.SwitchModel: "admin",
    m.DeleteModel: "admin",
    m.DownloadModel: "admin",
    m.CancelDownload: "admin",
}
"""The least role for each message of a client. Whose session it is about is the session's to check."""


def permits(role: Role, needed: Access | None) -> bool:
    """Whether `role` is enough where `needed` is asked for; None, what has no entry, is enough for nobody."""
    if needed == "open":
        return True
    if needed in _RANKS and role in _RANKS:
        return _RANKS.index(role) >= _RANKS.index(needed)
    return needed is not None and role == needed
