"""Question patterns: parsing, random expansion, and matching.

A pattern is a line such as `{start|run} {the|a} server`: braces choose one of the alternatives, an empty one makes
the part optional, and `<name>` draws from a named list. Alternatives may hold list names, but no braces.

Invariant: `Pattern.sample` yields only strings which `Pattern.regex` matches in full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

_PART = re.compile(r"\{([^{}]*)\}|<([a-z_]+)>")

Lists = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Pattern:
    """One pattern line, not yet expanded."""

    text: str

    def sample(self, rng: Random, lists: Lists) -> str:
        """Return one random expansion, with single spaces."""
        out = self.text
        while True:
            match = _PART.search(out)
            if match is None:
                return " ".join(out.split())
            options = match.group(1).split("|") if match.group(1) is not None else lists[match.group(2)]
            out = out[: match.start()] + rng.choice(options) + out[match.end() :]

    def count(self, lists: Lists) -> int:
        """Return the number of expansions, counting equal strings twice."""
        total = 1
        for match in _PART.finditer(self.text):
            if match.group(1) is None:
                total *= len(lists[match.group(2)])
            else:
                total *= sum(Pattern(option).count(lists) for option in match.group(1).split("|"))
        return total

    def regex(self, lists: Lists) -> str:
        """Return a regular expression for the expansions, in which one or more spaces separate words."""
        out, end = [], 0
        for match in _PART.finditer(self.text):
            out.append(_literal(self.text[end : match.start()]))
            if match.group(1) is None:
                options = [_literal(option) for option in lists[match.group(2)]]
            else:
                options = [Pattern(option).regex(lists) for option in match.group(1).split("|")]
            out.append("(?:" + "|".join(options) + ")")
            end = match.end()
        out.append(_literal(self.text[end:]))
        return "".join(out)


def parse(block: str) -> list[Pattern]:
    """Return the patterns of a text block, one a line; blank lines are skipped."""
    return [Pattern(line.strip()) for line in block.splitlines() if line.strip()]


def words(block: str) -> list[str]:
    """Return the comma-separated entries of a text block."""
    return [entry.strip() for entry in block.replace("\n", " ").split(",") if entry.strip()]


def _literal(text: str) -> str:
    return re.escape(text).replace(r"\ ", " *").replace(r"\.", r"\.?")
