"""A folder that a session writes into, used without ever leaving it.

Code in the session may put links, FIFOs and files without end anywhere in it, and exchange them while
somebody looks. So every path is walked name by name from the folder's descriptor, no link is
followed, and what was opened is looked at once more. A broker that is root takes the session's user
for that long: then the kernel of the machine, too, lets it do nothing that the session could not do
itself, and what it makes belongs to the session. Every function here blocks; callers run them in a
thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sagebroker.errors import FileRefusedError

DRAFT_PREFIX = ".sagebroker-"
"""Beginning of the name under which a file is written before it takes its place."""

MAX_DEPTH = 32
"""Levels of folders that are looked into for a list; deeper ones are listed, and can be asked for."""

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# No FIFO and no lease of the session's makes the broker wait.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands at a path, itself: no link was followed."""

    parts: tuple[str, ...]
    """The path's names, from the session's folder on."""
    kind: str
    """``file``, ``folder``, ``link``, ``FIFO``, ``socket``, ``device``."""
    bytes: int
    changed_at: float
    """Wall-clock seconds, as the session set them."""
    is_open: bool = True
    """False for a folder that was not looked into: too deep, or without the rights for it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of a file."""

    data: bytes
    size: int
    """Bytes of the whole file when it was read; it may grow or shrink."""


@contextlib.contextmanager
def entered(root: Path, uid: int) -> Iterator[int]:
    """A descriptor of the session's folder, and the rights of its user for as long as it is open.

    Args:
        root: The session's folder; what lies above it is the broker's own.
        uid: The session's user and group. Without effect where the broker is not root: there it is
            the broker's own.

    Raises:
        OSError: There is no such folder, or the rights could not be taken.
    """
    handle = os.open(root, _LIST)
    try:
        if os.geteuid() != 0:
            yield handle
            return
        if os.fstat(handle).st_uid != uid:
            # Its first container is yet to be launched, which would do this.
            os.fchown(handle, uid, uid)
        with _acting_as(uid):
            yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def folder_at(root: int, parts: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder below ``root``, good for names relative to it only.

    Args:
        root: See `entered`.
        parts: The names on the way.
        make: Make the folders that are missing.

    Raises:
        FileRefusedError: A link, or something that is no folder, is on the way.
        OSError: One is missing, or may not be entered.
    """
    handle = os.open(".", _WALK, dir_fd=root)
    try:
        for name in parts:
            below = _step(handle, name, make=make)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)


def look(folder: int, parts: tuple[str, ...]) -> Entry:
    """What stands in ``folder`` under the last of ``parts``. Raises `OSError` where nothing does."""
    found = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
    return Entry(
        parts=parts,
        kind=_KINDS.get(stat.S_IFMT(found.st_mode), "device"),
        bytes=found.st_size,
        changed_at=found.st_mtime,
    )


def read_piece(folder: int, name: str, offset: int, most: int) -> Piece:
    """Part of a regular file; reads no more than that of a file of any size.

    Args:
        folder: Descriptor of the folder that it is in.
        name: Its name there.
        offset: The first byte.
        most: Bytes at most.

    Raises:
        FileRefusedError: It is no regular file.
        OSError: It is not there, or may not be read.
    """
    # A look before: to open a FIFO would be noticed by who waits at its other end.
    _check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    handle = os.open(name, _READ, dir_fd=folder)
    try:
        _check_regular(os.fstat(handle).st_mode)
        data = bytearray()
        while len(data) < most and (more := os.pread(handle, most - len(data), offset + len(data))):
            data += more
        size = max(os.fstat(handle).st_size, offset + len(data) if data else 0)
        return Piece(data=bytes(data), size=size)
    finally:
        os.close(handle)


def size_of(folder: int, name: str) -> int | None:
    """Bytes of the regular file that would be replaced; None where nothing is in the way.

    Raises:
        FileRefusedError: Something else than a file stands there.
        OSError: It cannot be seen.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    _check_regular(found.st_mode)
    return found.st_size


def put_file(folder: int, name: str, data: bytes) -> None:
    """Write a file in one step: whoever reads has the old one or the new one, whole.

    A file that is replaced keeps its rights. Its other names, if it has hard links, keep the old
    content.

    Raises:
        OSError: The disk refuses; the old file is untouched.
    """
    mode = 0o600
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        mode |= stat.S_IMODE(found.st_mode) & 0o777
    draft = f"{DRAFT_PREFIX}{secrets.token_hex(8)}"
    handle = os.open(draft, _MAKE, 0o600, dir_fd=folder)
    try:
        try:
            written = 0
            while written < len(data):
                written += os.write(handle, data[written:])
            os.fchmod(handle, mode)
            os.fsync(handle)
        finally:
            os.close(handle)
        # If a link has taken the name's place meanwhile it is replaced, not followed.
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=folder)
        raise


