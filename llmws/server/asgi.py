"""The HTTP door: health, readiness and the front page.

Owns the order of the checks: Host and Origin, the route's role, draining, the route. Of the sessions it knows only
whether they are ready. Invariant: a path that is not in the table of roles is not served, whatever the application
behind does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmws.server.auth import HTTP_ROUTES, Access, Denied, credential, permits
from llmws.server.entrance import Entrance
from llmws.server.ports import Sessions

RETRY_AFTER_S: Final = 5

ALIVE_PATHS: Final = frozenset({"/healthz", "/health"})
"""Answered while draining too: the process lives."""

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

FRONT_PAGE: Final = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>llmws</title></head>
<body>
<h1>llmws is running</h1>
<p>This version has no web page yet; it comes in a later one. Until then:</p>
<ul>
<li>in a terminal, <code>llm</code> (or <code>llmws chat</code>) opens a chat;</li>
<li>programs connect a WebSocket to <code>/v1/ws</code> at this address; PROTOCOL.md describes the messages;</li>
<li><code>/readyz</code> says whether a model is loaded.</li>
</ul>
</body>
</html>
"""


def create_app(entrance: Entrance) -> ASGIApp:
    """The application that uvicorn serves for everything but WebSockets."""
    app = Starlette(routes=create_routes(entrance.sessions), exception_handlers={HTTPException: _http_error})
    return Guard(app, entrance, routes=HTTP_ROUTES)


def create_routes(sessions: Sessions) -> list[Route]:
    """The routes; each has its role in `auth.HTTP_ROUTES`."""

    async def front_page(_: Request) -> Response:
        return HTMLResponse(FRONT_PAGE)

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        if sessions.ready:
            return PlainTextResponse("ready\n")
        return error_response(503, "not_ready", "no model is loaded", retry_after_s=RETRY_AFTER_S)

    return [
        Route("/", front_page),
        Route("/healthz", alive),
        Route("/health", alive),
        Route("/readyz", ready),
    ]


class Guard:
    """Judges every request before the application sees it.

    Args:
        app: the application.
        entrance: names, credentials and whether the server drains.
        routes: the least role of each path.
    """

    def __init__(self, app: ASGIApp, entrance: Entrance, *, routes: Mapping[str, Access]) -> None:
        self._app = app
        self._entrance = entrance
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        app = self._refusal(scope) or self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        client = scope.get("client")
        address = client[0] if client else ""
        authorization = headers.getlist("authorization")
        foreign = self._entrance.refusal(
            hosts=headers.getlist("host"),
            origins=headers.getlist("origin"),
            authorization=authorization,
            subprotocols=(),
            address=address,
        )
        if foreign is not None:
            return error_response(foreign.status, "forbidden", foreign.message)
        path = scope["path"]
        needed = self._routes.get(path)
        if needed is None:
            return error_response(404, "not_found", "no such path")
        if self._entrance.draining and path not in ALIVE_PATHS:
            return error_response(503, "draining", "the server is about to restart", retry_after_s=RETRY_AFTER_S)
        if needed == "open":
            return None
        identity = self._entrance.authenticator.identify(credential(authorization=authorization), address)
        if isinstance(identity, Denied):
            if identity.retry_after_s is not None:
                message = "too many failed sign-ins from this address"
                return error_response(429, "rate_limited", message, retry_after_s=math.ceil(identity.retry_after_s))
            response = error_response(401, "unauthorized", "a valid token is needed")
            response.headers["www-authenticate"] = "Bearer"
            return response
        if not permits(identity.role, needed):
            return error_response(403, "forbidden", "this token may not do that")
        return None


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, "bad_request", error.detail)
    response.headers.update(error.headers or {})
    return response


def error_response(status: int, code: str, message: str, *, retry_after_s: int | None = None) -> Response:
    """An error in the shape that clients of the OpenAI API read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
