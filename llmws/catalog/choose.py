"""Which model to serve: pure choices over the list that a scan gave. Knows no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from llmws.engine_api import ModelRef
from llmws.errors import ModelNotFoundError, printable

GUIDE: Final = "llmws-guide"
"""The small model that comes with llmws."""


def find(models: Iterable[ModelRef], name_or_path: str) -> ModelRef | None:
    """The model that is listed under exactly this name or path; a client's text is only ever compared."""
    return next((model for model in models if name_or_path in (model.name, model.path)), None)


def candidates(models: Sequence[ModelRef], *, preferred: str | None, last: str | None) -> tuple[ModelRef, ...]:
    """The models to begin with, in the order in which to try them.

    Args:
        models: as `Catalog.scan` returns them: `models/` first, then by name.
        preferred: name or path from the configuration.
        last: name or path of the model that somebody last switched to. One that was merely selected by this function
            does not count: otherwise the guide of the first day would win over the model added on the second.

    Returns:
        The preferred model alone; else all, the last one first if it is still there, and the guide after all others.

    Raises:
        ModelNotFoundError: the preferred model is not there; a wish is not silently replaced.
    """
    if preferred is not None:
        wanted = find(models, preferred)
        if wanted is None:
            names = ", ".join(model.name for model in models) or "none"
            raise ModelNotFoundError(f"there is no model '{printable(preferred)}'; found: {names}")
        return (wanted,)
    previous = find(models, last) if last is not None else None
    return tuple(sorted(models, key=lambda model: (model != previous, model.name == GUIDE)))
