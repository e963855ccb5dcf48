"""What all connections of one server share: its names, its credentials, its limits, and whether it is about to stop.

Knows neither HTTP nor WebSocket framing. Invariant: Host and Origin are judged here for every door alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from llmws.config import LimitsSection, ServerSection
from llmws.server.auth import Authenticator, credential
from llmws.server.hosts import HostPolicy, Refusal
from llmws.server.limits import Admission, network_of
from llmws.server.ports import Authenticate, Sessions


class Entrance:
    """The state that the doors of one listening socket have in common.

    Args:
        sessions: where authenticated connections lead.
        authenticate: a token to its identity.
        server: names, heartbeat and timeouts.
        limits: sizes and numbers of connections.
        port: the port listened on.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        authenticate: Authenticate,
        server: ServerSection,
        limits: LimitsSection,
        port: int,
        clock: Callable[[], float],
    ) -> None:
        self.sessions = sessions
        self.authenticator = Authenticator(authenticate, clock=clock)
        self.server = server
        self.limits = limits
        self.clock = clock
        self.draining = False
        self._policy = HostPolicy(bind_host=server.host, port=port, hosts=server.hosts, origins=server.origins)
        self._admission: Admission[asyncio.BaseTransport] = Admission(
            max_connections=limits.max_connections, max_unauthenticated=limits.max_unauthenticated
        )

    @property
    def connections(self) -> int:
        """How many connections are open, of every kind."""
        return len(self._admission)

    def admit(self, transport: asyncio.Transport) -> None:
        """Counts a new connection, and cuts the one that has to go for it."""
        victim = self._admission.enter(transport, network_of(peer_address(transport)))
        if isinstance(victim, asyncio.Transport):
            victim.abort()

    def signed_in(self, transport: asyncio.BaseTransport) -> None:
        """The connection is no longer among those that are cut first."""
        self._admission.sign_in(transport)

    def left(self, transport: asyncio.BaseTransport) -> None:
        """The connection is gone."""
        self._admission.leave(transport)

    def refusal(
        self,
        *,
        hosts: Sequence[str],
        origins: Sequence[str],
        authorization: Sequence[str],
        subprotocols: Sequence[str],
        address: str,
    ) -> Refusal | None:
        """Judges the values of a request's `Host`, `Origin`, `Authorization` and `Sec-WebSocket-Protocol` headers."""
        trust_null = False
        if "null" in origins:
            token = credential(authorization=authorization, subprotocols=subprotocols)
            trust_null = self.authenticator.trusts_null_origin(token, address)
        return self._policy.refusal(hosts=hosts, origins=origins, trust_null=trust_null)


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The IP address at the other end; empty if the connection was gone before it could be asked."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""
