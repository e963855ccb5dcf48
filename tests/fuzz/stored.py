"""What lies on the disk, as functions of its bytes: logs, meta, tokens, keys, configuration."""

from __future__ import annotations

import contextlib
import io
import itertools
import uuid
from pathlib import Path
from typing import Final, NamedTuple

from llmws import config
from llmws.errors import ConfigError, StorageError
from llmws.store.keys import KeyRing, read_key_file, write_key_file
from llmws.store.meta import LogState, Meta, MetaForgedError, named_kids, open_meta, seal_meta, sealing_kid
from llmws.store.record import HEADER_START, LogKeys, Segment, SegmentCipher
from llmws.store.recovery import recover
from llmws.store.tokens import TokenFile
from llmws.store_api import Finished, Record, SessionMeta
from tests.fuzz.target import PART, Target, check_names, scratch

SESSION: Final = uuid.UUID("6f1c2d3e-4a5b-4c6d-8e7f-901122334455").bytes
STRANGER: Final = uuid.UUID("00000000-0000-4000-8000-000000000000").bytes
MASTERS: Final = {1: b"k" * 32, 2: b"K" * 32}
RING: Final = KeyRing(MASTERS)
TOKEN: Final = "llmws_00000000000a_" + "A" * 43


def _cipher(session: bytes, kid: int, epoch: int, base: int) -> SegmentCipher:
    salt = bytes([kid, epoch, base]) + bytes(29)
    made = LogKeys(session, "buffer", MASTERS.get).cipher(Segment(kid=kid, epoch=epoch, base=base, salt=salt, end=base))
    assert made is not None
    return made


def _record(n: int) -> Record:
    if n % 3 == 1:
        return Record(n=n, kind="prompt", value=b'{"ids":[%d]}' % n)
    return Record(n=n, kind="event", value=b'{"seq":%d,"data":"x"}' % n, seq=n)


_SEGMENTS: Final = tuple(_cipher(SESSION, *place) for place in ((1, 1, 0), (1, 2, 3), (2, 3, 5)))
_HELD: Final = ((1, 2, 3), (4, 5), (6, 7, 8))
_FOREIGN: Final = _cipher(STRANGER, 1, 1, 0)


class _Line(NamedTuple):
    """What an authentic line of the log says, for a reader that needs no key: `record` is None for a header."""

    cipher: SegmentCipher
    record: Record | None


LINES: Final = {
    line: content
    for cipher, numbers in zip(_SEGMENTS, _HELD, strict=True)
    for line, content in [
        (cipher.header, _Line(cipher, None)),
        *((cipher.seal(_record(n)), _Line(cipher, _record(n))) for n in numbers),
    ]
}
LOG: Final = b"".join(LINES)
_STRANGERS: Final = (
    _FOREIGN.header,
    *(_FOREIGN.seal(_record(n)) for n in (1, 2)),
    b"\n",
    b"{}\n",
    b'{"n":1,"data":""}\n',
    b'{"h":1}\n',
)
_STATES: Final = (
    LogState(first_n=1, segments=()),
    LogState(first_n=1, segments=tuple(cipher.segment for cipher in _SEGMENTS)),
    LogState(first_n=5, segments=tuple(cipher.segment for cipher in _SEGMENTS[1:])),
)


def log(data: bytes) -> None:
    """What a log gives back is a prefix of what was appended, and what was changed behind it is called corrupt."""
    keys = LogKeys(SESSION, "buffer", MASTERS.get)
    for state in _STATES:
        found = recover(data, keys=keys, state=state)
        records, corrupt = _model(data, state)
        assert (list(found.records), found.corrupt) == (records, corrupt)
        assert found.last_n == (records[-1].n if records else state.first_n - 1)
        assert 0 <= found.good_bytes <= len(data)


def _model(data: bytes, state: LogState) -> tuple[list[Record], bool]:
    """The same without cryptography: a line is authentic if it is one of those that were written."""
    records: list[Record] = []
    cipher: SegmentCipher | None = None
    last_n: int | None = None
    held_n: int | None = None  # of the present segment
    lines = list(io.BytesIO(data))
    at = 0
    for at, line in enumerate([*lines, b""]):  # noqa: B007 - where it stopped is what counts
        known = LINES.get(line)
        if known is None:
            break
        segment = known.cipher.segment
        if known.record is None:
            if cipher is not None and (held_n != segment.base or segment.epoch < cipher.segment.epoch):
                break
            cipher, held_n = known.cipher, None
            continue
        n = known.record.n
        fits = segment.base < n <= state.first_n if last_n is None else n == last_n + 1
        if known.cipher is not cipher or not fits:
            break
        last_n = held_n = n
        if n >= state.first_n:
            records.append(known.record)
    legible = {each.header for each in _SEGMENTS if each.segment in state.segments}
    legible |= {line for line in lines[:at] if line.startswith(HEADER_START)}
    for line in lines[at:]:
        known = LINES.get(line)
        if known is not None and known.record is None:
            legible.add(line)
        elif known is not None and known.cipher.header in legible and known.record.n >= state.first_n:
            return records, True
    return records, False


