"""Where the server may listen, given who could then come in or read along.

Invariant: what passes needs a token from everybody who is not on this machine, and encrypts on the way, unless the
operator has said in words that the network is trusted.
"""

from __future__ import annotations

from llmws.config import Config
from llmws.errors import ConfigError
from llmws.server.hosts import is_loopback


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
