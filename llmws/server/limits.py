"""Who is slowed down and who is let go: rates, failed sign-ins, the number of connections.

Pure arithmetic on times that the caller gives, in seconds of any monotonic clock. Knows neither sockets nor messages.
Invariant: memory is bounded whatever addresses and connections come and go.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from llmws.server.addresses import canonical

K = TypeVar("K", bound=Hashable)

FAILURES_PER_MINUTE: Final = 10
MAX_TRACKED_NETWORKS: Final = 10_000


class TokenBucket:
    """A rate with a burst: `burst` at once, then `rate_per_s`."""

    __slots__ = ("_burst", "_level", "_rate_per_s", "_updated_s")

    def __init__(self, *, rate_per_s: float, burst: int, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._level = float(burst)
        self._updated_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long until one more fits; 0 is now."""
        elapsed_s = max(0.0, now_s - self._updated_s)
        self._level = min(self._burst, self._level + elapsed_s * self._rate_per_s)
        self._updated_s = now_s
        return max(0.0, (1.0 - self._level) / self._rate_per_s)

    def spend(self, count: int = 1) -> None:
        """Counts one or more, whether or not they fit."""
        self._level -= count


class FailureLimiter:
    """Ten failed sign-ins a minute from one network, none exempt; then it has to wait."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def wait_s(self, network: str, now_s: float) -> float:
        """How long the network has to wait before it may try again; 0 is now."""
        bucket = self._buckets.get(network)
        return 0.0 if bucket is None else bucket.wait_s(now_s)

    def failed(self, network: str, now_s: float) -> None:
        """Counts a failure."""
        bucket = self._buckets.get(network)
        if bucket is None:
            bucket = TokenBucket(rate_per_s=FAILURES_PER_MINUTE / 60, burst=FAILURES_PER_MINUTE, now_s=now_s)
            self._buckets[network] = bucket
        self._buckets.move_to_end(network)
        bucket.wait_s(now_s)
        bucket.spend()
        if len(self._buckets) > MAX_TRACKED_NETWORKS:
            self._buckets.popitem(last=False)


class Admission(Generic[K]):
    """The open connections, named by `K`, and which of them has to go when there are too many.

    Those that have not signed in are let go first, the oldest first; one that has signed in never is.
    """

    def __init__(self, *, max_connections: int, max_unauthenticated: int) -> None:
        self._max_connections = max_connections
        self._max_unauthenticated = max_unauthenticated
        self._waiting: dict[K, str] = {}
        self._waiting_of: dict[str, dict[K, None]] = {}
        self._signed_in: set[K] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._signed_in)

    def enter(self, connection: K, network: str) -> K | None:
        """Counts a new connection.

        Args:
            connection: its name.
            network: where it comes from, as `network_of` says.

        Returns:
            The connection to drop, already counted out: possibly the new one; None where there is room.
        """
        self._waiting[connection] = network
        peers = self._waiting_of.setdefault(network, {})
        peers[connection] = None
        victim = None
        if len(peers) > self._max_unauthenticated:
            victim = next(iter(peers))
        elif len(self) > self._max_connections:
            victim = next(iter(self._waiting))
        if victim is not None:
            self.leave(victim)
        return victim

    def sign_in(self, connection: K) -> None:
        """The connection has said a valid hello."""
        if connection in self._waiting:
            self.leave(connection)
            self._signed_in.add(connection)

    def leave(self, connection: K) -> None:
        """The connection is gone; repeating it does nothing."""
        self._signed_in.discard(connection)
        network = self._waiting.pop(connection, None)
        if network is not None:
            peers = self._waiting_of[network]
            del peers[connection]
            if not peers:
                del self._waiting_of[network]


def network_of(address: str) -> str:
    """What limits count as one: an IPv4 address, or the /64 that one IPv6 host owns."""
    text = canonical(address)
    if text is None:
        return address
    ip = ipaddress.ip_address(text)
    return text if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))
