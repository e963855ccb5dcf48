"""Servers for the incident checks: the doors alone, on a real socket with sessions that echo."""

from tests.integration.server.conftest import running, serve

__all__ = ["running", "serve"]
