"""The keeper's report in a folder that the user's code can write, fill and wreck as well.

Everything goes through one descriptor of the folder, opened before any user code ran, and no
existing entry is ever opened for reading or writing: no symbolic link, FIFO or swapped folder can
lead the keeper elsewhere or make it wait.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

PURGE_LIMIT = 20_000
"""Most entries removed at once: the folder is a tmpfs of some 256 inodes where the broker is root,
but may be a common folder full of the user's files where it is not."""

NAME_BYTES = 8
"""Random bytes in a passing file name, against a name that the user's code made first."""


class StatusFile:
    """Writes ``status.json`` atomically; a failed write is owed and made up for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = Path(path).name
        self._folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._owed: bytes | None = None

    def close(self) -> None:
        """Let go of the folder, in a forked child."""
        os.close(self._folder)

    def write(self, content: dict[str, Any]) -> bool:
        """Replace the file; whether that worked. If not, `settle` tries again."""
        self._owed = json.dumps(content).encode("ascii")
        return self.settle()

    def settle(self) -> bool:
        """Write what an earlier attempt could not; whether nothing is owed now."""
        if self._owed is None:
            return True
        if not self._try_write(self._owed):
            self._make_room()
            if not self._try_write(self._owed):
                return False
        self._owed = None
        return True

    def _try_write(self, data: bytes) -> bool:
        passing = f".status-{os.urandom(NAME_BYTES).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(passing, flags, 0o600, dir_fd=self._folder)
        except OSError:
            return False
        try:
            with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)) as file:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, "short write")
            os.rename(passing, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            # Nothing to tell: the caller learns that the write is owed.
            with contextlib.suppress(OSError):
                os.unlink(passing, dir_fd=self._folder)
            return False
        return True

    def _make_room(self) -> None:
        # The folder is for sockets and the report; anything else in it is in the way.
        with contextlib.suppress(OSError):
            os.fchmod(self._folder, 0o700)
        purge(self._folder, keep=self._keep)

    def _keep(self, name: str, mode: int) -> bool:
        return stat.S_ISSOCK(mode) or (name == self._name and stat.S_ISREG(mode))

    def clear(self) -> None:
        """Remove everything but the report: stale sockets, and what the user's code has left."""
        with contextlib.suppress(OSError):
            os.fchmod(self._folder, 0o700)
        purge(self._folder, keep=lambda name, mode: name == self._name and stat.S_ISREG(mode))


def purge(folder: int, keep: Any, limit: int = PURGE_LIMIT) -> int:
    """Remove the entries of an open folder, and what is below, without following links.

    Folders are emptied by moving their subfolders up, so that no depth is too deep.

    Args:
        folder: Descriptor of the folder.
        keep: Tells by name and ``st_mode`` which entries stay.
        limit: Most entries looked at.

    Returns:
        How many entries were removed. What cannot be removed stays: the caller's next write shows
        whether there is room now.
    """
    removed = 0
    queue = _entries(folder, limit)
    budget = limit
    while queue and budget > 0:
        budget -= 1
        name = queue.pop()
        try:
            mode = os.lstat(name, dir_fd=folder).st_mode
            if keep(name, mode):
                continue
            if stat.S_ISDIR(mode):
                moved, emptied = _empty(folder, name, budget)
                queue += moved
                budget -= emptied
                removed += emptied
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
            removed += 1
        except OSError:
            continue
    return removed


def _entries(folder: int, limit: int) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, max(0, limit))]
    except OSError:
        return []


def _empty(folder: int, name: str, limit: int) -> tuple[list[str], int]:
    """Unlink the files of a subfolder and move its subfolders up; their new names, and the count."""
    os.chmod(name, 0o700, dir_fd=folder)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    moved: list[str] = []
    count = 0
    try:
        for entry in _entries(inner, limit):
            if stat.S_ISDIR(os.lstat(entry, dir_fd=inner).st_mode):
                os.chmod(entry, 0o700, dir_fd=inner)
                up = f".purge-{os.urandom(NAME_BYTES).hex()}"
                os.rename(entry, up, src_dir_fd=inner, dst_dir_fd=folder)
                moved.append(up)
            else:
                os.unlink(entry, dir_fd=inner)
                count += 1
    finally:
        os.close(inner)
    return moved, count
