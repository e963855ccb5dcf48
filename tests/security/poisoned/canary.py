"""What must not happen: a file appears, a secret is read or said, somebody is called."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

SECRET = "canary-7d1f9c"
"""Stands in a file beside the models, and in the environment of the process that serves them."""

ENVIRONMENT = "LLMWS_TEST_CANARY"


class Canary:
    """A place beside the models where whatever a repository does would be seen."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.secret = folder / "secret.safetensors"
        self.secret.write_text(SECRET)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"

    def mark(self, name: str) -> Path:
        """The file that the payload of one repository would leave."""
        return self.marks / name

    def code(self, name: str) -> str:
        """Python that leaves the mark."""
        return f"open({str(self.mark(name))!r}, 'w').close()"

    def pickled(self, name: str) -> bytes:
        """A pickle that leaves the mark when it is read."""
        return pickle.dumps(_Touch(self.mark(name)))

    def was_called(self) -> bool:
        """Whether anybody has called, since this was last asked."""
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._listener.close()


class _Touch:
    """Pickled, a call of `Path.touch`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)