def remove_one(folder: int, name: str) -> None:
    """Remove a folder that is empty, or anything else itself; a link's target stays.

    Raises:
        OSError: It is not there, is a folder with something in it, or may not be removed.
    """
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        os.rmdir(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def list_tree(root: int, top: tuple[str, ...], most: int) -> tuple[list[Entry], bool]:
    """What lies in a folder and below it, and whether there is more than ``most``.

    Level by level: what is nearest is there even where a sub-folder holds endless files.

    Args:
        root: See `entered`.
        top: The folder's path.
        most: Entries at most.

    Raises:
        FileRefusedError: A link, or something that is no folder, is at ``top`` or on the way.
        OSError: It is missing, or may not be read.
    """
    found, is_whole = _list_folder(root, top, most)
    pending = deque(found)
    found = []
    while pending:
        entry = pending.popleft()
        if entry.kind == "folder":
            below: list[Entry] | None = None
            room = most - len(found) - len(pending) - 1
            if len(entry.parts) - len(top) < MAX_DEPTH:
                # Gone, forbidden, or a link by now: it is not looked into, and the rest is listed.
                with contextlib.suppress(OSError, FileRefusedError):
                    below, all_there = _list_folder(root, entry.parts, room)
                    is_whole = is_whole and all_there
            if below is None:
                entry = replace(entry, is_open=False)
            pending.extend(below or ())
        found.append(entry)
    return found, not is_whole


def _list_folder(root: int, parts: tuple[str, ...], most: int) -> tuple[list[Entry], bool]:
    """The entries of one folder by name, and whether these are all."""
    entries: list[Entry] = []
    with folder_at(root, parts) as folder:
        handle = os.open(".", _LIST, dir_fd=folder)
        try:
            with os.scandir(handle) as names:
                for name in names:
                    if len(entries) >= most:
                        return _by_name(entries), False
                    with contextlib.suppress(FileNotFoundError):
                        entries.append(look(handle, (*parts, name.name)))
        finally:
            os.close(handle)
    return _by_name(entries), True


def _by_name(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.parts)


def _step(folder: int, name: str, *, make: bool) -> int:
    """A descriptor of the folder ``name`` in ``folder``."""
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=folder)
    try:
        return os.open(name, _WALK, dir_fd=folder)
    except NotADirectoryError:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "device")
        if kind == "link":
            raise FileRefusedError(
                "A link is on the way there, and links are not followed.",
                hint="Use the path that it leads to, or read it in a cell.",
            ) from None
        raise FileRefusedError(
            f"On the way there is a {kind}, not a folder.",
            hint='sage_files(action="list") shows what there is.',
        ) from None


def _check_regular(mode: int) -> None:
    """Raise `FileRefusedError` for what is no regular file."""
    kind = _KINDS.get(stat.S_IFMT(mode), "device")
    if kind == "link":
        raise FileRefusedError(
            "It is a link, and links are not followed.",
            hint="Use the path that it leads to, or delete the link.",
        )
    if kind == "folder":
        raise FileRefusedError(
            "It is a folder.", hint='List it with action="list", or name a file in it.'
        )
    if kind != "file":
        raise FileRefusedError(
            f"It is a {kind}, and only files are read and written.",
            hint="Use it in a cell, or delete it.",
        )


@contextlib.contextmanager
def _acting_as(uid: int) -> Iterator[None]:
    """This thread's rights on files are those of a user; only of use for root."""
    libc = ctypes.CDLL(None)
    # In this order: without root's rights the group could not be changed.
    group = libc.setfsgid(uid)
    libc.setfsuid(uid)
    try:
        # Both say who it was, never whether it worked; -1 changes nothing.
        if (libc.setfsuid(-1), libc.setfsgid(-1)) != (uid, uid):
            raise PermissionError(f"the rights of user {uid} cannot be taken")
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(group)
