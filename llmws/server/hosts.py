"""Which Host and Origin a request may name.

Owns the defence against DNS rebinding and against foreign pages that reach the server through a visitor's browser.
Knows neither HTTP nor WebSocket. Invariant: a name that is neither loopback, nor the address bound to, nor listed, is
refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from llmws.server.addresses import canonical

_AUTHORITY: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


Scheme = Literal["http", "https"]


class Refusal(msgspec.Struct, frozen=True):
    """A request that is answered with this status and text, before anything else looks at it."""

    status: int
    message: str


class HostPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The names of this server.

    Attributes:
        bind_host: the address bound to; it is a name of the server unless it is a wildcard.
        port: the port bound to.
        hosts: further names, `name` (any port) or `name:port`.
        origins: further origins, `scheme://name[:port]`.
    """

    bind_host: str
    port: int
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def refusal(
        self, *, hosts: Sequence[str], origins: Sequence[str], trust_null: bool, scheme: Scheme = "http"
    ) -> Refusal | None:
        """Judges the headers of a request.

        Args:
            hosts: the values of its `Host` headers.
            origins: the values of its `Origin` headers; none where no browser sends it.
            trust_null: whether origin `null`, which any sandboxed frame has, is made up for by a valid token in the
                request itself.
            scheme: by which the client reached the server, or the proxy in front of it.

        Returns:
            421 for a foreign host, 403 for a foreign origin, None for a request that may go on.

        Source: RFC 9110, section 15.5.20 (421); RFC 6454, section 7 (Origin).
        """
        host = hosts[0].lower() if len(hosts) == 1 else ""
        if not self._is_own_host(host, scheme):
            return Refusal(421, "this Host is not served here; list it in server.hosts")
        if not origins:
            return None
        origin = origins[0].lower() if len(origins) == 1 else ""
        if origin == "null":
            return None if trust_null else Refusal(403, "origin null needs a valid token in the request itself")
        if _as_origin(origin) in {_as_origin(own) for own in (f"{scheme}://{host}", *self.origins)}:
            return None
        return Refusal(403, "this Origin is not allowed; list it in server.origins")

    def _is_own_host(self, authority: str, scheme: Scheme) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        name, port = match.group(1), int(match.group(2) or _DEFAULT_PORTS[scheme])
        if {name, f"{name}:{port}"} & {listed.lower() for listed in self.hosts}:
            return True
        # Any port on loopback: a tunnel ends on a port of its own, and a name that can only mean this machine is what
        # DNS rebinding lacks. Pages of its other ports are foreign by their Origin.
        return _is_this_machine(name) or (port == self.port and name == _as_authority(self.bind_host))


def is_loopback(host: str) -> bool:
    """Whether a bind address, `localhost` or an IP address without brackets, is reachable from this machine only."""
    return _is_this_machine(_as_authority(host) or host.lower())


def is_wildcard(host: str) -> bool:
    """Whether a bind address stands for every address of the machine, so that it is no name of the server."""
    return _as_authority(host) is None


def _is_this_machine(name: str) -> bool:
    if name == "localhost":
        return True
    address = canonical(name)
    if address is None:
        return False
    ip = ipaddress.ip_address(address)
    return ip.is_loopback


def _as_origin(text: str) -> str:
    """An origin in lower case, without the port that goes without saying. Source: RFC 6454, section 6.2."""
    text = text.lower()
    default_port = _DEFAULT_PORTS.get(text.partition("://")[0])
    return text.removesuffix(f":{default_port}")


def _as_authority(bind_host: str) -> str | None:
    """A bind address as a URL spells it; None for a wildcard, which is no name."""
    try:
        ip = ipaddress.ip_address(bind_host)
    except ValueError:
        return bind_host.lower()
    if ip.is_unspecified:
        return None
    return str(ip) if ip.version == 4 else f"[{ip}]"
