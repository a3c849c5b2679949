"""`SessionFiles`: a session's files as its clients list, read, write and delete them.

The folder lies on this machine's disk, so no kernel is asked and none is woken. What may stand in it
is told in `store.confined`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from sagebroker.errors import (
    FileRefusedError,
    FilesFullError,
    NoSuchFileError,
    SessionGoneError,
    SessionInUseError,
    StorageError,
)
from sagebroker.session.files import used_bytes
from sagebroker.store import confined
from sagebroker.store.confined import Entry, Piece

if TYPE_CHECKING:
    from sagebroker.store.folders import SessionFolder
    from sagebroker.store.records import SessionRow

MOUNT = "/files"
"""Where cells see the folder."""

_RELATIVE = f'Use a path relative to {MOUNT}; sage_files(action="list") shows what is there.'

MAX_WRITE_BYTES = 3 * 2**20
"""Largest file that is written: as base64 it is a message of 4 MiB. Larger ones are made in cells."""

MAX_LISTED = 5000
"""Entries of one list, all pages together; a session may make a million."""

MAX_PATH_BYTES = 4000
"""Longest path: the kernel's own limit is 4096 bytes, with ``/files/`` before it."""

MAX_NAME_BYTES = 255
"""Longest name in a path; Linux's own limit."""

LIMIT_S = 30.0
"""Time for the disk; what it does not do within that is told, and no caller waits for ever."""

_PARALLEL = 4
"""File calls at once: a disk that hangs takes no more threads than that from the rest."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_workers = anyio.CapacityLimiter(_PARALLEL)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of writing a file."""

    path: str
    bytes: int
    replaced_bytes: int | None
    """Size of the file that was there before; None where there was none."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies below a path."""

    path: str
    entries: list[Entry]
    """Level by level, by name in each folder."""
    is_cut: bool
    """There are more than `MAX_LISTED`."""


class SessionFiles:
    """See the module. Every path is relative to the session's folder, or begins with ``/files``.

    Args:
        folder: The session's.
        row: The session's.
        limit_bytes: All its files together.
        on_write: Called before a file is written.
    """

    def __init__(
        self,
        folder: SessionFolder,
        row: SessionRow,
        limit_bytes: int,
        *,
        on_write: Callable[[], None] = lambda: None,
    ) -> None:
        self.session = row.name
        self._folder = folder
        self._uid = row.uid
        self._limit_bytes = limit_bytes
        self._on_write = on_write

    async def list(self, path: str) -> Listing:
        """What lies in a folder and below it; a file alone, where the path is a file's.

        Raises:
            FileRefusedError: The path leads out, or over a link.
            NoSuchFileError: Nothing is there.
            BrokerError: The session is gone, or the disk refuses.
        """
        return await self._do(partial(self._list, parts_of(path)))

    async def read(self, path: str, offset: int, most: int) -> Piece:
        """Part of a file.

        Args:
            path: The file's.
            offset: The first byte.
            most: Bytes at most.

        Raises:
            FileRefusedError: It is no file, or the path leads out, or over a link.
            NoSuchFileError: Nothing is there.
            BrokerError: The session is gone, or the disk refuses.
        """
        return await self._do(partial(self._read, _file_parts(path), offset, most))

    async def write(self, path: str, data: bytes) -> Written:
        """Write a file in place of what is there; missing folders are made. All of it, or nothing.

        Raises:
            FileRefusedError: No file can be there, or it has too many bytes.
            FilesFullError: The session's files would be over their limit.
            SessionInUseError: Another process serves the session.
            BrokerError: The session is gone, or the disk refuses.
        """
        parts = _file_parts(path)
        if len(data) > MAX_WRITE_BYTES:
            raise FileRefusedError(
                f"{len(data)} bytes are more than the {MAX_WRITE_BYTES} that one call writes.",
                hint="Write it in parts, and join them in a cell.",
            )
        self._on_write()
        return await self._do(partial(self._write, parts, data))

    async def delete(self, path: str) -> str:
        """Delete a file, a link itself, or an empty folder; returns its path.

        Raises:
            FileRefusedError: A folder that is not empty, or a path that leads out or over a link.
            NoSuchFileError: Nothing is there.
            SessionInUseError: Another process serves the session.
            BrokerError: The session is gone, or the disk refuses.
        """
        return await self._do(partial(self._delete, _file_parts(path)))

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            with anyio.fail_after(LIMIT_S):
                return await anyio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=_workers
                )
        except TimeoutError as error:
            raise StorageError(
                f"The disk with the files of session {self.session!r} did not answer within "
                f"{LIMIT_S:.0f} s.",
                hint="Try again; what was to be changed may still be done.",
            ) from error

    # What follows blocks.

    @contextlib.contextmanager
    def _entered(self, parts: tuple[str, ...]) -> Iterator[int]:
        """The folder's descriptor; what goes wrong is told with the path."""
        try:
            if not self._folder.files.is_dir():
                raise SessionGoneError(
                    f"The files of session {self.session!r} are gone: it has been closed meanwhile.",
                    hint="Open it anew.",
                )
            with confined.entered(self._folder.files, self._uid) as root:
                yield root
        except FileRefusedError as error:
            raise FileRefusedError(f"{shown(parts)}: {error.message}", hint=error.hint) from error
        except OSError as error:
            if isinstance(error, SessionGoneError):
                raise
            raise _told(shown(parts), error) from error

    def _list(self, parts: tuple[str, ...]) -> Listing:
        with self._entered(parts) as root:
            if parts:
                with confined.folder_at(root, parts[:-1]) as folder:
                    entry = confined.look(folder, parts)
                if entry.kind != "folder":
                    return Listing(path=shown(parts), entries=[entry], is_cut=False)
            entries, is_cut = confined.list_tree(root, parts, MAX_LISTED)
        return Listing(path=shown(parts), entries=entries, is_cut=is_cut)

    def _read(self, parts: tuple[str, ...], offset: int, most: int) -> Piece:
        with self._entered(parts) as root, confined.folder_at(root, parts[:-1]) as folder:
            return confined.read_piece(folder, parts[-1], offset, most)

    def _write(self, parts: tuple[str, ...], data: bytes) -> Written:
        self._check_owner()
        used = used_bytes(self._folder.files, enough=self._limit_bytes)
        if used + len(data) > self._limit_bytes:
            raise FilesFullError(
                f"The files of session {self.session!r} would take more than their limit of "
                f"{self._limit_bytes} bytes.",
                hint="Nothing was written. Delete some of them first.",
            )
        with (
            self._entered(parts) as root,
            confined.folder_at(root, parts[:-1], make=True) as folder,
        ):
            before = confined.size_of(folder, parts[-1])
            if before and not data:
                raise FileRefusedError(
                    f"There was no content to write, and the file has {before} bytes.",
                    hint="Nothing was changed. Delete it first if it is to be empty.",
                )
            confined.put_file(folder, parts[-1], data)
        return Written(path=shown(parts), bytes=len(data), replaced_bytes=before)

    def _delete(self, parts: tuple[str, ...]) -> str:
        self._check_owner()
        with self._entered(parts) as root, confined.folder_at(root, parts[:-1]) as folder:
            confined.remove_one(folder, parts[-1])
        return shown(parts)

    def _check_owner(self) -> None:
        """Raise `SessionInUseError` where another process serves the session."""
        owner = self._folder.owner()
        if owner not in (None, os.getpid()):
            raise SessionInUseError(
                f"The session {self.session!r} is served by another sagebroker process (pid {owner}).",
                hint="Change its files there; here they can be listed and read.",
            )


