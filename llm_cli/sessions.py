"""A person's sessions: as a list, and chosen from it.

Pure. Invariant: what `pick` gives is the id of a listed session.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llm_cli.render import clean_line
from llmws.protocol.messages import SessionEntry

MOST_LISTED: Final = 1000
"""A server lists no more sessions than this; older ones can only be named by their whole id."""
_ID_CHARS: Final = 8
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def pick(argument: str, entries: Sequence[SessionEntry], *, shown: Sequence[SessionEntry]) -> str:
    """The id of the session with that number in the list that the person has seen, or whose id begins so.

    Args:
        argument: a number, counted from 1, or the beginning of an id.
        entries: the sessions that there are now.
        shown: the list that was shown last.

    Raises:
        ValueError: there is none, or more than one.
    """
    if argument.isdecimal() and len(argument) <= len(str(MOST_LISTED)):
        if 0 < int(argument) <= len(shown):
            return shown[int(argument) - 1].session_id
        raise ValueError(f"there is no session {argument}; /sessions lists them")
    found = [entry.session_id for entry in entries if entry.session_id.startswith(argument.lower())]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{len(found)} sessions begin with {argument}; give more of the id")
    raise ValueError(f"there is no session {clean_line(argument)} of yours on this server; /sessions lists them")


def listing(entries: Sequence[SessionEntry], *, present: str | None, now_s: float, columns: int = 80) -> str:
    """The list, numbered from 1, at most so wide; the present session has a star.

    Args:
        entries: the most recently used first.
        present: id of the session that one is in.
        now_s: Unix time in seconds.
        columns: of the terminal.
    """
    rows = [
        (
            f"{number:>{len(str(len(entries)))}} {'*' if entry.session_id == present else ' '}",
            entry.session_id[:_ID_CHARS],
            age(now_s - entry.last_activity),
            f"{entry.messages} message{'' if entry.messages == 1 else 's'}",
        )
        for number, entry in enumerate(entries, 1)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, entry in zip(rows, entries, strict=True):
        head = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        title = ("archived: " if entry.state == "archived" else "") + (entry.title or "(nothing said yet)")
        lines.append(f"{head}  {shortened(title, columns - len(head) - 2)}")
    return "\n".join(lines)


def shortened(text: str, length: int) -> str:
    """The text as one line of at most so many characters."""
    line = clean_line(text)
    return line if len(line) <= length else line[: max(0, length - 1)] + "…"


def age(seconds: float) -> str:
    """How long ago, in the largest unit that it fills."""
    for unit_s, name in _UNITS:
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)} {name} ago"
    return "now"
