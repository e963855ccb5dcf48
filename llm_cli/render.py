"""From the text of an answer to what a terminal may be given.

Model output is hostile text: control characters never pass. Markdown is styled and never rewritten: every character of
the answer is printed once, as it comes, with at most colour around it, so what was printed can be counted in characters
of the answer, and what is copied from the terminal is the answer.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from typing import Final, Protocol

_RESET: Final = "\x1b[0m"
_HEADING: Final = "\x1b[1;36m"
_CODE: Final = "\x1b[33m"
_FENCE: Final = "\x1b[2m"
_BOLD: Final = "\x1b[1m"
_QUOTE: Final = "\x1b[3m"
_PLAIN: Final = ""

_FORBIDDEN: Final = dict.fromkeys(
    [
        *(code for code in range(0x20) if chr(code) not in "\n\t"),
        *range(0x7F, 0xA0),
        # Source: CVE-2021-42574, for how marks of the direction of writing make a terminal show another text.
        0x061C,
        *range(0x200E, 0x2010),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        # Separators of lines that are no newline, and what is not seen at all but copied along.
        *range(0x2028, 0x202A),
        0x200B,
        *range(0xE0000, 0xE0080),
    ]
)


def clean(text: str) -> str:
    """The text without control characters other than newline and tab, direction marks and what cannot be seen."""
    return text.translate(_FORBIDDEN)


def clean_line(text: str) -> str:
    """`clean`, as one line: for names and messages."""
    return " ".join(clean(text).split())


def wants_colour(environ: Mapping[str, str] = os.environ, *, fd: int = 1) -> bool:
    """Whether standard output is a terminal that may be given colour. Source: https://no-color.org."""
    return os.isatty(fd) and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def for_output(state: str = "") -> Renderer:
    """The renderer that suits standard output, going on in the given state."""
    return Markdown(state) if wants_colour() else Plain()


def wrap(text: str, columns: int) -> str:
    """The text in lines of at most so many columns, where its words allow."""
    return "\n".join(
        textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")
    )


def dim(text: str) -> str:
    """A line that is not part of an answer, told apart from it where there is colour."""
    return f"\x1b[2m{text}{_RESET}" if wants_colour() else text


class Renderer(Protocol):
    """Turns clean text into output, piece by piece; another one goes on from its `state`."""

    @property
    def state(self) -> str:
        """The open code fence."""

    def restart(self) -> None:
        """Another answer begins."""

    def feed(self, text: str) -> str:
        """The output for the next piece of text; ends in the terminal's default style."""


class Plain:
    """Text as it is."""

    @property
    def state(self) -> str:
        """None is kept."""
        return ""

    def restart(self) -> None:
        """Nothing to forget."""

    def feed(self, text: str) -> str:
        """The text."""
        return text


class Markdown:
    """Colours headings, quotes, code and bold text, a character at a time and without looking ahead.

    Args:
        state: `state` of an earlier one: the code fence that is open, or nothing.
    """

    def __init__(self, state: str = "") -> None:
        self.restart()
        self._fence = state if state in ("```", "~~~") else ""

    @property
    def state(self) -> str:
        """The open code fence."""
        return self._fence

    def restart(self) -> None:
        """Forgets what is open."""
        self._fence = self._line = ""
        self._is_code = self._is_bold = False

    def feed(self, text: str) -> str:
        """The text with colour around what is marked up."""
        out: list[str] = []
        style = _PLAIN
        for char in text:
            wanted = self._next(char)
            if wanted != style and not char.isspace():
                out += [_RESET if style else "", wanted]
                style = wanted
            elif char == "\n" and style:
                out.append(_RESET)
                style = _PLAIN
            out.append(char)
        if style:
            out.append(_RESET)
        return "".join(out)

    def _next(self, char: str) -> str:
        """Takes one character; the style to print it in."""
        if char == "\n":
            self._end_line()
            return _PLAIN
        self._line += char
        start = self._line.lstrip()
        if self._fence:
            return _FENCE if start and self._fence.startswith(start[:3]) else _CODE
        if start[:3] in ("```", "~~~"):
            return _FENCE
        if start in ("`", "``", "~", "~~"):
            self._is_code = start == "`"
            return _FENCE
        if start[:1] == "#" and start.lstrip("#")[:1] in ("", " "):
            return _HEADING
        if start[:1] == ">":
            return _QUOTE
        if char == "`":
            self._is_code = not self._is_code
            return _CODE
        if self._is_code:
            return _CODE
        if self._line[-2:] == "**":
            closes = self._is_bold
            self._is_bold = not closes and self._line[-3:-2].strip("([{\"'_-") in ("", " ", "\t")
            return _BOLD if closes or self._is_bold else _PLAIN
        return _BOLD if self._is_bold else _PLAIN

    def _end_line(self) -> None:
        start = self._line.strip()
        if self._fence:
            if start.startswith(self._fence) and not start.strip(self._fence[0]):
                self._fence = ""
        elif start[:3] in ("```", "~~~"):
            self._fence = start[:3]
        self._line = ""
        self._is_code = self._is_bold = False
