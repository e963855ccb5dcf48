"""Where the server may listen, given who could then come in or read along.

Invariant: what passes needs a token from everybody who is not on this machine, and encrypts on the way, unless the
operator has said in words that the network is trusted.
"""

from __future__ import annotations

from llmws.config import Config
from llmws.errors import ConfigError
from llmws.server.hosts import is_loopback, is_wildcard


def check_exposure(config: Config) -> None:
    """Refuses a configuration that would let strangers in unasked, or let them read along.

    Raises:
        ConfigError: with the fix.
    """
    server = config.server
    has_tls = server.tls_cert is not None
    if has_tls != (server.tls_key is not None):
        missing = "tls_key" if has_tls else "tls_cert"
        raise ConfigError(f"server.{missing}: TLS needs both a certificate and its key; give --tls-cert and --tls-key")
    if not config.auth.required and server.behind_proxy:
        raise ConfigError(
            "auth.required: false (--no-auth) would let in everybody whom the proxy does; drop --no-auth, or "
            "--behind-proxy"
        )
    if is_loopback(server.host):
        return
    if not config.auth.required:
        raise ConfigError(
            f"auth.required: false (--no-auth) is for loopback addresses only, not {server.host}; "
            "drop --no-auth, or use --host 127.0.0.1"
        )
    if not (has_tls or server.behind_proxy or server.insecure_lan):
        raise ConfigError(
            f"server.host: {server.host} is reachable from other machines, and without TLS tokens and answers can be "
            "read on the way; pass --tls-cert and --tls-key, or --behind-proxy if a proxy does that, or "
            "--insecure-lan if you trust the network, or use --host 127.0.0.1 behind a tunnel"
        )


def cautions(config: Config) -> list[str]:
    """What the operator of a configuration that passes should know all the same."""
    server = config.server
    is_reachable = not is_loopback(server.host)
    found = []
    if is_reachable and server.insecure_lan and server.tls_cert is None:
        found.append(
            f"--insecure-lan: listening on {server.host} without TLS: tokens and answers can be read on the way"
        )
    if is_reachable and not server.hosts and is_wildcard(server.host):
        found.append(
            "server.hosts lists no name: clients on other machines are refused; list the names and addresses by which "
            "they call this machine"
        )
    elif is_reachable and not server.hosts:
        found.append(f"server.hosts lists no name; clients must use the address {server.host} itself")
    if not config.auth.required:
        found.append("--no-auth: every program and every user of this machine may use and administer this server")
    return found
