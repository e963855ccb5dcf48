"""A real server process that is listened to from inside: every file that it touches outside of its own folders is told.

As a program: naming_server.py FOLDER. Its hub, catalog, prompts, store and doors are the real ones, its engine is
scripted. What is told goes to the file `touched` in the folder, a line each; the first one is told on purpose.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from llmws import app, config, places
from llmws.catalog.catalog import Catalog
from llmws.engine.scripted import ScriptedEngine, Step
from llmws.prompt.renderer import ProcessRenderer
from tests.support.paths import ROOT
from tests.support.scripted_server import StillProbe

EVENTS = ("open", "os.", "shutil.", "glob.", "tempfile.", "pathlib.")
OWN = ("models", "state", "xdg", "config.json", "touched")


class PathSpy:
    """Writes down each path that is neither the server's nor the interpreter's."""

    def __init__(self, folder: Path) -> None:
        own = [folder / name for name in OWN]
        self._allowed = [*map(str, own), sys.prefix, sys.base_prefix, str(ROOT), "/proc", "/sys", "/dev", "/etc"]
        # Not a Python file: writing to it is no event.
        self._told = os.open(folder / "touched", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not event.startswith(EVENTS):
            return
        for argument in arguments if event.startswith(("os.", "shutil.")) else arguments[:1]:
            if isinstance(argument, str | bytes | os.PathLike):
                with contextlib.suppress(ValueError):
                    self._look_at(event, os.path.abspath(os.fsdecode(argument)))  # noqa: PTH100 - links stay

    def _look_at(self, event: str, path: str) -> None:
        if not any(path == allowed or path.startswith(allowed + os.sep) for allowed in self._allowed):
            os.write(self._told, f"{event} {path!r}\n".encode("utf-8", "backslashreplace"))


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    folder = Path(sys.argv[1])
    settings = config.load(folder / "config.json")
    where = places.Places(folder / "state", folder / "models", folder / "state" / "models", None)
    parts = app.Parts(
        engine=ScriptedEngine(lambda request: [Step(((5, "x"),)), Step(finish="stop")]),
        probe=StillProbe(),
        prompts=ProcessRenderer(),
        models=Catalog(where.models_dir, where.own_models_dir, None),
    )
    spy = PathSpy(folder)
    with contextlib.suppress(OSError):
        sys.addaudithook(spy)
        (folder / "victim").open()
    app.serve(settings, where, ready_file=folder / "xdg" / "ready.json", parts=parts)


if __name__ == "__main__":
    main()
