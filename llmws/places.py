"""Where things lie: configuration, state and models; and the few lines of state that belong to the server as a whole.

Invariant: nothing here is decided by the current folder. From a checkout everything stays inside it; an installed
wheel follows the XDG base directories. Source: XDG Base Directory Specification.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from llmws.config import Config
from llmws.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None


class Places(NamedTuple):
    """Absolute paths. `bundled_dir` holds the built-in model where `models_dir` does not."""

    state_dir: Path
    models_dir: Path
    own_models_dir: Path
    bundled_dir: Path | None = None
    key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None


def plain(path: Path) -> Path:
    """The absolute path, as a person would write it: without `..`, but under its own name where it is a link."""
    return path.parent.resolve() / path.name


def default_config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration file lies when nobody says otherwise."""
    return _CHECKOUT / "config.json" if _CHECKOUT else _xdg(environ, "XDG_CONFIG_HOME", ".config") / "config.json"


def locate(
    config: Config,
    config_dir: Path,
    *,
    state_dir: Path | None = None,
    models_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Places:
    """The places in force: arguments first, then the configuration (relative to its own folder), then the defaults."""
    paths = config.paths
    if state_dir is None and paths.state_dir is not None:
        state_dir = config_dir / paths.state_dir
    if models_dir is None and paths.models_dir is not None:
        models_dir = config_dir / paths.models_dir
    bundled_dir = None
    if models_dir is None:
        if _CHECKOUT:
            models_dir = _CHECKOUT / "models"
        else:
            models_dir = _xdg(environ, "XDG_DATA_HOME", ".local/share") / "models"
            bundled_dir = _PACKAGE / "data"
    if state_dir is None:
        state_dir = _CHECKOUT / "var" if _CHECKOUT else _xdg(environ, "XDG_STATE_HOME", ".local/state")
    state_dir = plain(state_dir)
    key_file, tls_cert, tls_key = (
        plain(config_dir / path) if path is not None else None
        for path in (config.storage.key_file, config.server.tls_cert, config.server.tls_key)
    )
    return Places(state_dir, plain(models_dir), state_dir / "models", bundled_dir, key_file, tls_cert, tls_key)


def page_path() -> Path:
    """Where the web page lies."""
    return _CHECKOUT / "web" / "llmws.html" if _CHECKOUT else _PACKAGE / "data" / "llmws.html"


def ready_objects_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where running servers leave word of themselves for clients of the same account."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state") / "servers"


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """What the server itself remembers: its id, the model that served last, and how long it has been up in all."""

    node_id: str
    model: str | None = None
    uptime_s: float = 0.0


def read_server_state(state_dir: Path) -> ServerState:
    """The remembered state; a fresh one where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    path = state_dir / "server.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=ServerState)
    except FileNotFoundError:
        return ServerState(node_id=secrets.token_hex(8))
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}; delete the file, it is made again") from None


def write_server_state(state_dir: Path, state: ServerState) -> None:
    """Remembers the state."""
    write_atomically(state_dir / "server.json", msgspec.json.format(msgspec.json.encode(state)))


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file as a whole, readable by its owner only; a reader sees the old one or the new one.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of one name, so that a kill leaves at most one of them, which the next writing takes away.
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    base = Path(environ.get(variable, ""))
    return (base if base.is_absolute() else Path.home() / default) / "llmws"
