"""The models folders: listing what can be served, deleting what is no longer wanted.

Three folders: `models/` (downloaded), `var/models/` (the user's own) and the one that comes inside the package, which
is only read. A name that lies in several is offered once, from the first of them, and the others are reported: clients
name models by name, and two that answer to one name would be a trap. Knows nothing of engines. Invariant: nothing
outside the first two folders is ever changed, whatever the names and the links inside them.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from llmws.catalog.inspection import GGUF, GGUF_REASON, examine
from llmws.catalog.names import ModelName
from llmws.engine_api import ModelRef
from llmws.errors import BadRequestError, ModelInvalidError, ModelNotFoundError, StorageError, printable

_STAGING: Final = ".deleting-"
_log = logging.getLogger(__name__)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is not offered as a model, and why. Both texts are free of control characters."""

    path: str
    reason: str


class _Root(NamedTuple):
    folder: Path
    label: str
    source: str


class Catalog:
    """The models on this machine. Implements `llmws.engine_api.ModelSource`; safe to use from several threads."""

    def __init__(self, models_dir: Path, var_models_dir: Path, bundled_dir: Path | None = None) -> None:
        """Takes the folders that hold model folders; none of them needs to exist.

        Args:
            models_dir: listed as `models/<name>`.
            var_models_dir: listed as `var/models/<name>`.
            bundled_dir: listed as `models/<name>` too; its models cannot be deleted.
        """
        self._roots = [
            _Root(models_dir.resolve(), "models", "models"),
            _Root(var_models_dir.resolve(), "var/models", "var"),
        ]
        self._bundled = [] if bundled_dir is None else [_Root(bundled_dir.resolve(), "models", "models")]
        self._lock = threading.Lock()
        self._reported: frozenset[Problem] = frozenset()

    def scan(self) -> list[ModelRef]:
        """All models that can be served, `models/` first, then by name. Logs, once, why others are not offered.

        Also finishes deletions that a kill interrupted.
        """
        with self._lock:
            for root in self._roots:
                _sweep(root.folder)
            models, problems = self._survey()
            for problem in sorted(problems - self._reported, key=lambda p: p.path):
                _log.warning("%s is not offered: %s", problem.path, problem.reason)
            self._reported = problems
        return models

    def problems(self) -> list[Problem]:
        """The folders that are not offered, for people, by path."""
        return sorted(self._survey()[1], key=lambda problem: problem.path)

    def delete(self, name: str) -> None:
        """Deletes the model that `scan` offers under the name, or else the broken folder of that name.

        The folder leaves the list at once, by a rename, and its files after that. Links are removed, not followed.

        Raises:
            BadRequestError: the name is not a plain model name, or the model comes with llmws.
            ModelNotFoundError: there is no such model.
            StorageError: the folder cannot be moved away.
        """
        checked = ModelName(name)
        with self._lock:
            folder = self._folder_of(checked)
            if folder.parent not in [root.folder for root in self._roots]:
                raise BadRequestError(f"{checked} comes with llmws and cannot be deleted")
            try:
                staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder.parent))
                folder.rename(staging / checked.text)
            except OSError as error:
                raise StorageError(f"{checked} cannot be deleted ({error.strerror})") from None
            finally:
                _sweep(folder.parent)

    def _folder_of(self, name: ModelName) -> Path:
        models, _ = self._survey()
        for model in models:
            if model.name == name.text:
                return Path(model.location)
        for root in self._roots:
            folder = root.folder / name.text
            if folder.is_dir() and folder.resolve() == folder:
                return folder
        raise ModelNotFoundError(f"there is no model {name}")

    def _survey(self) -> tuple[list[ModelRef], frozenset[Problem]]:
        models: dict[str, ModelRef] = {}
        problems: list[Problem] = []
        for root in (*self._roots, *self._bundled):
            for folder in _candidates(root.folder):
                path = printable(f"{root.label}/{folder.name}")
                try:
                    model = _examined(folder, path, root.source)
                except (ModelInvalidError, BadRequestError) as error:
                    problems.append(Problem(path=path, reason=str(error)))
                except OSError as error:
                    problems.append(Problem(path=path, reason=f"it cannot be read ({error.strerror})"))
                else:
                    taken = models.setdefault(model.name, model)
                    if taken is not model and root not in self._bundled:
                        problems.append(Problem(path=path, reason=f"{taken.path} has the same name"))
        ordered = sorted(models.values(), key=lambda model: (model.source != "models", model.name))
        return ordered, frozenset(problems)


def refusal(folder: Path) -> str | None:
    """Why a folder would not be offered as a model; None if it would."""
    try:
        _examined(folder, path="", source="")
    except (ModelInvalidError, BadRequestError) as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


def _candidates(root: Path) -> Iterator[Path]:
    """What could be a model, or was meant to be: folders, links and GGUF files, by name. Hidden ones are nobody's."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in sorted(root.iterdir()):
            if not entry.name.startswith(".") and (
                entry.is_symlink() or entry.is_dir() or entry.suffix.lower() == GGUF
            ):
                yield entry


def _examined(folder: Path, path: str, source: str) -> ModelRef:
    if folder.suffix.lower() == GGUF and not folder.is_dir():
        raise ModelInvalidError(GGUF_REASON)
    name = ModelName(folder.name)
    if folder.is_symlink():
        raise ModelInvalidError("it is a link; put the folder itself there")
    return ModelRef(name=name.text, path=path, location=str(folder), size_bytes=examine(folder), source=source)


def _sweep(root: Path) -> None:
    """Removes what was moved away. What resists stays hidden, and is tried again by the next scan."""
    for leftover in root.glob(f"{_STAGING}*"):
        if leftover.is_symlink():
            continue  # somebody else's: what is moved away goes into folders
        shutil.rmtree(leftover, ignore_errors=True)
        if leftover.exists():
            _log.warning("%s cannot be removed", printable(str(leftover)))
