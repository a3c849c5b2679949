"""What an error of SQLite means and what to do about it. No other module of the store knows its codes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagebroker.errors import StorageError

MOVE_HINT = "Make the file and its folder writable, or set SAGEBROKER_STATE_DIR to another folder."

_PRIMARY_CODE = 0xFF
"""The low byte of SQLite's extended result codes (sqlite.org/rescode.html) is the primary one."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
_REFUSED = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


@contextmanager
def mapped(path: Path) -> Iterator[None]:
    """Turn what SQLite raises inside into a `StorageError` about the store at ``path``."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        raise storage_error(path, code, str(error)) from error
    except (UnicodeEncodeError, OverflowError) as error:
        # From binding a value: a name with half a character, a number beyond 64 bits.
        raise refused(path, str(error)) from error


def storage_error(path: Path, code: int, said: str) -> StorageError:
    """The error for SQLite's extended result code ``code``, of which it said ``said``."""
    primary = code & _PRIMARY_CODE
    if primary in _DAMAGED:
        return damaged(path, said)
    if primary == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StorageError(
            f"The store {path} cannot grow: {said}.",
            hint="What was stored before is still there. Free some disk and try again.",
        )
    if primary in _REFUSED:
        return StorageError(f"The store {path} cannot be written: {said}.", hint=MOVE_HINT)
    if primary in _HELD:
        return StorageError(
            f"The store {path} is held by another process: {said}.",
            hint=f"Nothing was changed. Try again; `fuser -v {path}` says who uses it.",
        )
    if primary == sqlite3.SQLITE_IOERR:
        return StorageError(
            f"The disk under the store {path} failed: {said} (code {code}).",
            hint="What was stored before is still there. Look at the disk and the system's log.",
        )
    return refused(path, f"{said} (code {code})")


def is_held(error: sqlite3.Error) -> bool:
    """Whether somebody else has the file at this moment, so that trying again is sensible."""
    return error.sqlite_errorcode & _PRIMARY_CODE in _HELD


def refused(path: Path, said: str) -> StorageError:
    """The error for what a store must not hold."""
    return StorageError(
        f"The store {path} refused: {said}.",
        hint="Nothing was changed. This is a fault in sagebroker; please report it.",
    )


def damaged(path: Path, said: str) -> StorageError:
    """The error for a store whose content cannot be understood."""
    return StorageError(
        f"The store {path} is damaged: {said}.",
        hint=(
            "Nothing was changed in it, and the sessions' files and checkpoints lie untouched beside it. "
            f"Put a copy of it in its place, or move it away together with {path.name}-wal and "
            f"{path.name}-shm: sagebroker then begins with an empty one."
        ),
    )
