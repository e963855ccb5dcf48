"""The HTTP door: health, readiness, the front page and the exchange of one-time codes.

Owns the order of the checks: Host and Origin, the route's role, draining, the route. Of the sessions it knows only
whether they are ready. Invariant: a path that is not in the table of roles is not served, whatever the application
behind does.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmws.access import HTTP_ROUTES, Access, permits
from llmws.errors import LlmwsError
from llmws.places import page_path
from llmws.server.auth import Denied, credential
from llmws.server.entrance import Entrance
from llmws.server.head import Caller, Head
from llmws.server.page import load_page

_log = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 64 * 1024
"""Of a request. The parser holds a head to it only where that comes in more than one read."""

RETRY_AFTER_S: Final = 5
MAX_SMALL_BODY_BYTES: Final = 4096

ALIVE_PATHS: Final = frozenset({"/healthz", "/health"})
"""Answered while draining too: the process lives."""

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def create_app(entrance: Entrance) -> ASGIApp:
    """The application that uvicorn serves for everything but WebSockets."""
    app = Starlette(routes=create_routes(entrance), exception_handlers={HTTPException: _http_error})
    return Guard(app, entrance, routes=HTTP_ROUTES)


def create_routes(entrance: Entrance) -> list[Route]:
    """The routes; each has its role in `access.HTTP_ROUTES`."""
    page = load_page(page_path())

    async def front_page(_: Request) -> Response:
        return HTMLResponse(page.html, headers={"content-security-policy": page.policy})

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        if entrance.sessions.ready:
            return PlainTextResponse("ready\n")
        return error_response(503, "not_ready", "no model is loaded", retry_after_s=RETRY_AFTER_S)

    async def exchange(request: Request) -> Response:
        body = await _body(request, timeout_s=entrance.server.hello_timeout_s)
        try:
            code = msgspec.json.decode(body, type=_Code).code
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return error_response(400, "bad_request", 'the body must be {"code": "…"}')
        address = request.state.caller.address
        identity = entrance.authenticator.redeem(code, address)
        if isinstance(identity, Denied):
            return denied_response(identity, "the code was used already, is too old, or never was one")
        try:
            return JSONResponse({"token": await asyncio.to_thread(entrance.credentials.issue, identity)})
        except LlmwsError as error:
            _log.error("a token for a browser could not be made: %s", error)
            return error_response(500, "storage_failed", "the server could not keep a token")

    return [
        Route("/", front_page),
        Route("/healthz", alive),
        Route("/health", alive),
        Route("/readyz", ready),
        Route("/v1/auth/exchange", exchange, methods=["POST"]),
    ]


class _Code(msgspec.Struct, frozen=True):
    code: Annotated[str, Meta(max_length=256)]


async def _body(request: Request, *, timeout_s: float) -> bytes:
    """The body of a small request. Raises HTTPException where it is too large, or does not come."""
    body = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_SMALL_BODY_BYTES:
                    raise HTTPException(413, f"the body may have {MAX_SMALL_BODY_BYTES} bytes")
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408, "the body did not come in time", headers={"connection": "close"}) from None
    return body


class Guard:
    """Judges every request before the application sees it.

    Args:
        app: the application.
        entrance: names, credentials and whether the server drains.
        routes: the least role for each method of each path.
    """

    def __init__(self, app: ASGIApp, entrance: Entrance, *, routes: Mapping[str, Mapping[str, Access]]) -> None:
        self._app = app
        self._entrance = entrance
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        head = Head.of(Headers(scope=scope).getlist)
        client = scope.get("client")
        peer = client[0] if client else ""
        caller = self._entrance.caller(head, peer=peer, is_secure=scope["scheme"] == "https")
        scope.setdefault("state", {})["caller"] = caller
        app = self._refusal(scope, head, caller) or self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, head: Head, caller: Caller) -> Response | None:
        if _head_bytes(scope) > MAX_HEAD_BYTES:
            return error_response(431, "bad_request", f"the head of a request may have {MAX_HEAD_BYTES} bytes")
        foreign = self._entrance.refusal(head, caller)
        if foreign is not None:
            code = "bad_request" if foreign.status == 400 else "forbidden"
            return error_response(foreign.status, code, foreign.message)
        # As it was sent: a path has one spelling, not one for each way to escape it.
        path, method = scope["raw_path"].decode("latin-1"), "GET" if scope["method"] == "HEAD" else scope["method"]
        methods = self._routes.get(path)
        if methods is None:
            return error_response(404, "not_found", "no such path")
        needed = methods.get(method)
        if needed is None:
            response = error_response(405, "bad_request", "no such method here")
            response.headers["allow"] = ", ".join(methods)
            return response
        if self._entrance.draining and path not in ALIVE_PATHS:
            return error_response(503, "draining", "the server is about to restart", retry_after_s=RETRY_AFTER_S)
        if needed == "open":
            return None
        token = credential(authorization=head.authorization)
        identity = self._entrance.authenticator.identify(token, caller.address)
        if isinstance(identity, Denied):
            return denied_response(identity, "a valid token is needed")
        if not permits(identity.role, needed):
            return error_response(403, "forbidden", "this token may not do that")
        return None


def _head_bytes(scope: Scope) -> int:
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return len(scope["raw_path"]) + len(scope["query_string"]) + fields


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = error_response(error.status_code, "bad_request", error.detail)
    response.headers.update(error.headers or {})
    return response


def denied_response(denied: Denied, message: str) -> Response:
    """401 with `message`, or 429 where the address failed too often."""
    if denied.retry_after_s is not None:
        text = "too many failed sign-ins from this address"
        return error_response(429, "rate_limited", text, retry_after_s=math.ceil(denied.retry_after_s))
    response = error_response(401, "unauthorized", message)
    response.headers["www-authenticate"] = "Bearer"
    return response


def error_response(status: int, code: str, message: str, *, retry_after_s: int | None = None) -> Response:
    """An error in the shape that clients of the OpenAI API read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
