"""A disk that keeps apart what the kernel holds and what is on the medium, and that fails in every way it can."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from llmws.store.log import SYNC_FAILED_NAME

FAULTS = (errno.EIO, errno.ENOSPC)


class CrashError(BaseException):
    """The machine stopped. No `except` for errors may catch it."""


class SimulatedFile:
    """Bytes as the kernel shows them, and as they are on the medium.

    `is_broken`: an fdatasync failed. The kernel took the pages for clean, so no later one writes them, whoever calls.
    `is_forgotten`: and no word of that could be left on the disk.
    """

    def __init__(self) -> None:
        self.data = b""
        self.synced = b""
        self.is_broken = self.is_forgotten = False
        self.salt = b""


class SimulatedDisk:
    """A disk that dies at the `fuse`-th change, with that change not done, done or, of a write, half done.

    Before that, each call fails with the chance `fault_rate`, having done nothing, a part or everything, and the
    `sync_fuse`-th fdatasync for certain.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.fuse = self.sync_fuse = 10**9
        self.fault_rate = 0.0
        self.faults = 0
        self.nonces_reused = 0
        self.names_now: dict[str, SimulatedFile | None] = {"/state": None}
        self.names_synced = dict(self.names_now)
        self._handles: dict[int, SimulatedFile] = {}
        self._last_handle = 0
        self._sealed: dict[tuple[bytes, bytes], bytes] = {}

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def kill(self) -> bool:
        """The process dies; what it wrote stays to be seen, also what the medium had refused.

        Returns:
            Whether bytes were lost: those that were refused, where the disk took no word of that either.
        """
        self._handles.clear()
        self.faults += 1
        forgotten = [file for file in self.names_now.values() if file and file.is_broken and file.is_forgotten]
        for file in forgotten:
            file.data, file.is_broken = file.synced, False
        return bool(forgotten)

    def lose_power(self) -> None:
        """Of each folder's changes and each file's bytes that were not synced, none, some or all are on the medium."""
        self._handles.clear()
        self.faults += 1
        for folder in sorted({str(Path(name).parent) for name in {*self.names_now, *self.names_synced}}):
            kept = self.names_now if self.rng.random() < 0.5 else self.names_synced
            for names in (self.names_now, self.names_synced):
                for name in [name for name in names if str(Path(name).parent) == folder]:
                    if names is not kept:
                        del names[name]
            for name in [name for name in kept if str(Path(name).parent) == folder]:
                self.names_now[name] = self.names_synced[name] = kept[name]
        for names in (self.names_now, self.names_synced):
            for name in [name for name in names if name != "/state" and str(Path(name).parent) not in names]:
                del names[name]  # its folder is gone
        for file in filter(None, self.names_now.values()):
            if file.is_broken:
                file.data = file.synced
            elif file.data.startswith(file.synced):
                more = file.data[len(file.synced) :]
                more = more[: self.rng.randint(0, len(more))]
                if self.rng.random() < 0.3:
                    more = more[: len(more) // 2] + bytes(len(more) - len(more) // 2)
                file.data = file.synced + more
            elif self.rng.random() < 0.5:
                file.data = file.synced
            file.synced, file.is_broken = file.data, False

    def _change(self, do: Callable[[], None], on_fault: Callable[[], None] | None = None) -> None:
        self.fuse -= 1
        if self.fuse == 0:
            if self.rng.random() < 0.5:
                do()
            raise CrashError
        if self._fails():
            if on_fault is not None:
                on_fault()
            elif self.rng.random() < 0.5:
                do()
            self._raise()
        do()

    def _forget_failures(self, folder: Path) -> None:
        for name, file in self.names_now.items():
            if file and file.is_broken and Path(name).parent == folder:
                file.is_forgotten = True

    def _fails(self) -> bool:
        failing = self.rng.random() < self.fault_rate
        self.faults += failing
        return failing

    def _raise(self) -> None:
        code = self.rng.choice(FAULTS)
        raise OSError(code, os.strerror(code))

    # --- Disk --------------------------------------------------------------------------------------------------------

    def open(self, path: Path, *, create: bool) -> int:
        name = str(path)
        if name not in self.names_now:
            if not create:
                raise FileNotFoundError(name)
            made = SimulatedFile()
            try:
                self._change(lambda: self.names_now.update({name: made}))
            except (OSError, CrashError):
                if path.name == SYNC_FAILED_NAME and name not in self.names_now:
                    self._forget_failures(path.parent)
                raise
        file = self.names_now[name]
        assert file is not None
        self._last_handle += 1
        self._handles[self._last_handle] = file
        return self._last_handle

    def size_bytes(self, handle: int) -> int:
        return len(self._handles[handle].data)

    def read(self, handle: int, offset: int, count: int) -> bytes:
        if self._fails():
            self._raise()
        return self._handles[handle].data[offset : offset + count]

    def write(self, handle: int, data: bytes) -> int:
        file = self._handles[handle]
        self._note_nonces(file, data)
        self.fuse -= 1
        if self.fuse == 0:
            file.data += data[: self.rng.randint(0, len(data))]
            raise CrashError
        if self._fails():
            taken = self.rng.randint(0, max(len(data) - 1, 0))
            file.data += data[:taken]
            if not data or self.rng.random() < 0.5:
                self._raise()
            return taken
        file.data += data
        return len(data)

    def truncate(self, handle: int, size_bytes: int) -> None:
        file = self._handles[handle]

        def cut() -> None:
            file.data = file.data[:size_bytes]
            file.is_broken = file.is_broken and size_bytes > 0

        self._change(cut)

    def sync(self, handle: int) -> None:
        file = self._handles[handle]

        def sync() -> None:
            if not file.is_broken:
                file.synced = file.data

        self.sync_fuse -= 1
        if self.sync_fuse == 0:
            file.is_broken = True
            self._raise()
        self._change(sync, on_fault=lambda: setattr(file, "is_broken", True))

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def exists(self, path: Path) -> bool:
        return str(path) in self.names_now

    def replace(self, source: Path, target: Path) -> None:
        self._change(lambda: self.names_now.update({str(target): self.names_now.pop(str(source))}))

    def unlink(self, path: Path) -> None:
        self._change(lambda: self.names_now.pop(str(path), None))

    def make_folder(self, path: Path) -> None:
        self._change(lambda: self.names_now.setdefault(str(path), None))

    def remove_folder(self, path: Path) -> None:
        self._change(lambda: self.names_now.pop(str(path), None))

    def names(self, folder: Path) -> list[str]:
        prefix = f"{folder}/"
        return [
            name[len(prefix) :] for name in self.names_now if name.startswith(prefix) and "/" not in name[len(prefix) :]
        ]

    def sync_folder(self, path: Path) -> None:
        def sync() -> None:
            names = dict.fromkeys([*self.names_now, *self.names_synced])  # in one order in every process
            inside = [name for name in names if str(Path(name).parent) == str(path)]
            for name in inside:
                if name in self.names_now:
                    self.names_synced[name] = self.names_now[name]
                else:
                    del self.names_synced[name]

        self._change(sync)

    # --- what must never be ------------------------------------------------------------------------------------------

    def _note_nonces(self, file: SimulatedFile, data: bytes) -> None:
        """Counts the ciphertexts that differ under one salt and number, whether they arrive or not."""
        for line in data.splitlines():
            if line.startswith(b'{"h":'):
                file.salt = line.partition(b'"salt":"')[2][:44]
            elif line.startswith(b'{"n":') and line.endswith(b'"}'):  # a copy may hold torn ones
                number, _, text = line.partition(b',"data":')
                self.nonces_reused += self._sealed.setdefault((file.salt, number), text) != text
