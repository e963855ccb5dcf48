"""Servers for the incident checks: the doors alone, with sessions that echo; and a whole one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.box import Box
from tests.support.echo_server import running, serve

__all__ = ["running", "serve"]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    box.start()
    yield box
    box.end()