def log_edits(data: bytes) -> None:
    """The same of a real log that was changed in known ways; three bytes say what was done, and where."""
    changed = LOG
    for what, high, low in itertools.islice(zip(*[iter(data)] * 3, strict=False), 16):
        changed = _edited(changed, what, high, low)
    log(changed)


def _edited(data: bytes, what: int, high: int, low: int) -> bytes:
    lines = list(io.BytesIO(data))
    if not lines:
        return data
    place = (high << 8 | low) % len(data)
    one, other = high % len(lines), low % len(lines)
    match what % 8:
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << (what >> 5)]) + data[place + 1 :]
        case 1:
            return data[:place]
        case 2:
            del lines[one]
        case 3:
            lines.insert(other, lines[one])
        case 4:
            lines[one], lines[other] = lines[other], lines[one]
        case 5:
            lines.insert(one, _STRANGERS[low % len(_STRANGERS)])
        case 6:
            lines[one] = lines[one][: low % 100] + lines[other][low % 100 :]
        case _:
            return data[:place] + bytes([low]) + data[place:]
    return b"".join(lines)


def _meta(title: str | None, kid: int) -> bytes:
    state = LogState(first_n=1, segments=(Segment(kid=1, epoch=1, base=0, salt=b"s" * 32, end=9),))
    finished = (Finished(id_mac=b"i" * 32, body_mac=b"b" * 32, terminal="done"),)
    session = SessionMeta(owner="local", created_s=1.0, last_activity_s=2.0, last_seq=9, finished=finished, title=title)
    value = Meta(epoch=7, ends=((3, 9),), ledger_key=b"l" * 32, buffer=state, conversation=state, session=session)
    return seal_meta(value, SESSION, KeyRing({kid: MASTERS[kid]}), lambda size: b"n" * size)


METAS: Final = frozenset(_meta(title, kid) for title in (None, "a title") for kid in MASTERS)


def meta(data: bytes) -> None:
    """A meta opens only as it was written; what keys an unreadable one names can be asked all the same."""
    try:
        open_meta(data, SESSION, RING)
        assert data in METAS
    except (MetaForgedError, StorageError):
        assert data not in METAS
    kid = sealing_kid(data)
    assert named_kids(data) >= (set() if kid is None else {kid})


def token_file(data: bytes) -> None:
    """A token file with anything in it lets in nobody whose hash does not stand there, and says so if it is none."""
    content, _, shown = data.partition(PART)
    folder = scratch() / "tokens"
    folder.mkdir(exist_ok=True)
    path = folder / "tokens.json"
    path.write_bytes(content)
    tokens = TokenFile(path)
    identity = tokens.identify(shown.decode(errors="surrogateescape"))
    assert identity is None or identity.token_id.encode() in shown
    first = folder / "admin.token"
    first.write_bytes(shown)
    with contextlib.suppress(ConfigError):
        tokens.list()
        assert tokens.ensure_first() in (None, first)


def key_file(data: bytes) -> None:
    """A key file is read to keys that are written and read the same again, or refused by its line."""
    path = _file("master.key", data)
    try:
        keys = read_key_file(path)
    except ConfigError as error:
        check_names(error, str(path))
        return
    write_key_file(path, keys)
    assert read_key_file(path) == keys


def config_file(data: bytes) -> None:
    """A configuration file is a whole valid configuration, or an error that names the file."""
    path = _file("config.json", data)
    try:
        read = config.load(path, environ={})
    except ConfigError as error:
        check_names(error, str(path))
        return
    path.write_text(config.to_json(read))
    assert config.load(path, environ={}) == read


def environment(data: bytes) -> None:
    """A variable is a setting in range, or an error that names the variable."""
    pairs = [part.decode(errors="surrogateescape").partition("=") for part in data.split(PART)]
    environ = {name: value for name, _, value in pairs}
    path = _file("config.json", b"{}")
    try:
        read = config.load(path, environ=environ)
    except ConfigError as error:
        check_names(error, *environ)
        return
    assert config.override(read, {}) == read


def _file(name: str, data: bytes) -> Path:
    path = scratch() / name
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


STORED = (
    Target(run=log, share=20, on_loop=False),
    Target(run=log_edits, share=20, on_loop=False, max_bytes=48),
    Target(run=meta, share=60, on_loop=False),
    Target(run=token_file, share=10),
    Target(run=key_file, share=10, on_loop=False, max_bytes=16_384),
    Target(run=config_file, share=15, on_loop=False, max_bytes=16_384),
    Target(run=environment, share=10, on_loop=False),
)
