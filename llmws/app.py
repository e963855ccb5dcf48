"""The composition root: configuration in, running server out.

The only importer of implementations. Invariant: whatever ends `serve`, the store has written what it was given and
the socket is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from pathlib import Path

import msgspec

from llmws import __version__
from llmws.access import LOCAL_PRINCIPAL, Identity
from llmws.catalog.catalog import Catalog
from llmws.catalog.choose import candidates
from llmws.config import Config
from llmws.engine.local import LocalEngine
from llmws.engine.probe import DeviceProbe
from llmws.engine.worker import ENGINE_THREAD
from llmws.engine_api import Engine, MemoryProbe, ModelRef, ModelSource, PromptRenderer
from llmws.errors import ConfigError, ModelNotFoundError
from llmws.places import (
    Places,
    ServerState,
    read_server_state,
    ready_objects_dir,
    write_atomically,
    write_server_state,
)
from llmws.prompt.renderer import ProcessRenderer
from llmws.protocol import messages as m
from llmws.runtime.driver import Driver
from llmws.server.exposure import cautions, check_exposure
from llmws.server.listen import Server, bind
from llmws.server.ports import Credentials
from llmws.server.tls import tls_context
from llmws.session import events as e
from llmws.session.hub import Hub
from llmws.session.rules import Rules
from llmws.session.state import HubSettings
from llmws.store.folder import Site
from llmws.store.keys import load_keys
from llmws.store.lock import hold_state_folder
from llmws.store.tokens import TokenFile
from llmws.store.writer import FileStore
from llmws.store_api import SessionStore

_log = logging.getLogger(__name__)


class ReadyObject(msgspec.Struct, frozen=True):
    """What a client on this machine needs to find the server, and to know it by its certificate.

    `token_file` is None where no token is needed, and where the first admin's was revoked and another admin has one:
    then a client must be given it. `tls_cert` is None where the server does not speak TLS.
    """

    url: str
    ws_url: str
    port: int
    pid: int
    token_file: str | None
    tls_cert: str | None


class NoTokens:
    """`Credentials` where no token is required: everybody is the owner of this machine's account."""

    def identify(self, token: str | None) -> Identity:  # noqa: ARG002  (it does not matter)
        """See `Credentials.identify`."""
        return Identity(LOCAL_PRINCIPAL, "admin")

    def holds(self, token_id: str) -> bool:  # noqa: ARG002  (there are none)
        """See `Credentials.holds`."""
        return True

    def issue(self, identity: Identity) -> str:
        """See `Credentials.issue`."""
        raise ConfigError(f"auth.required: false; nobody needs a token, not even {identity.principal}")


class SystemClock:
    """`Clock` of the machine."""

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()

    def time(self) -> float:
        """See `Clock.time`."""
        return time.time()


class SystemEntropy:
    """`Entropy` of the operating system."""

    def new_id(self) -> str:
        """See `Entropy.new_id`."""
        return str(uuid.uuid4())

    def new_seed(self) -> int:
        """See `Entropy.new_seed`."""
        return secrets.randbelow(m.MAX_SAFE_INT + 1)


class Parts(msgspec.Struct, frozen=True):
    """The implementations that a test may replace. `store` None: files in the state folder."""

    engine: Engine
    probe: MemoryProbe
    prompts: PromptRenderer
    models: ModelSource
    store: SessionStore | None = None
    clock: e.Clock = SystemClock()


def local_parts(config: Config, places: Places) -> Parts:
    """The parts of a real server. Torch is imported later, on the engine's own thread."""
    return Parts(
        engine=LocalEngine(config.optimization, config.limits, cache_dir=places.state_dir / "cache"),
        probe=DeviceProbe(config.optimization.device),
        prompts=ProcessRenderer(),
        models=Catalog(places.models_dir, places.own_models_dir, places.bundled_dir),
    )


