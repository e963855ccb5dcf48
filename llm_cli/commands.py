"""The chat's commands: one table that drives help, completion, availability and dispatch.

Pure: knows what the commands are called and need, not what they do.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Sequence
from typing import Final, NamedTuple


class Command(NamedTuple):
    """A command.

    Attributes:
        name: without the slash.
        arguments: as help shows them.
        summary: one line.
        needs_server: whether it is available only while connected.
        completes: what its argument may be: `models`, `settings` or nothing.
    """

    name: str
    arguments: str
    summary: str
    needs_server: bool = True
    completes: str = ""


COMMANDS: Final = (
    Command("help", "", "list the commands", needs_server=False),
    Command("model", "[NAME]", "show or choose the model that answers me", completes="models", needs_server=False),
    Command("models", "", "list the models on the server"),
    Command("switch", "NAME", "load another model on the server, for everyone", completes="models"),
    Command("delete", "NAME", "delete a model's files from the server", completes="models"),
    Command("config", "[NAME=VALUE…]", "show or set this session's sampling defaults", completes="settings"),
    Command("system", "[TEXT]", "show or set the system message; /system - clears it", needs_server=False),
    Command("resources", "", "show the device, the memory and the load"),
    Command("status", "", "show the server's state in short"),
    Command("session", "", "show this session's id and how to come back to it", needs_server=False),
    Command("new", "", "start a new session", needs_server=False),
    Command("history", "[N]", "show the newest N messages of this session (default 10)"),
    Command("cancel", "", "end this session's requests that still run or wait"),
    Command("quit", "", "leave; Ctrl-D does the same", needs_server=False),
)

_BY_NAME: Final = {command.name: command for command in COMMANDS}
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
    if name in _BY_NAME:
        return Call(_BY_NAME[name], (match.group(2) or "").strip())
    if not name:
        return "a command follows the slash; /help lists them"
    close = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
    meant = f"did you mean /{close[0]}?" if close else "/help lists the commands"
    escape = "; with a space in front the line is a prompt" if match.group(2) else ""
    return f"there is no /{name}; {meant}{escape}"


def is_available(command: Command, *, is_online: bool) -> bool:
    """Whether a command can be used now."""
    return is_online or not command.needs_server


def complete(text: str, *, is_online: bool, models: Sequence[str], settings: Sequence[str]) -> list[tuple[str, str]]:
    """What may stand at the end of `text`, as (word, explanation), given the text before the cursor."""
    match = _COMMAND_LINE.match(text)
    if match is None:
        return []
    if match.group(2) is None and not text.endswith((" ", "\t")):
        return [
            (f"/{command.name}", command.summary)
            for command in COMMANDS
            if command.name.startswith(match.group(1).lower()) and is_available(command, is_online=is_online)
        ]
    command = _BY_NAME.get(match.group(1).lower())
    if command is None:
        return []
    words = {"models": list(models), "settings": [f"{name}=" for name in settings]}.get(command.completes, [])
    last = "" if text[-1:].isspace() else text.rsplit(maxsplit=1)[-1]
    return [(word, "") for word in words if word.startswith(last)]


def help_text(*, is_online: bool, columns: int = 80) -> str:
    """The table for a person, at most so wide; what is not available now is marked."""
    rows = [
        (
            f"/{c.name} {c.arguments}".rstrip(),
            c.summary + ("" if is_available(c, is_online=is_online) else " (not connected)"),
        )
        for c in COMMANDS
    ] + [("", ""), *KEYS]
    width = max(len(left) for left, _ in rows) + 2
    return "\n".join(
        textwrap.fill(right, columns, initial_indent=f"{left:<{width}}", subsequent_indent=" " * width)
        for left, right in rows
    )
