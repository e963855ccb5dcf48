"""Faults that let somebody in who should not be: planted in the doors, the credentials and the table of roles."""

from __future__ import annotations

from mutants.planted import Mutant

_TABLE = "tests/unit/test_access.py"
_HUB = "tests/unit/session/test_models.py"
_AUTH = "tests/unit/server/test_auth.py"
_ASGI = "tests/unit/server/test_asgi.py"
_DOOR = "tests/unit/server/test_door.py"
_TOKENS = "tests/unit/store/test_tokens.py"
_HANDSHAKE = "tests/integration/server/test_handshake.py"

MUTANTS = [
    Mutant(
        "what has no role is for everybody",
        "llmws/access.py",
        "    return needed is not None and role == needed\n",
        "    return needed is None or role == needed\n",
        _TABLE,
    ),
    Mutant(
        "a user is as good as an admin",
        "llmws/access.py",
        "return _RANKS.index(role) >= _RANKS.index(needed)",
        "return _RANKS.index(role) + 1 >= _RANKS.index(needed)",
        _TABLE,
    ),
    Mutant(
        "peers are users",
        "llmws/access.py",
        '_RANKS: Final = ("metrics", "user", "admin")',
        '_RANKS: Final = ("metrics", "user", "peer", "admin")',
        _TABLE,
    ),
    Mutant(
        "switching models is for users", "llmws/access.py", 'm.SwitchModel: "admin"', 'm.SwitchModel: "user"', _TABLE
    ),
    Mutant(
        "the desk asks for no role",
        "llmws/session/desk.py",
        "elif not permits(attachment.role, needed := MESSAGES.get(type(message))):",
        "elif (needed := MESSAGES.get(type(message))) is None:",
        _HUB,
    ),
    Mutant(
        "any token opens a session",
        "llmws/server/door.py",
        "if not permits(identity.role, self._needed):",
        "if self._needed is None:",
        _DOOR,
    ),
    Mutant(
        "a refused token comes in as nobody in particular",
        "llmws/server/door.py",
        "        if isinstance(identity, Denied):\n",
        "        if isinstance(identity, Denied) and identity.retry_after_s is not None:\n",
        _DOOR,
    ),
    Mutant(
        "messages before the hello are taken",
        "llmws/server/door.py",
        "        if self._accepted:\n            return (self._after_hello",
        "        if self._accepted or len(data) > 20:\n            return (self._after_hello",
        _DOOR,
    ),
    Mutant(
        "routes with a role need no token",
        "llmws/server/asgi.py",
        '        if needed == "open":\n            return None\n',
        "        if needed:\n            return None\n",
        _ASGI,
    ),
    Mutant(
        "a route without a role is served",
        "llmws/server/asgi.py",
        '            return error_response(404, "not_found", "no such path")',
        "            return None",
        _ASGI,
    ),
    Mutant(
        "a method without a role is served",
        "llmws/server/asgi.py",
        "        if needed is None:\n            response",
        '        if needed is None and method == "PUT":\n            response',
        _ASGI,
    ),
    Mutant(
        "on HTTP any role will do",
        "llmws/server/asgi.py",
        "        if not permits(identity.role, needed):",
        '        if identity.role == "peer":',
        _ASGI,
    ),
    Mutant(
        "HTTP judges no Host and no Origin",
        "llmws/server/asgi.py",
        "        if foreign is not None:",
        "        if foreign is not None and foreign.status == 400:",
        _ASGI,
    ),
    Mutant(
        "the WebSocket judges no Host and no Origin",
        "llmws/server/websocket.py",
        "        refusal = self._entrance.refusal(head, caller)\n",
        "        refusal = None\n",
        _HANDSHAKE,
    ),
    Mutant(
        "any Host is the server's",
        "llmws/server/hosts.py",
        "        if not self._is_own_host(host, scheme):",
        "        if not host:",
        "tests/unit/server/test_hosts.py",
    ),
    Mutant(
        "any Origin is the server's",
        "llmws/server/hosts.py",
        '        if origin == f"{scheme}://{host}" or origin',
        "        if origin.startswith(scheme) or origin",
        "tests/unit/server/test_hosts.py",
    ),
    Mutant(
        "origin null is trusted without a token",
        "llmws/server/auth.py",
        "return needs_token and isinstance(self.identify(token, address), Identity)",
        "return needs_token",
        _AUTH,
    ),
    Mutant(
        "origin null is trusted where nobody needs a token",
        "llmws/server/auth.py",
        "return needs_token and isinstance(",
        "return isinstance(",
        _AUTH,
    ),
    Mutant(
        "guessing is not slowed down",
        "llmws/server/auth.py",
        "        self._failures.failed(network, now_s)\n",
        "",
        _AUTH,
    ),
    Mutant(
        "who shares an address with a guesser is locked out",
        "llmws/server/auth.py",
        "        return self._credentials.identify(token) or self._failed(address)",
        "        return self._failed(address) if self._failures.wait_s(network_of(address), self._clock()) else self._credentials.identify(token) or self._failed(address)",
        _AUTH,
    ),
    Mutant(
        "a bearer in the subprotocols need not be canonical",
        "llmws/server/auth.py",
        'canonical = base64.urlsafe_b64encode(token).rstrip(b"=").decode() == text',
        "canonical = True",
        _AUTH,
    ),
    Mutant(
        "of two Authorization headers the first counts",
        "llmws/server/auth.py",
        "    if len(authorization) == 1:",
        "    if authorization:",
        _AUTH,
    ),
    Mutant(
        "the token is echoed as a subprotocol",
        "llmws/server/auth.py",
        "return SUBPROTOCOL if SUBPROTOCOL in offered else None",
        "return offered[0] if offered else None",
        _AUTH,
    ),
    Mutant(
        "a code works twice",
        "llmws/server/codes.py",
        "self._open.pop(_digest(code), (None, 0.0))",
        "self._open.get(_digest(code), (None, 0.0))",
        "tests/unit/server/test_codes.py",
    ),
    Mutant(
        "a code works for ever",
        "llmws/server/codes.py",
        "return identity if self._clock() < ends_s else None",
        "return identity",
        "tests/unit/server/test_codes.py",
    ),
    Mutant(
        "guessing codes is not slowed down",
        "llmws/server/auth.py",
        "        return self._codes.redeem(code) or self._failed(address)",
        "        return self._codes.redeem(code) or Denied()",
        _ASGI,
    ),
    Mutant(
        "a revoked token's connections stay",
        "llmws/server/entrance.py",
        "            if not self.credentials.holds(token_id):",
        "            if self.credentials is None:",
        "tests/integration/server/test_revocation.py",
    ),
    Mutant(
        "revoking one token closes everybody's connections",
        "llmws/server/entrance.py",
        "            if not self.credentials.holds(token_id):",
        "            if not all(self.credentials.holds(each) for _, each in self._signed_in.values()):",
        "tests/integration/server/test_revocation.py",
    ),
    Mutant(
        "anybody's word on whom he forwards is believed",
        "llmws/server/head.py",
        "    if peer not in proxies:",
        "    if not proxies:",
        "tests/unit/server/test_head.py",
    ),
    Mutant(
        "the first forwarded address is believed",
        "llmws/server/head.py",
        "for each in reversed(head.forwarded_for)",
        "for each in head.forwarded_for",
        "tests/unit/server/test_head.py",
    ),
    Mutant(
        "the proxy can be passed by",
        "llmws/server/entrance.py",
        "        if self.server.behind_proxy and not caller.is_by_proxy and not is_loopback(caller.address):",
        "        if self.server.behind_proxy and not caller.address:",
        _ASGI,
    ),
    Mutant(
        "two lengths of one request are taken",
        "llmws/server/entrance.py",
        "        if head.has_two_lengths:",
        '        if head.has_two_lengths == "both":',
        _ASGI,
    ),
    Mutant(
        "beyond loopback plain text is fine",
        "llmws/server/exposure.py",
        "    if not (has_tls or server.behind_proxy or server.insecure_lan):",
        "    if not server.host:",
        "tests/unit/server/test_exposure.py",
    ),
    Mutant(
        "beyond loopback nobody needs a token",
        "llmws/server/exposure.py",
        "    if not config.auth.required:\n        raise",
        "    if not config.auth:\n        raise",
        "tests/unit/server/test_exposure.py",
    ),
    Mutant(
        "a handshake in TLS is not counted",
        "llmws/server/tls.py",
        "        self._entrance.admit(transport)\n",
        "",
        "tests/integration/server/test_tls.py",
    ),
    Mutant(
        "a handshake in TLS may take for ever",
        "llmws/server/tls.py",
        "ssl_handshake_timeout=self._entrance.server.hello_timeout_s",
        "ssl_handshake_timeout=3600",
        "tests/integration/server/test_tls.py",
    ),
    Mutant(
        "a token's id is enough",
        "llmws/store/tokens.py",
        "        if entry is None or not same:",
        "        if entry is None:",
        _TOKENS,
    ),
    Mutant(
        "a token stays valid until the server's restart",
        "llmws/store/tokens.py",
        "        if version == self._version and version is not None:",
        "        if self._version is not None:",
        _TOKENS,
    ),
]
