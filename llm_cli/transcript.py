"""Conversations as files: Markdown to read, JSON to read and to import again.

Knows neither servers nor terminals. Invariant: what `to_json` gives, `from_json` takes, with the same turns.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from llm_cli.render import clean, clean_line
from llmws.protocol.messages import ChatMessage, HistoryMessage

SUFFIXES: Final = (".md", ".json")
LONGEST_BYTES: Final = 32 * 2**20
"""Longest file that is read; what a server takes in one message is far less."""


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation in a file.

    Attributes:
        messages: oldest first.
        title: what it is called.
        session_id: where it comes from.
    """

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1, max_length=4096)]
    title: str | None = None
    session_id: str | None = None


def transcript(messages: Sequence[HistoryMessage], *, title: str | None, session_id: str | None) -> Transcript:
    """The messages of a branch as a transcript."""
    turns = [ChatMessage(role=message.role, content=message.content) for message in messages]
    return Transcript(messages=turns, title=title, session_id=session_id)


def to_json(found: Transcript) -> str:
    """As JSON that a person can read too."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


def to_markdown(found: Transcript) -> str:
    """As Markdown, a heading for each turn; without the control characters that a terminal would obey."""
    title = [f"# {clean_line(found.title)}"] if found.title else []
    turns = [f"## {turn.role.capitalize()}\n\n{clean(turn.content).strip()}" for turn in found.messages]
    return "\n\n".join(title + turns) + "\n"


def from_json(data: bytes) -> list[ChatMessage]:
    """The turns of a transcript, or of a bare list of turns as other programs write it.

    Raises:
        ValueError: it is neither.
    """
    try:
        is_list = isinstance(msgspec.json.decode(data), list)
        return msgspec.json.decode(b'{"messages":' + data + b"}" if is_list else data, type=Transcript).messages
    except msgspec.ValidationError as error:
        raise ValueError(f"holds no conversation: {error}") from None
    except RecursionError:
        raise ValueError("holds no conversation: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("is not JSON") from None


def path_of(name: str) -> Path:
    """The path that a person means by a name; `~` is the home folder."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 - Path raises where there is no such user


def write(found: Transcript, path: Path, *, mode: Literal["x", "w"]) -> None:
    """Writes a transcript in the format that the file's name asks for, readable by its owner alone.

    Args:
        found: the transcript.
        path: ends in one of `SUFFIXES`.
        mode: `w` replaces a file that is there, once the new one is written.

    Raises:
        FileExistsError: there is a file, and `mode` is `x`.
        ValueError: it cannot be written; what was there is still there.
    """
    text = to_json(found) if path.suffix.lower() == ".json" else to_markdown(found)
    try:
        if mode == "x":
            _write_new(path, text)
        else:
            path = path.resolve()  # a link stays one
            beside = path.with_name(f".llm-{secrets.token_hex(8)}.tmp")
            _write_new(beside, text)
            try:
                beside.replace(path)
            except OSError:
                beside.unlink()
                raise
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def read(path: Path) -> list[ChatMessage]:
    """The turns in a file.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{path} is not a regular file")
            data = file.read(LONGEST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if len(data) > LONGEST_BYTES:
        raise ValueError(f"{path} is longer than {LONGEST_BYTES} bytes")
    try:
        return from_json(data)
    except ValueError as error:
        raise ValueError(f"{path} {error}; /import takes what /export FILE.json writes") from None


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting, as a pipe would be waited for until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _write_new(path: Path, text: str) -> None:
    """Writes a file that is not there yet; one that cannot be written to its end is taken away again."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink()
            raise


def file_words(typed: str, suffixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The folders, and the files with such names, that what was typed may be the beginning of."""
    before, slash, beginning = typed.rpartition("/")
    try:
        paths = sorted(path_of(before + slash).iterdir())
    except OSError:
        return
    for path in paths:
        is_hidden = path.name.startswith(".") and not beginning.startswith(".")
        if path.name.startswith(beginning) and not is_hidden and path.name.isprintable():
            if path.is_dir():
                yield f"{before}{slash}{path.name}/", ""
            elif path.suffix.lower() in suffixes:
                yield f"{before}{slash}{path.name}", ""
