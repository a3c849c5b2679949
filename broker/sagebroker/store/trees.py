"""Folders that a session wrote into: removed and opened up without following any of its links.

A session may take rights from its own folders, nest them deeper than a path can be long, and put
links in their places while somebody walks through them. So everything here goes from folder to
folder by file descriptors. Every function blocks; callers run them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class _Level:
    """A folder on the way down."""

    identity: tuple[int, int]
    """Device and inode."""
    folders: list[str]
    """Names of the folders in it that are still there."""


def remove_tree(path: Path, *, limit_s: float | None = None) -> None:
    """Remove a folder with everything in it; harmless when it is gone.

    At most three descriptors are open however deep the tree is: the way back up is ``..``, checked
    against what was seen on the way down. Another process may remove the same tree at the same time.

    Args:
        path: The folder, not a link to it.
        limit_s: Seconds after which to stop halfway; none by default.

    Raises:
        OSError: It could not be removed; a `TimeoutError` when the time was up.
    """
    until = None if limit_s is None else time.monotonic() + limit_s
    try:
        top = _enter(str(path), None)
    except FileNotFoundError:
        return
    _empty(top, until)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def open_up(root: Path, folder: Path) -> None:
    """Give the owner of ``folder`` all rights on it; no link from ``root`` on down is followed.

    Raises:
        OSError: It is not ours, is gone or is no folder any more.
    """
    handle = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in folder.relative_to(root).parts:
            below = os.open(name, _LOOK, dir_fd=handle)
            os.close(handle)
            handle = below
        _give_rights(handle)
    finally:
        os.close(handle)


def _empty(top: int, until: float | None) -> None:
    """Remove everything in the folder ``top``, and close that descriptor."""
    here = top
    try:
        levels = [_remove_files(here, until)]
        while True:
            if levels[-1].folders:
                try:
                    below = _enter(levels[-1].folders[-1], here)
                except FileNotFoundError:
                    levels[-1].folders.pop()
                    continue
                os.close(here)
                here = below
                levels.append(_remove_files(here, until))
                continue
            levels.pop()
            if not levels:
                return
            above = os.open("..", _READ, dir_fd=here)
            os.close(here)
            here = above
            if _identity(here) != levels[-1].identity:
                raise OSError(errno.ESTALE, "a folder was moved while it was removed")
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(levels[-1].folders.pop(), dir_fd=here)
    finally:
        os.close(here)


def _enter(name: str, parent: int | None) -> int:
    """Open a folder for reading, taking the rights for it where they are missing."""
    handle = os.open(name, _LOOK, dir_fd=parent)
    try:
        with contextlib.suppress(PermissionError):
            # Not ours: then its own rights decide, in the next line.
            _give_rights(handle)
        return os.open(".", _READ, dir_fd=handle)
    finally:
        os.close(handle)


def _give_rights(handle: int) -> None:
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        # fchmod refuses a descriptor that was opened without rights; this way it is the same folder.
        Path(f"/proc/self/fd/{handle}").chmod(mode | stat.S_IRWXU)


def _remove_files(folder: int, until: float | None) -> _Level:
    """Remove what is no folder; the rest is named in the answer."""
    folders: list[str] = []
    with os.scandir(folder) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_folder in entries:
        if until is not None and time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if is_folder:
            folders.append(name)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
    return _Level(identity=_identity(folder), folders=folders)


def _identity(folder: int) -> tuple[int, int]:
    found = os.fstat(folder)
    return found.st_dev, found.st_ino
