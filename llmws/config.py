"""The configuration: types, defaults, reading and writing `config.json`.

Invariant: a `Config` that exists is valid in every field; an unknown key or a bad value is named and stops the start.
Precedence: command line > `LLMWS_*` environment > file > default.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from llmws.errors import ConfigError, printable
from llmws.protocol.messages import MAX_SAFE_INT, Sampling

_log = logging.getLogger(__name__)

Port = Annotated[int, Meta(ge=0, le=65535)]
_DEVICE: Final = r"^(auto|cpu|cuda(:[0-9]{1,3})?)\Z"
_AUTHORITY: Final = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?\Z"
_HOST: Final = f"^{_AUTHORITY}"
_ORIGIN: Final = f"^[A-Za-z][A-Za-z0-9+.-]*://{_AUTHORITY}"
_IN_WORDS: Final = {
    f"expected `str` matching regex {pattern!r}": f"expected {words}"
    for pattern, words in (
        (_DEVICE, "auto, cpu, cuda or cuda:N"),
        (_HOST, "a name with or without a port, as box.example or [fd00::7]:8765"),
        (_ORIGIN, "an origin, which has a scheme and no path, as https://box.example"),
    )
}


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections of the file."""


class ServerSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how to listen.

    `origins` and `hosts` are allowed beside the server's own. `tls_cert` and `tls_key`: PEM files, the first with the
    whole chain. `behind_proxy`: only a proxy at one of the addresses in `proxies`, and this machine, may come in, and
    what the proxy says of its clients is believed. `insecure_lan`: listen beyond loopback without TLS.
    """

    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    port: Port = 8765
    hosts: tuple[Annotated[str, Meta(pattern=_HOST)], ...] = ()
    origins: tuple[Annotated[str, Meta(pattern=_ORIGIN)], ...] = ()
    heartbeat_s: Annotated[float, Meta(ge=1, le=3600)] = 20.0
    hello_timeout_s: Annotated[float, Meta(ge=0.1, le=60)] = 10.0
    drain_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0
    tls_cert: str | None = None
    tls_key: str | None = None
    behind_proxy: bool = False
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    insecure_lan: bool = False

    def __post_init__(self) -> None:
        for proxy in self.proxies:
            try:
                ipaddress.ip_address(proxy)
            except ValueError:
                raise ValueError(f"proxies lists {proxy!r}, which is no IP address") from None


class ModelSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model to load at start: a name, or None for the last one switched to, else the first one found.

    Where that one does not load, and none is named, the others are tried in turn, the guide last.
    """

    name: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    load_on_demand: bool = True


class OptimizationSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models run. `device` and `dtype` `auto`: CUDA in bfloat16 where there is a GPU, else CPU in float32.

    `tier` `auto`: batched over a paged cache where the model can, `fallback`: never. `flash_attention` false: not even
    where torch has it; true: the log says where it has not. `compile`: torch.compile, on the fallback tier; a load and
    the first answers then take minutes, and answers that are running wait meanwhile.
    """

    device: Annotated[str, Meta(pattern=_DEVICE)] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    tier: Literal["auto", "fallback"] = "auto"
    flash_attention: bool | Literal["auto"] = "auto"
    compile: bool = False


class GenerationSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling where neither the request nor the session says otherwise; ranges as in the protocol."""

    max_new_tokens: Annotated[int, Meta(ge=1, le=1_048_576)] = 512
    do_sample: bool = True
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] = 50
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=MAX_SAFE_INT)] | None = None

    def to_sampling(self) -> Sampling:
        """The section as sampling parameters."""
        return Sampling(**msgspec.structs.asdict(self))


class PathsSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Folders; relative ones are taken from the folder of the configuration file."""

    state_dir: str | None = None
    models_dir: str | None = None


class LimitsSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits. `max_context` and `max_running` 0: what memory allows. `max_image_pixels`: of a prompt's images.

    A session with more than `max_unacknowledged_bytes` or `_events` generates nothing until its client has acknowledged
    half; a request that is kept waiting by that for `max_pause_s` ends in `buffer_full`. `max_sessions` counts the live
    ones of a principal, `requests_per_minute` its requests.
    """

    max_message_bytes: Annotated[int, Meta(ge=1024, le=64 * 2**20)] = 2**20
    max_image_pixels: Annotated[int, Meta(ge=1, le=2**28)] = 2**24
    max_queue: Annotated[int, Meta(ge=1, le=1024)] = 16
    max_context: Annotated[int, Meta(ge=0, le=2**31)] = 0
    max_running: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_connections: Annotated[int, Meta(ge=1, le=65536)] = 4096
    max_unauthenticated: Annotated[int, Meta(ge=1, le=65536)] = 256
    max_observers: Annotated[int, Meta(ge=0, le=64)] = 8
    max_sessions: Annotated[int, Meta(ge=1, le=65536)] = 64
    max_unacknowledged_bytes: Annotated[int, Meta(ge=65536, le=2**40)] = 16 * 2**20
    max_unacknowledged_events: Annotated[int, Meta(ge=16, le=2**31)] = 65_536
    max_pause_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 3600.0
    requests_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] = 600


class AuthSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether a token is required. `required: false` is allowed on a loopback address only."""

    required: bool = True


class StorageSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The session log. `key_file` None: `keys/master.key` in the state folder.

    `durability`: an event is sent once it survives the server's death (`os`), or a loss of power too (`disk`).
    """

    durability: Literal["os", "disk"] = "os"
    key_file: str | None = None


class SessionsSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a session is kept once its last client has left, counted in the server's uptime.

    After `ttl_s` what is not acknowledged is dropped. The conversation stays for `conversation_ttl_d` days, 0: ever.
    """

    ttl_s: Annotated[float, Meta(ge=60, le=3_153_600_000)] = 86_400.0
    conversation_ttl_d: Annotated[float, Meta(ge=0, le=36_500)] = 0.0


class Config(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration."""

    server: ServerSection = ServerSection()
    model: ModelSection = ModelSection()
    optimization: OptimizationSection = OptimizationSection()
    generation_defaults: GenerationSection = GenerationSection()
    paths: PathsSection = PathsSection()
    limits: LimitsSection = LimitsSection()
    auth: AuthSection = AuthSection()
    storage: StorageSection = StorageSection()
    sessions: SessionsSection = SessionsSection()


def to_json(config: Config) -> str:
    """The configuration as an indented file with every key."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2).decode() + "\n"


def load(path: Path, *, environ: Mapping[str, str] = os.environ) -> Config:
    """Reads the file, which is made with the defaults if it is missing, and lays the environment over it.

    A variable's text is taken as JSON where it is JSON that fits, else as a string: `8765`, `["a.example"]`, `0.0.0.0`.
    None at all is `null` where the setting may be that.

    Raises:
        ConfigError: names the file or the variable, the path inside it and what is wrong.
    """
    text = _read_or_make(path)
    try:
        config = msgspec.json.decode(text, type=Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_readable(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); delete it to get the defaults back") from None
    return _with_environment(config, environ)


def _read_or_make(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        text = to_json(Config()).encode()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another with --config") from None
    return text


def override(config: Config, changes: Mapping[str, Mapping[str, object]]) -> Config:
    """The configuration with single values replaced, as {section: {key: value}}, checked like the file's.

    Raises:
        ConfigError: names the path of the bad value.
    """
    data = msgspec.to_builtins(config)
    for section, values in changes.items():
        data[section] |= values
    try:
        return msgspec.convert(data, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_readable(str(error))) from None
    except UnicodeEncodeError:
        raise ConfigError("not text in UTF-8") from None


def environment_names() -> dict[str, tuple[str, str]]:
    """`LLMWS_<SECTION>_<KEY>` for every key, as {variable: (section, key)}."""
    return {
        f"LLMWS_{section}_{key}".upper(): (section, key)
        for section, kind in get_type_hints(Config).items()
        for key in kind.__struct_fields__
    }


def _with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    names = environment_names()
    sections = tuple(f"LLMWS_{section}_".upper() for section in Config.__struct_fields__)
    for variable in sorted(environ):
        if variable in names:
            section, key = names[variable]
            try:
                config = _with_value(config, section, key, environ[variable])
            except ConfigError as error:
                raise ConfigError(f"environment variable {variable}: {error}") from None
        elif variable.startswith(sections):
            raise ConfigError(f"environment variable {variable}: there is no such setting{_nearest(variable, names)}")
        elif variable.startswith("LLMWS_"):  # another program's, perhaps
            _log.warning("environment variable %s is no setting%s", printable(variable), _nearest(variable, names))
    return config


def _with_value(config: Config, section: str, key: str, text: str) -> Config:
    if not text:
        with contextlib.suppress(ConfigError):
            return override(config, {section: {key: None}})
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return override(config, {section: {key: text}})
    try:
        return override(config, {section: {key: value}})
    except ConfigError:
        with contextlib.suppress(ConfigError):
            return override(config, {section: {key: text}})  # a model may be called 42
        raise


def _readable(text: str) -> str:
    """`Expected ... - at `$.server.port`` as `server.port: expected ...`, with what would be right."""
    reason, _, path = text.partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    reason = reason[:1].lower() + reason[1:]
    if unknown := re.fullmatch("object contains unknown field `(.*)`", reason, re.DOTALL):
        reason += _nearest(unknown[1], get_type_hints(get_type_hints(Config)[path] if path else Config))
    elif reason in _IN_WORDS:
        reason = _IN_WORDS[reason]
    elif allowed := _choices(path):
        reason += f"; it is one of {', '.join(allowed)}"
    return f"{path}: {reason}" if path else reason


def _nearest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else ""


def _choices(path: str) -> list[str]:
    """What may stand at `section.key`, as JSON; empty where that is no short list."""
    section, _, key = path.partition(".")
    kind = get_type_hints(get_type_hints(Config).get(section, Config)).get(key)
    kinds = [kind] if get_origin(kind) is Literal else get_args(kind)
    if not any(get_origin(each) is Literal for each in kinds):
        return []
    values = [value for each in kinds for value in ((True, False) if each is bool else get_args(each))]
    return [msgspec.json.encode(value).decode() for value in values]
