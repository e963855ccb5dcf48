"""Which server to talk to, with which token, and by which certificate it is known."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from llm_cli.arguments import DEFAULT_PORT, Options
from llm_cli.bookmark import Record
from llmws.client import trusting
from llmws.client.discovery import LocalServer, local_servers
from llmws.client.link import is_readable_on_the_way, stays_here, websocket_url


class Target(NamedTuple):
    """A server.

    Attributes:
        url: its address.
        token: for it; None where none is known.
        is_discovered: whether it was found on this account, not named by anybody.
        tls: which certificates are believed there; None for those of the machine's authorities.
        arguments: what names it, and the files for it, on the command line.
    """

    url: str
    token: str | None
    is_discovered: bool = False
    tls: ssl.SSLContext | None = None
    arguments: tuple[str, ...] = ()

    @property
    def is_readable_on_the_way(self) -> bool:
        """Whether the token leaves this machine without TLS."""
        return self.token is not None and is_readable_on_the_way(self.url)


def choose(options: Options, record: Record | None) -> Target:
    """The server that the command line names, else the session's, else the one that runs on this account.

    Args:
        options: the command line.
        record: the session's bookmark: where it was used last.

    Raises:
        ValueError: that is no address, or the file of a token or of a certificate cannot be read.
        CertificateError: the certificate of this account's server cannot be read.
    """
    servers = local_servers()
    url, is_discovered = _address(options, record, servers)
    own = _own(url, servers)
    if own is not None and (is_discovered or own.tls_cert is not None):
        # Whether it speaks TLS only it knows; what somebody named with TLS never goes without.
        url = urlsplit(url)._replace(scheme=urlsplit(own.ws_url).scheme).geturl()
    return Target(url, _token(options, own), is_discovered, _tls(options, url, own), _as_named(options))


def _address(options: Options, record: Record | None, servers: list[LocalServer]) -> tuple[str, bool]:
    """Where the server is, and whether it was found on this account."""
    if options.url is None and options.host is None and options.port is None:
        if record is not None and not (servers and _has_moved(record, servers)):
            return websocket_url(record.url), record.is_discovered
        if servers:
            return websocket_url(servers[0].ws_url), True
    host = options.host or "127.0.0.1"
    authority = f"[{host}]" if ":" in host else host
    address = options.url if options.url is not None else f"{authority}:{options.port or DEFAULT_PORT}"
    return websocket_url(address, default_scheme="ws" if options.tls_ca is None else "wss"), False


def _as_named(options: Options) -> tuple[str, ...]:
    """What names the server on the command line; without a token itself, which stays in no terminal's history."""
    given = {
        "--url": options.url,
        "--host": options.host,
        "--port": options.port,
        "--token-file": options.token_file,
        "--tls-ca": options.tls_ca,
    }
    return tuple(word for name, value in given.items() if value is not None for word in (name, str(value)))


def _has_moved(record: Record, servers: list[LocalServer]) -> bool:
    """Whether the session's server is this account's and no longer where it was found; a later one has its sessions.

    One that was named may be anything, such as the near end of a tunnel.
    """
    return record.is_discovered and urlsplit(record.url).port not in [server.port for server in servers]


def _own(url: str, servers: list[LocalServer]) -> LocalServer | None:
    """The server on this account which listens at `url`; at loopback under any of its names."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "wss" else 80)
    for server in servers:
        is_there = urlsplit(server.ws_url).hostname == parts.hostname or (stays_here(url) and stays_here(server.ws_url))
        if is_there and server.port == port:
            return server
    return None


def _token(options: Options, own: LocalServer | None) -> str | None:
    """The token given, else that of this account's own server."""
    if options.token is not None:
        return options.token
    if options.token_file is None:
        return own.token() if own is not None else None
    try:
        return Path(options.token_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"{options.token_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{options.token_file} holds no token: it is not text") from None


def _tls(options: Options, url: str, own: LocalServer | None) -> ssl.SSLContext | None:
    """What the command line trusts, else the certificate of this account's own server."""
    if options.tls_ca is None:
        return own.tls() if own is not None else None
    if not url.startswith("wss:"):
        raise ValueError("--tls-ca is for a server with TLS: one that --url names with https:// or wss://")
    return trusting(options.tls_ca)
