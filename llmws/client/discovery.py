"""Finding the servers that this account runs on this machine.

A server writes its ready object, `{"url", "ws_url", "port", "pid", "token_file", "tls_cert"}`, to
`$XDG_STATE_HOME/llmws/servers/<port>.json`. Invariant: nothing is believed that another account could have written, and
nothing whose process is gone.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llmws.client.tls import pinned


class LocalServer(msgspec.Struct, frozen=True, kw_only=True):
    """A running server's ready object."""

    url: str
    ws_url: str
    port: int
    pid: int
    token_file: str | None = None
    tls_cert: str | None = None

    def token(self) -> str | None:
        """The token in `token_file`; None when there is none that this account can read."""
        if self.token_file is None:
            return None
        try:
            return Path(self.token_file).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def tls(self) -> ssl.SSLContext | None:
        """Believes this server's certificate and no other; None where it speaks without TLS.

        Raises:
            CertificateError: the certificate cannot be read.
        """
        return None if self.tls_cert is None else pinned(self.tls_cert)


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where llmws keeps state for this account.

    Source: XDG Base Directory Specification 0.8; relative values are ignored.
    """
    home = environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / "llmws"


def local_servers(environ: Mapping[str, str] = os.environ) -> list[LocalServer]:
    """The running servers of this account, the one started last first."""
    found: list[tuple[float, LocalServer]] = []
    for path in (state_dir(environ) / "servers").glob("*.json"):
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
                    continue
                server = msgspec.json.decode(file.read(64 * 1024), type=LocalServer)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if _is_alive(server.pid):
            found.append((status.st_mtime, server))
    return [server for _, server in sorted(found, key=lambda each: each[0], reverse=True)]


def local_server(port: int | None = None, environ: Mapping[str, str] = os.environ) -> LocalServer | None:
    """The server on `port`, or the one started last; None when none runs."""
    return next((each for each in local_servers(environ) if port is None or each.port == port), None)


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):  # the latter for a number that no process id is
        return False
    return True
