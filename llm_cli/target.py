"""Which server to talk to, and with which token."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from llm_cli.arguments import DEFAULT_PORT, Options
from llm_cli.bookmark import Record
from llmws.client.discovery import LocalServer, local_servers
from llmws.client.link import websocket_url

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Target(NamedTuple):
    """A server's address and the token for it; `is_discovered`: it was found on this account, not named by anybody."""

    url: str
    token: str | None
    is_discovered: bool = False


def choose(options: Options, record: Record | None) -> Target:
    """The server that the command line names, else the session's, else the one that runs on this account.

    Args:
        options: the command line.
        record: the session's bookmark: where it was used last.

    Raises:
        ValueError: that is no address, or the token file cannot be read.
    """
    servers = local_servers()
    is_discovered = False
    if options.url is not None:
        url = options.url
    elif options.host is not None or options.port is not None:
        url = _address(options.host or "127.0.0.1", options.port or DEFAULT_PORT)
    elif record is not None and not (servers and _has_moved(record, servers)):
        url, is_discovered = record.url, record.is_discovered
    elif servers:
        url, is_discovered = servers[0].ws_url, True
    else:
        url = _address("127.0.0.1", DEFAULT_PORT)
    url = websocket_url(url)
    return Target(url, _token(options, url, servers), is_discovered)


def _address(host: str, port: int) -> str:
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"


def _has_moved(record: Record, servers: list[LocalServer]) -> bool:
    """Whether the session's server is this account's and no longer where it was found; a later one has its sessions.

    One that was named may be anything, such as the near end of a tunnel.
    """
    return record.is_discovered and urlsplit(record.url).port not in [server.port for server in servers]


def _token(options: Options, url: str, servers: list[LocalServer]) -> str | None:
    """The token given, else that of the server on this account which listens at `url`."""
    if options.token is not None:
        return options.token
    if options.token_file is not None:
        try:
            return Path(options.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ValueError(f"{options.token_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{options.token_file} holds no token: it is not text") from None
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return None
    return next((server.token() for server in servers if server.port == (parts.port or DEFAULT_PORT)), None)
