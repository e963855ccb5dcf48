"""Servers for the tests of this folder."""

from tests.support.echo_server import running, serve

__all__ = ["running", "serve"]
