"""Which server to talk to, and with which token."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from llm_cli.arguments import DEFAULT_PORT, Options
from llmws.client.discovery import LocalServer, local_servers
from llmws.client.link import websocket_url

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Target(NamedTuple):
    """A server's address and the token for it."""

    url: str
    token: str | None


def choose(options: Options, remembered_url: str | None) -> Target:
    """The server that the command line names, else the session's, else the one that runs on this account.

    Args:
        options: the command line.
        remembered_url: where the session was used last.

    Raises:
        ValueError: that is no address, or the token file cannot be read.
    """
    servers = local_servers()
    if options.url is not None:
        url = options.url
    elif options.host is not None or options.port is not None:
        url = _address(options.host or "127.0.0.1", options.port or DEFAULT_PORT)
    elif remembered_url is not None and not (servers and _has_moved(remembered_url, servers)):
        url = remembered_url
    elif servers:
        url = servers[0].ws_url
    else:
        url = _address("127.0.0.1", DEFAULT_PORT)
    url = websocket_url(url)
    return Target(url, _token(options, url, servers))


def _address(host: str, port: int) -> str:
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"


def _has_moved(url: str, servers: list[LocalServer]) -> bool:
    """Whether the server of this account that listened at `url` no longer does; a later one has its sessions."""
    parts = urlsplit(url)
    return parts.hostname in _LOOPBACK and parts.port not in [server.port for server in servers]


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
