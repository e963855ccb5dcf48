"""Faults by which others' servers were broken into: planted in every room, noticed by tests/security."""

from __future__ import annotations

from mutants.planted import Mutant

_SECURITY = "tests/security/"
_TABLE = _SECURITY + "test_handshake.py"
_PAGES = _SECURITY + "test_foreign_pages.py"
_REQUESTS = _SECURITY + "test_requests.py"
_FRAMES = _SECURITY + "test_frames.py"
_MESSAGES = _SECURITY + "test_messages.py"
_CREDENTIALS = _SECURITY + "test_credentials.py"
_OWNERSHIP = _SECURITY + "test_ownership.py"
_SECRETS = _SECURITY + "test_secrets.py"
_IMAGES = _SECURITY + "test_images.py"
_MODELS = _SECURITY + "test_models.py"
_TERMINAL = _SECURITY + "test_terminal.py"
_SOURCE = _SECURITY + "test_source.py"

MUTANTS = [
    Mutant("a Host only has to begin like an own one", "llmws/server/hosts.py", "        match = _AUTHORITY.fullmatch(authority)", "        match = _AUTHORITY.match(authority)", _REQUESTS),
    Mutant("any name that begins with a loopback address is loopback", "llmws/server/hosts.py", "        return _is_this_machine(name) or (", '        return name.startswith(("127.", "localhost")) or (', _PAGES),
    Mutant("of two names in one Host the first counts", "llmws/server/hosts.py", '        host = hosts[0].lower() if len(hosts) == 1 else ""', '        host = hosts[0].lower().split(",")[0] if hosts else ""', _REQUESTS),
    Mutant("an Origin only has to begin like the own one", "llmws/server/hosts.py", "        if _as_origin(origin) in {", '        if origin.startswith(f"{scheme}://{host}") or _as_origin(origin) in {', _PAGES),
    Mutant("pages of loopback's other ports are ours", "llmws/server/hosts.py", "        if _as_origin(origin) in {", '        if origin.startswith("http://localhost") or _as_origin(origin) in {', _TABLE),
    Mutant("origin null is a page of ours", "llmws/server/hosts.py", "            return None if trust_null else Refusal", "            return None if host else Refusal", _TABLE),
    Mutant("a wildcard bind makes its address a name", "llmws/server/hosts.py", "    return ip.is_loopback\n", "    return ip.is_loopback or ip.is_unspecified\n", _TABLE),
    Mutant("paths are tidied before the table is asked", "llmws/server/asgi.py", "        methods = self._routes.get(path)", '        methods = self._routes.get(path.rstrip("/;") or "/")', _REQUESTS),
    Mutant("the address of a WebSocket may carry anything behind its path", "llmws/server/websocket.py", '.path.partition("?")[0])', '.path.partition("?")[0].rstrip("/"))', _REQUESTS),
    Mutant("a query is a credential", "llmws/server/websocket.py", "        needed = WEBSOCKET_ROUTES.get(", '        head = Head(**{**{n: getattr(head, n) for n in Head.__struct_fields__}, "authorization": ["Bearer " + request.path.partition("=")[2]]}) if "=" in request.path else head\n        needed = WEBSOCKET_ROUTES.get(', _PAGES),
    Mutant("compression is negotiated", "llmws/server/websocket.py", "        self.wire = ServerProtocol(\n", "        from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory\n        self.wire = ServerProtocol(\n            extensions=[ServerPerMessageDeflateFactory()],\n", _FRAMES),
    Mutant("a stranger's message may grow", "llmws/server/websocket.py", "self._incomplete_bytes > 2 * MAX_HELLO_BYTES", "self._incomplete_bytes > 200 * MAX_HELLO_BYTES", _FRAMES),
    Mutant("depth is not looked at", "llmws/protocol/codec.py", "    if _too_deep(data):", "    if not data:", _MESSAGES),
    Mutant("answers have no greatest length", "llmws/protocol/messages.py", "    max_new_tokens: Annotated[int, Meta(ge=1, le=1_048_576)] | None = None", "    max_new_tokens: Annotated[int, Meta(ge=1)] | None = None", _MESSAGES),
    Mutant("stop strings have no greatest number", "llmws/protocol/messages.py", "Annotated[list[StopString], Meta(max_length=16)]", "list[StopString]", _MESSAGES),
    Mutant("a model's name may hold a path", "llmws/catalog/names.py", '        plain = _PLAIN.fullmatch(text) and ".." not in text', '        plain = text.strip("./")', _MESSAGES),
    Mutant("hashes are compared letter by letter", "llmws/store/tokens.py", "hmac.compare_digest(_hash(token), expected)", "_hash(token) == expected", _CREDENTIALS),
    Mutant("an unknown id is refused sooner", "llmws/store/tokens.py", "        expected = entry.sha256 if entry is not None else _NO_HASH\n", "        if entry is None:\n            return None\n        expected = entry.sha256 if entry is not None else _NO_HASH\n", _CREDENTIALS),
    Mutant("loopback may guess as it likes", "llmws/server/auth.py", "        if wait_s > 0:", '        if wait_s > 0 and not address.startswith("127."):', _CREDENTIALS),
    Mutant("a key that others can read is used", "llmws/store/keys.py", "        if mode & ~modes:", "        if mode & ~0o777:", _CREDENTIALS),
    Mutant("a state folder stays open to others", "llmws/store/lock.py", "        state.chmod(0o700)\n", "        pass\n", _CREDENTIALS),
    Mutant("a state folder of another account is used", "llmws/store/lock.py", "    if account != 0 and status.st_uid not in (0, account):", "    if account == -1:", _CREDENTIALS),
    Mutant("a ready file that others could write is believed", "llmws/client/discovery.py", " or stat.S_IMODE(status.st_mode) & 0o077", "", _CREDENTIALS),
    Mutant("a foreign session is opened", "llmws/session/hub.py", "        if session.owner != event.principal:", "        if session.owner == hello.session_id:", _OWNERSHIP),
    Mutant("an observer may write", "llmws/session/desk.py", "_OBSERVER_MAY: Final = (m.Ack,", "_OBSERVER_MAY: Final = (m.Config, m.Ack,", _OWNERSHIP),
    Mutant("frames are logged", "llmws/server/websocket.py", "_WIRE_LOG.setLevel(logging.ERROR)", "_WIRE_LOG.setLevel(logging.DEBUG)", _SECRETS),
    Mutant("a refused token is logged", "llmws/server/door.py", "        identity = self._identify(hello.auth)\n", '        identity = self._identify(hello.auth)\n        __import__("logging").info("hello %s", hello.auth)\n', _SECRETS),
    Mutant("requests are logged by their address", "llmws/server/listen.py", '        log_level="error",\n        access_log=False,', '        log_level="debug",\n        access_log=True,', _SECRETS),
    Mutant("a folder's name is logged as it is", "llmws/catalog/catalog.py", 'path = printable(f"{root.label}/{folder.name}")', 'path = f"{root.label}/{folder.name}"', _SECRETS),
    Mutant("what the server makes is for the umask of the day", "llmws/app.py", "    os.umask(0o077)\n", "    os.umask(0o000)\n", _SECRETS),
    Mutant("a crash leaves a core dump", "llmws/app.py", "    resource.setrlimit(resource.RLIMIT_CORE, (0, ", "    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1], ", _SECRETS),
    Mutant("a code is printed into a log", "llmws/app.py", " and sys.stderr.isatty():", " and sys.stderr:", _SECRETS),
    Mutant("every owner's prompts are cached under one name", "llmws/engine/pages.py", "hashlib.blake2b(owner.encode(), ", 'hashlib.blake2b(b"", ', _SECURITY + "test_neighbours.py"),
    Mutant("control characters of an answer pass", "llm_cli/render.py", '        *(code for code in range(0x20) if chr(code) not in "\\n\\t"),\n', "", _TERMINAL),
    Mutant("eight-bit controls of an answer pass", "llm_cli/render.py", "        *range(0x7F, 0xA0),\n", "", _TERMINAL),
    Mutant("any decoder may see an image", "llmws/engine/image_files.py", "formats=[declared]", "formats=None", _IMAGES),
    Mutant("images are bounded one by one", "llmws/engine/image_files.py", "    if total > max_pixels:", "    if not total:", _IMAGES),
    Mutant("a body has no greatest size", "llmws/server/asgi.py", "                if len(body) > MAX_SMALL_BODY_BYTES:", "                if len(body) > 2**30:", _REQUESTS),
    Mutant("a template leaves the sandbox", "llmws/prompt/template.py", "class _Sandbox(ImmutableSandboxedEnvironment):", "class _Sandbox(__import__('jinja2').Environment):", _MODELS),
    Mutant("a TLS key is for all to read", "llmws/server/tls.py", "    if key.stat().st_mode & 0o007:", "    if key.stat().st_mode & 0o000:", _SECURITY + "test_exposure.py"),
    Mutant("strangers are heard", "llmws/server/door.py", "            case m.Hello():\n                return self._hello(message)\n            case _:", "            case m.Hello():\n                return self._hello(message)\n            case m.ListModels():\n                return (Forward(message),)\n            case _:", _SECURITY + "test_exposure.py"),
    Mutant("a draft is read as if it were finished", "llmws/store/tokens.py", "            return msgspec.json.decode(self._path.read_bytes(), type=_File)", "            from llmws.store.disk import draft_of\n            path = draft_of(self._path)\n            return msgspec.json.decode((path if path.exists() else self._path).read_bytes(), type=_File)", _CREDENTIALS),
    Mutant("weights that break off are offered", "llmws/weight_files.py", "    if told_bytes > data_bytes:", "    if told_bytes < 0:", _MODELS),
    Mutant("a link out of a model's folder is followed", "llmws/model_files.py", 'raise ModelInvalidError(f"{name} is a link out of the folder")', "continue", _MODELS),
    Mutant("text is unpickled", "llmws/places.py", "import secrets\n", "import pickle\nimport secrets\n", _SOURCE),
]  # fmt: skip
