"""The chat's commands: one table that drives help, completion, availability and dispatch.

Pure: knows what the commands are called and need, not what they do.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

Needs = Literal["nothing", "server", "session", "admin"]
Kind = Literal["", "models", "settings", "sessions", "exports", "imports", "images"]


class Command(NamedTuple):
    """A command.

    Attributes:
        name: without the slash.
        arguments: as help shows them; what is not in brackets must be given.
        summary: one line.
        needs: a connection (`server`); one that has the session, and takes it over if another client has it
            (`session`); an admin's token as well (`admin`).
        completes: what its argument may be.
    """

    name: str
    arguments: str
    summary: str
    needs: Needs = "server"
    completes: Kind = ""


COMMANDS: Final = (
    Command("help", "", "list the commands", "nothing"),
    Command("model", "[NAME]", "show or choose the model that answers me", "nothing", "models"),
    Command("models", "", "list the models on the server"),
    Command("switch", "NAME", "load another model on the server, for everyone", "admin", "models"),
    Command("delete", "NAME", "delete a model's files from the server", "admin", "models"),
    Command("config", "[NAME=VALUE…]", "show or set this session's sampling defaults", "session", "settings"),
    Command("system", "[TEXT]", "show or set the system message; /system - clears it", "nothing"),
    Command("image", "[FILE]", "show the model an image with the next question; - for none", "nothing", "images"),
    Command("resources", "", "show the device, the memory and the load"),
    Command("status", "", "show the server's state in short"),
    Command("sessions", "", "list my sessions, the one used last first"),
    Command("session", "[N|ID|new]", "show this session, or go to another one", "nothing", "sessions"),
    Command("new", "", "start a new session", "nothing"),
    Command("title", "[TEXT]", "show or set what this session is called; /title - clears it", "session"),
    Command("forget", "[N|ID]", "delete a session for good; without a name this one", "session", "sessions"),
    Command("history", "[N]", "show the last N messages of this conversation (default 10)"),
    Command("regenerate", "", "answer the last question once more", "session"),
    Command("edit", "", "change the last question and ask it instead", "session"),
    Command("export", "FILE", "write this conversation to a file.md or file.json", "server", "exports"),
    Command("import", "FILE", "go on from the conversation in a file.json", "session", "imports"),
    Command("cancel", "", "end this session's requests that still run or wait"),
    Command("quit", "", "leave; /exit, /bye and Ctrl-D do the same", "nothing"),
)

_BY_NAME: Final = {command.name: command for command in COMMANDS}
_OTHER_NAMES: Final = {"exit": "quit", "bye": "quit"}
_COMMAND_LINE: Final = re.compile(r"/([A-Za-z]*)(?:\s+(.*))?\s*\Z", re.DOTALL)

KEYS: Final = (
    ("Enter", "send"),
    ("Alt-Enter", "a new line; pasted text keeps its lines"),
    ("Ctrl-X Ctrl-E", "write in $EDITOR"),
    ("Ctrl-C", "end the answer; again to leave"),
    ("Ctrl-D", "leave"),
)


class Call(NamedTuple):
    """A command as it was typed."""

    command: Command
    argument: str


def parse(line: str) -> Call | str | None:
    """Reads a line of input.

    Returns:
        The call; or a sentence on why it is none; or None when the line is a prompt, as `/etc/hosts` is one, and
        whatever has a space in front.
    """
    match = _COMMAND_LINE.match(line)
    if match is None:
        return None
    name = match.group(1).lower()
    name = _OTHER_NAMES.get(name, name)
    if name in _BY_NAME:
        return Call(_BY_NAME[name], (match.group(2) or "").strip())
    if not name:
        return "a command follows the slash; /help lists them"
    meant = nearest(f"/{name}", [f"/{each}" for each in _BY_NAME]) or "/help lists the commands"
    escape = "; with a space in front the line is a prompt" if match.group(2) else ""
    return f"there is no /{name}; {meant}{escape}"


def nearest(word: str, words: Iterable[str]) -> str:
    """A question whether the most similar of `words` was meant; empty when none is similar."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def missing(command: Command, *, is_online: bool, is_admin: bool) -> str:
    """What a command lacks that it needs now; empty when it is available."""
    if command.needs != "nothing" and not is_online:
        return "not connected"
    return "needs an admin's token" if command.needs == "admin" and not is_admin else ""


def completes(text: str) -> Kind:
    """What the argument at the end of `text`, the text before the cursor, may be."""
    match = _COMMAND_LINE.match(text)
    command = _BY_NAME.get(match.group(1).lower()) if match else None
    return command.completes if match and command and match.group(2) is not None else ""


def complete(
    text: str, *, is_online: bool, is_admin: bool, words: Callable[[Kind, str], Iterable[tuple[str, str]]]
) -> list[tuple[str, str, int]]:
    """What may stand at the end of `text`, as (word, explanation, how many characters it replaces).

    Args:
        text: what stands before the cursor.
        is_online: whether there is a connection.
        is_admin: whether the token is an admin's, as far as is known.
        words: what there is of a kind, as (word, explanation), given what was typed of it.
    """
    match = _COMMAND_LINE.match(text)
    if match is None:
        return []
    if match.group(2) is None:
        return [
            (f"/{command.name}{' ' if command.arguments else ''}", command.summary, len(text))
            for command in COMMANDS
            if command.name.startswith(match.group(1).lower())
            and not missing(command, is_online=is_online, is_admin=is_admin)
        ]
    kind = completes(text)
    argument = match.group(2)
    # A file's name may hold spaces; whatever else is completed is one word.
    typed = argument if kind in ("exports", "imports", "images") else re.split(r"\s", argument)[-1]
    return [(word, meaning, len(typed)) for word, meaning in words(kind, typed) if word.startswith(typed)]


def help_text(*, is_online: bool, is_admin: bool, columns: int = 80) -> str:
    """The table for a person, at most so wide; what is not available now is marked."""
    rows = []
    for command in COMMANDS:
        lack = missing(command, is_online=is_online, is_admin=is_admin)
        rows.append((f"/{command.name} {command.arguments}".rstrip(), command.summary + (f" ({lack})" if lack else "")))
    rows += [("", ""), *KEYS]
    width = max(len(left) for left, _ in rows) + 2
    return "\n".join(
        textwrap.fill(right, columns, initial_indent=f"{left:<{width}}", subsequent_indent=" " * width)
        for left, right in rows
    )