def parts_of(path: str) -> tuple[str, ...]:
    """The names on the way from the session's folder to ``path``. Pure.

    Args:
        path: Relative to the folder, or as cells see it: ``/files/…``. Empty for the folder itself.

    Raises:
        FileRefusedError: It leads out of the folder, or can be no path.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    if path.startswith("/"):
        if names[:1] != [MOUNT[1:]]:
            raise FileRefusedError(
                f"{quoted(path)} is outside of the session's folder.",
                hint=_RELATIVE,
            )
        del names[0]
    if ".." in names:
        raise FileRefusedError(
            f"{quoted(path)} has '..' in it, which paths here may not have.",
            hint=_RELATIVE,
        )
    try:
        sizes = [len(name.encode()) for name in names]
    except UnicodeEncodeError:
        sizes = [MAX_NAME_BYTES + 1]
    if (
        "\0" in path
        or sum(sizes) + len(sizes) > MAX_PATH_BYTES
        or max(sizes, default=0) > (MAX_NAME_BYTES)
    ):
        raise FileRefusedError(
            f"{quoted(path)} can be no path: a name has at most {MAX_NAME_BYTES} bytes of UTF-8 and no "
            f"NUL, a path {MAX_PATH_BYTES} bytes.",
            hint="Use a shorter one.",
        )
    return tuple(names)


def shown(parts: tuple[str, ...]) -> str:
    """A path as it is told to people, and as it can be given to a tool, in one line."""
    return quoted("/".join((MOUNT, *parts)))


def quoted(text: str) -> str:
    """The text, as a JSON string where a character in it does not show what it is. Pure."""
    short = text if len(text) <= MAX_PATH_BYTES else f"{text[:200]}…"
    return short if short.isprintable() and '"' not in short else json.dumps(short)


def _file_parts(path: str) -> tuple[str, ...]:
    """`parts_of` what is not the folder itself."""
    parts = parts_of(path)
    if not parts:
        raise FileRefusedError(
            "This needs the path of a file.", hint='For instance path="data/points.csv".'
        )
    return parts


def _told(path: str, error: OSError) -> FileRefusedError | NoSuchFileError | StorageError:
    """What the disk's refusal means; the text of ``error`` itself may tell of the host's paths."""
    reason = os.strerror(error.errno) if error.errno else "unknown reason"
    look = 'sage_files(action="list") shows what there is.'
    match error.errno:
        case errno.ENOENT:
            return NoSuchFileError(f"{path} does not exist.", hint=look)
        case errno.ENOTEMPTY:
            return FileRefusedError(
                f"{path} is a folder with something in it, and was not deleted.",
                hint="Delete what is in it first, or use shutil.rmtree in a cell.",
            )
        case errno.EACCES | errno.EPERM:
            return FileRefusedError(
                f"{path}: the rights of the file or of a folder on the way do not allow this.",
                hint="Change them with os.chmod in a cell.",
            )
        case errno.EAGAIN | errno.ETXTBSY | errno.EBUSY:
            return FileRefusedError(
                f"{path} is held by a process of the session.",
                hint="Try again when its cell has ended.",
            )
        case errno.ENOTDIR | errno.EISDIR | errno.ELOOP | errno.EEXIST | errno.ESTALE:
            return FileRefusedError(
                f"{path} was exchanged for something else meanwhile.", hint="Try again."
            )
        case code if code in _FULL:
            return StorageError(
                f"{path} was not written, since the disk is full.", hint="Free some space on it."
            )
        case _:
            return StorageError(
                f"The disk refuses {path}: {reason}.", hint="Nothing was changed. Try again."
            )
