"""The line of waiting sessions: who came before whom, and for which model.

Knows neither sessions nor requests but by name. Invariant: a session is in the line at most once, and keeps its place
until it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator


class Line:
    """One order of arrival over all models, and the head of each model's part of it at hand."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, str | None]] = {}
        self._parts: dict[str | None, dict[str, None]] = {}
        self._arrivals = 0

    def __iter__(self) -> Iterator[str]:
        """All sessions, in the order they came."""
        return iter(self._places)

    def join(self, session_id: str, model: str | None) -> None:
        """Goes to the end of the line, unless it is in it.

        Args:
            session_id: who.
            model: as its next request names it, None where it names none.
        """
        if session_id not in self._places:
            self._arrivals += 1
            self._places[session_id] = self._arrivals, model
            self._parts.setdefault(model, {})[session_id] = None

    def leave(self, session_id: str) -> None:
        """Is not in the line any more."""
        if (place := self._places.pop(session_id, None)) is not None:
            _, model = place
            part = self._parts[model]
            del part[session_id]
            if not part:
                del self._parts[model]

    def heads(self) -> list[str]:
        """The first of each model, in the order they came."""
        return sorted((next(iter(part)) for part in self._parts.values()), key=self._places.__getitem__)
