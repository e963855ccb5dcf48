"""What the doors look at in the head of a request, and who sent it: directly, or through a proxy that is trusted.

Pure. Invariant: what a proxy says of a client is believed of a listed proxy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import msgspec

from llmws.server.addresses import canonical
from llmws.server.hosts import is_loopback


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The headers that decide whether a request comes in; every value of each, as a header may come twice."""

    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    authorization: Sequence[str] = ()
    subprotocols: Sequence[str] = ()
    forwarded_for: Sequence[str] = ()
    forwarded_proto: Sequence[str] = ()
    has_two_lengths: bool = False

    @classmethod
    def of(cls, values_of: Callable[[str], Sequence[str]]) -> Self:
        """Reads the head.

        Args:
            values_of: a header's name, in lower case, to its values.
        """
        return cls(
            hosts=values_of("host"),
            origins=values_of("origin"),
            authorization=values_of("authorization"),
            subprotocols=_items(values_of("sec-websocket-protocol")),
            forwarded_for=_items(values_of("x-forwarded-for")),
            forwarded_proto=_items(values_of("x-forwarded-proto")),
            has_two_lengths=bool(values_of("transfer-encoding") and values_of("content-length")),
        )


class Caller(msgspec.Struct, frozen=True):
    """Where a request comes from: the client's address, whether it speaks TLS to whoever it speaks to, and to whom.

    The address is in its `canonical` spelling, if it is one.
    """

    address: str
    is_secure: bool
    is_by_proxy: bool = False


def caller_of(head: Head, *, peer: str, is_secure: bool, proxies: frozenset[str]) -> Caller:
    """Who sent a request.

    Each proxy appends the address that it was called from, so the client's is the last that is no proxy's; what stands
    before it, the client may have written itself. A loopback address that a proxy names is always a client's: a program
    that goes through the proxy on its own machine would otherwise be whoever it says. One that comes here directly,
    from an address that is listed, cannot be told from the proxy: it is whoever it says.

    Args:
        head: of the request.
        peer: the address at the other end of the connection.
        is_secure: whether the connection itself is TLS.
        proxies: the addresses that are believed, in their canonical spelling; none where the server is not behind a
            proxy.
    """
    peer = canonical(peer) or peer
    if peer not in proxies:
        return Caller(peer, is_secure)
    passed_on = proxies - {each for each in proxies if is_loopback(each)}
    forwarded_for = [canonical(each) for each in head.forwarded_for]
    address = next((each for each in reversed(forwarded_for) if each not in passed_on), None) or peer
    return Caller(address, is_secure or list(head.forwarded_proto[-1:]) == ["https"], is_by_proxy=True)


def _items(values: Sequence[str]) -> list[str]:
    return [item.strip() for value in values for item in value.split(",")]
