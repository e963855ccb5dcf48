"""What all connections of one server share: its names, its credentials, its limits, and whether it is about to stop.

Knows neither HTTP nor WebSocket framing. Invariant: who may come in is judged here for every door alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llmws.access import Identity
from llmws.config import LimitsSection, ServerSection
from llmws.protocol import CloseCode
from llmws.runtime.driver import Sink
from llmws.server.addresses import canonical
from llmws.server.auth import Authenticator, credential
from llmws.server.codes import Codes
from llmws.server.head import Caller, Head, caller_of
from llmws.server.hosts import HostPolicy, Refusal, is_loopback
from llmws.server.limits import Admission, network_of
from llmws.server.ports import Credentials, Sessions


class Entrance:
    """The state that the doors of one listening socket have in common.

    Args:
        sessions: where authenticated connections lead.
        credentials: a token to its identity.
        server: names, heartbeat and timeouts.
        limits: sizes and numbers of connections.
        port: the port listened on.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        sessions: Sessions,
        credentials: Credentials,
        server: ServerSection,
        limits: LimitsSection,
        port: int,
        clock: Callable[[], float],
    ) -> None:
        self.sessions = sessions
        self.credentials = credentials
        self.codes = Codes(clock=clock)
        self.authenticator = Authenticator(credentials, codes=self.codes, clock=clock)
        self.server = server
        self.limits = limits
        self.clock = clock
        self.draining = False
        proxies = server.proxies if server.behind_proxy else ()
        self._proxies = frozenset(address for each in proxies if (address := canonical(each)))
        self._own_address = canonical(server.host)
        self._policy = HostPolicy(bind_host=server.host, port=port, hosts=server.hosts, origins=server.origins)
        self._admission: Admission[asyncio.BaseTransport] = Admission(
            max_connections=limits.max_connections, max_unauthenticated=limits.max_unauthenticated
        )
        self._signed_in: dict[asyncio.BaseTransport, tuple[Sink, str]] = {}

    @property
    def connections(self) -> int:
        """How many connections are open, of every kind."""
        return len(self._admission)

    def admit(self, transport: asyncio.Transport) -> None:
        """Counts a new connection, and cuts the one that has to go for it."""
        address = peer_address(transport)
        # Whose connection a proxy passes on is known once its head has come; until then each counts for itself.
        self._enter(transport, str(transport.get_extra_info("peername")) if address in self._proxies else address)

    def _enter(self, transport: asyncio.BaseTransport, address: str) -> None:
        victim = self._admission.enter(transport, network_of(address))
        if isinstance(victim, asyncio.Transport):
            victim.abort()

    def upgraded(self, transport: asyncio.BaseTransport, caller: Caller) -> None:
        """The connection is a WebSocket from now on, and so `caller`'s alone, where a proxy passes it on."""
        if peer_address(transport) in self._proxies:
            self._admission.leave(transport)
            self._enter(transport, caller.address)

    def signed_in(self, transport: asyncio.BaseTransport, identity: Identity, connection: Sink) -> None:
        """The connection is no longer among those that are cut first, and is closed when its token is revoked."""
        self._admission.sign_in(transport)
        if identity.token_id is not None:
            self._signed_in[transport] = (connection, identity.token_id)

    def left(self, transport: asyncio.BaseTransport) -> None:
        """The connection is gone."""
        self._admission.leave(transport)
        self._signed_in.pop(transport, None)

    def close_revoked(self) -> None:
        """Closes every connection whose token no longer holds."""
        revoked = {
            token_id
            for token_id in {each for _, each in self._signed_in.values()}
            if not self.credentials.holds(token_id)
        }
        for connection, token_id in list(self._signed_in.values()):
            if token_id in revoked:
                connection.close(CloseCode.UNAUTHORIZED, "the token was revoked")

    def caller(self, head: Head, *, peer: str, is_secure: bool) -> Caller:
        """Who sent a request, over a connection from `peer`, of TLS or not."""
        return caller_of(head, peer=peer, is_secure=is_secure, proxies=self._proxies)

    def refusal(self, head: Head, caller: Caller) -> Refusal | None:
        """Judges the head of a request, before anything else looks at it."""
        if head.has_two_lengths:
            # A proxy that believes the other one sees other requests in the same bytes. Source: RFC 9112, section 6.1.
            return Refusal(400, "Transfer-Encoding and Content-Length may not come together")
        # Who comes from the address that is bound to is on this machine, as who comes from loopback.
        is_near = is_loopback(caller.address) or caller.address == self._own_address
        if self.server.behind_proxy and not caller.is_by_proxy and not is_near:
            return Refusal(403, "this server is behind a proxy; come through it")
        trust_null = False
        if "null" in head.origins:
            token = credential(authorization=head.authorization, subprotocols=head.subprotocols)
            trust_null = self.authenticator.trusts_null_origin(token, caller.address)
        return self._policy.refusal(
            hosts=head.hosts,
            origins=head.origins,
            trust_null=trust_null,
            scheme="https" if caller.is_secure else "http",
        )


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The canonical IP address at the other end; empty if the connection was gone before it could be asked."""
    peer = transport.get_extra_info("peername")
    return canonical(peer[0]) or str(peer[0]) if peer else ""
