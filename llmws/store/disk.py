"""The few file operations that the store needs, as one object, so that a test can put a failing disk in its place.

Knows neither records nor sessions. Invariant: whatever is made here is readable by its owner only.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final, Protocol

DRAFT_SUFFIX: Final = ".new"

# macOS has no fdatasync.
_sync_data = getattr(os, "fdatasync", os.fsync)


class Disk(Protocol):
    """File operations; a handle is a number. Every method raises OSError."""

    def open(self, path: Path, *, create: bool) -> int:
        """Opens a file for reading anywhere and writing at its end. Without `create` it must exist."""

    def size_bytes(self, handle: int) -> int:
        """The file's size."""

    def read(self, handle: int, offset: int, count: int) -> bytes:
        """Up to `count` bytes at `offset`; fewer at the end."""

    def write(self, handle: int, data: bytes) -> int:
        """Appends and returns how many bytes were taken, which may be fewer than given."""

    def truncate(self, handle: int, size_bytes: int) -> None:
        """Cuts the file."""

    def sync(self, handle: int) -> None:
        """Returns when the file's bytes survive a power loss."""

    def close(self, handle: int) -> None:
        """Closes the handle."""

    def exists(self, path: Path) -> bool:
        """Whether there is a file or folder of that name."""

    def replace(self, source: Path, target: Path) -> None:
        """Renames a file over another, all or nothing."""

    def unlink(self, path: Path) -> None:
        """Removes a file; it may be missing."""

    def make_folder(self, path: Path) -> None:
        """Makes a folder (its parent exists); it may exist."""

    def remove_folder(self, path: Path) -> None:
        """Removes an empty folder; it may be missing."""

    def names(self, folder: Path) -> list[str]:
        """Names in a folder, none if it is missing."""

    def sync_folder(self, path: Path) -> None:
        """Returns when the names made and removed in the folder survive a power loss."""


class OsDisk:
    """The operating system's files."""

    def open(self, path: Path, *, create: bool) -> int:
        """See `Disk`."""
        return os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o600)

    def size_bytes(self, handle: int) -> int:
        """See `Disk`."""
        return os.fstat(handle).st_size

    def read(self, handle: int, offset: int, count: int) -> bytes:
        """See `Disk`."""
        return os.pread(handle, count, offset)

    def write(self, handle: int, data: bytes) -> int:
        """See `Disk`."""
        return os.write(handle, data)

    def truncate(self, handle: int, size_bytes: int) -> None:
        """See `Disk`."""
        os.ftruncate(handle, size_bytes)

    def sync(self, handle: int) -> None:
        """See `Disk`."""
        _sync_data(handle)

    def close(self, handle: int) -> None:
        """See `Disk`."""
        os.close(handle)

    def exists(self, path: Path) -> bool:
        """See `Disk`."""
        return path.exists()

    def replace(self, source: Path, target: Path) -> None:
        """See `Disk`."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """See `Disk`."""
        path.unlink(missing_ok=True)

    def make_folder(self, path: Path) -> None:
        """See `Disk`."""
        path.mkdir(mode=0o700, exist_ok=True)

    def remove_folder(self, path: Path) -> None:
        """See `Disk`."""
        if path.exists():
            path.rmdir()

    def names(self, folder: Path) -> list[str]:
        """See `Disk`."""
        try:
            return [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            return []

    def sync_folder(self, path: Path) -> None:
        """See `Disk`."""
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_whole(disk: Disk, path: Path) -> bytes | None:
    """The file's bytes, None if it is missing."""
    try:
        handle = disk.open(path, create=False)
    except FileNotFoundError:
        return None
    try:
        parts, offset = [], 0
        while part := disk.read(handle, offset, 2**20):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)
    finally:
        disk.close(handle)


def write_atomically(disk: Disk, path: Path, data: bytes) -> None:
    """Makes the file hold exactly `data`: after a crash at any point it is the old file or the new one, whole.

    Returns when it survives a power loss.
    """
    write_draft(disk, path, data)
    adopt_draft(disk, path)


def write_draft(disk: Disk, path: Path, data: bytes) -> None:
    """Writes what the file shall hold beside it, durably. The file itself stays as it is."""
    handle = disk.open(draft_of(path), create=True)
    try:
        disk.truncate(handle, 0)
        if disk.write(handle, data) != len(data):
            raise OSError(errno.ENOSPC, "the disk is full")
        disk.sync(handle)
    finally:
        disk.close(handle)


def adopt_draft(disk: Disk, path: Path) -> None:
    """Puts the draft in the file's place. Returns when that survives a power loss."""
    disk.replace(draft_of(path), path)
    disk.sync_folder(path.parent)


def draft_of(path: Path) -> Path:
    """Where the draft of a file lies; a crash may leave one behind, which means nothing."""
    return path.with_name(path.name + DRAFT_SUFFIX)
