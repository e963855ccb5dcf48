"""The table of roles: what is in it, and that nothing escapes it."""

from typing import get_args

import pytest

from llmws.access import HTTP_ROUTES, MESSAGES, WEBSOCKET_ROUTES, Access, Role, permits
from llmws.protocol import messages as m

ROLES: tuple[Role, ...] = get_args(Role)


def test_every_message_of_a_client_has_a_role() -> None:
    assert set(MESSAGES) == set(get_args(m.ClientMessage))


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        ("open", {"metrics", "user", "admin", "peer"}),
        ("metrics", {"metrics", "user", "admin"}),
        ("user", {"user", "admin"}),
        ("admin", {"admin"}),
        ("peer", {"peer"}),
        (None, set()),
    ],
)
def test_who_may(needed: Access | None, expected: set[Role]) -> None:
    assert {role for role in ROLES if permits(role, needed)} == expected


def test_only_these_are_open() -> None:
    open_routes = {
        (method, path) for path, methods in HTTP_ROUTES.items() for method in methods if methods[method] == "open"
    }
    assert open_routes == {
        ("GET", "/"),
        ("GET", "/healthz"),
        ("GET", "/health"),
        ("GET", "/readyz"),
        ("POST", "/v1/auth/exchange"),
    }
    assert dict(WEBSOCKET_ROUTES) == {"/": "user", "/v1/ws": "user"}


def test_what_changes_the_server_is_for_admins() -> None:
    assert {kind for kind, role in MESSAGES.items() if role == "admin"} == {
        m.SwitchModel,
        m.DeleteModel,
        m.DownloadModel,
        m.CancelDownload,
    }
