"""Servers for the incident checks: the doors alone, on a real socket with sessions that echo."""

from tests.support.echo_server import running, serve

__all__ = ["running", "serve"]