def serve(config: Config, places: Places, *, ready_file: Path | None = None, parts: Parts | None = None) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
        config: all settings.
        places: the folders.
        ready_file: where to leave the ready object once the socket listens.
        parts: in place of the local ones.

    Raises:
        ConfigError: a setting cannot be used on this machine.
    """
    # A native crash is nothing that Python can log; this names at least the threads and where they were.
    faulthandler.enable()
    # The default of 5 ms, for which the loop waits whenever torch holds the interpreter, would be felt in every frame.
    sys.setswitchinterval(0.0005)
    os.umask(0o077)
    # The memory of a server that crashed holds prompts, keys and tokens; its children take the limit over.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    _raise_file_limit(config.limits.max_connections)
    check_exposure(config)

    async def run() -> None:
        await _App(config, places, listener, parts or local_parts(config, places)).run(ready_file)

    listener = bind(config.server.host, config.server.port)
    try:
        lock = hold_state_folder(places.state_dir)
        try:
            asyncio.run(run())
        finally:
            lock.close()
    finally:
        listener.close()
    if any(thread.name == ENGINE_THREAD and thread.is_alive() for thread in threading.enumerate()):
        # It is inside a load or the import of torch. Everything is on disk; the interpreter's own end would pull the
        # ground from under native code and could crash.
        logging.shutdown()
        os._exit(0)


def _raise_file_limit(max_connections: int) -> None:
    """Asks for a file handle for each connection and some for the store; the usual soft limit is 1,024."""
    wanted = max_connections + 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        _log.warning("only %d files may be open here; limits.max_connections is %d", hard, max_connections)
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _App:
    """One running server: the object graph and its life."""

    def __init__(self, config: Config, places: Places, listener: socket.socket, parts: Parts) -> None:
        self._config = config
        self._places = places
        self._listener = listener
        self._remembered = read_server_state(places.state_dir)
        write_server_state(places.state_dir, self._remembered)
        keys = load_keys(places.state_dir, key_file=places.key_file)
        self._store = parts.store or FileStore(
            Site(state=places.state_dir, keys=keys), durability=config.storage.durability
        )
        self._found = tuple(parts.models.scan())
        self._unfinished = tuple(self._store.unfinished())
        self._first_models = self._choose_models()
        hub = Hub(hub_settings(config, self._remembered), clock=parts.clock, entropy=SystemEntropy())
        self._driver = Driver(
            hub,
            engine=parts.engine,
            store=self._store,
            prompts=parts.prompts,
            models=parts.models,
            probe=parts.probe,
            remember_model=self._remember_model,
            save_uptime=self._save_uptime,
        )
        self._token_file: Path | None = None
        credentials: Credentials = NoTokens()
        if config.auth.required:
            credentials = tokens = TokenFile(places.state_dir / "tokens.json")
            self._token_file = tokens.ensure_first()
        self._server = Server(
            listener=listener,
            sessions=self._driver,
            credentials=credentials,
            server=config.server,
            limits=config.limits,
            tls=tls_context(places.tls_cert, places.tls_key) if places.tls_cert and places.tls_key else None,
        )

    async def run(self, ready_file: Path | None) -> None:
        """Serves until a signal comes or a part fails."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, stop)
        ready_files = [ready_objects_dir() / f"{self._server.port}.json", *([ready_file] if ready_file else [])]
        try:
            self._driver.start()
            self._begin()
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self._server.run())
                driving = tasks.create_task(self._driver.run())
                await self._server.started.wait()
                self._announce(ready_files)
                stopping = tasks.create_task(stop.wait())
                await asyncio.wait([serving, driving, stopping], return_when=asyncio.FIRST_COMPLETED)
                self._server.drain()
                await self._driver.drain(self._config.server.drain_s if stopping.done() else 0)
                self._server.stop()
                stop.set()
                driving.cancel()
        except* ConfigError as group:
            raise group.exceptions[0] from None
        finally:
            for path in ready_files:
                with contextlib.suppress(OSError):
                    path.unlink()
            self._driver.stop()

    def _signalled(self, stop: asyncio.Event) -> None:
        if stop.is_set():
            _log.warning("stopping at once")
            self._driver.hurry()
        else:
            _log.info("stopping; what is unfinished goes on after the next start")
        stop.set()

    def _announce(self, paths: list[Path]) -> None:
        """Tells where the server is, once it listens: the log for people, the ready files for programs."""
        ready = self._ready_object()
        for path in paths:
            write_atomically(path, msgspec.json.encode(ready) + b"\n")
        _log.info("llmws %s listens at %s", __version__, ready.url)
        for caution in cautions(self._config):
            _log.warning("%s", caution)
        if self._config.auth.required and sys.stderr.isatty():
            # On a terminal only, and not through the log, which may be kept: whoever reads the code can come in.
            code = self._server.mint_code(Identity(LOCAL_PRINCIPAL, "admin"))
            print(f"In a browser, once, within ten minutes: {ready.url}/#code={code}", file=sys.stderr, flush=True)

    def _ready_object(self) -> ReadyObject:
        host = self._config.server.host
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
        authority = f"[{shown}]:{self._server.port}" if ":" in shown else f"{shown}:{self._server.port}"
        cert = self._places.tls_cert
        secure = "s" if cert else ""
        return ReadyObject(
            url=f"http{secure}://{authority}",
            ws_url=f"ws{secure}://{authority}/v1/ws",
            port=self._server.port,
            pid=os.getpid(),
            token_file=str(self._token_file) if self._token_file else None,
            tls_cert=str(cert) if cert else None,
        )

    def _choose_models(self) -> tuple[ModelRef, ...]:
        try:
            return candidates(self._found, preferred=self._config.model.name, last=self._remembered.model)
        except ModelNotFoundError as error:
            raise ConfigError(f"model.name: {error}; name one of those, or none") from None

    def _begin(self) -> None:
        """Before any client comes: loads the model to begin with, takes up what an earlier process left unfinished."""
        if self._first_models:
            first, *others = self._first_models
            self._driver.post(e.SelectModel(first, instead=tuple(others)))
        self._driver.post(e.ModelsScanned(self._found))
        self._driver.post(e.UnfinishedFound(self._unfinished))
        if not self._first_models:
            _log.warning("there is no model in %s; put one there, then switch to it", self._places.models_dir)

    def _remember_model(self, name: str) -> None:
        self._remember(msgspec.structs.replace(self._remembered, model=name))

    def _save_uptime(self, uptime_s: float) -> None:
        self._remember(msgspec.structs.replace(self._remembered, uptime_s=uptime_s))

    def _remember(self, state: ServerState) -> None:
        self._remembered = state
        write_server_state(self._places.state_dir, state)


def hub_settings(config: Config, remembered: ServerState) -> HubSettings:
    """What the hub takes from the configuration and from its earlier starts."""
    limits = config.limits
    return HubSettings(
        limits=m.Limits(max_message_bytes=limits.max_message_bytes, max_queue=limits.max_queue),
        heartbeat=m.Heartbeat(interval_s=config.server.heartbeat_s),
        server=m.ServerInfo(node_id=remembered.node_id, version=__version__),
        generation_defaults=config.generation_defaults.to_sampling(),
        rules=Rules(
            durability=config.storage.durability,
            max_unacknowledged_bytes=limits.max_unacknowledged_bytes,
            max_unacknowledged_events=limits.max_unacknowledged_events,
        ),
        uptime_s=remembered.uptime_s,
        max_observers=limits.max_observers,
        max_sessions=limits.max_sessions,
        max_pause_s=limits.max_pause_s,
        requests_per_minute=limits.requests_per_minute,
        session_ttl_s=config.sessions.ttl_s,
        conversation_ttl_d=config.sessions.conversation_ttl_d,
        load_on_demand=config.model.load_on_demand,
    )
