"""`SqliteFile`: one connection to the store's file: opening, migrating, transactions.

Several processes use the file at once, each writing only of sessions whose lock it holds. SQLite's
write-ahead log lets them read while one writes. A damaged file is never repaired, emptied or replaced
here: what is in it may be all that is left of somebody's results.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from sagebroker.errors import StorageError

from . import schema
from .faults import MOVE_HINT, damaged, is_held, mapped
from .output_files import OutputFiles

BUSY_LIMIT_S: Final = 5.0
"""Others hold the file for a transaction: milliseconds, a slow disk's sync tenths of a second."""

BUSY_POLL_S: Final = 0.02

LOG_KEPT_BYTES: Final = 16 * 2**20
"""The write-ahead log shrinks to this once it is emptied; usually it has 4 MiB (1000 pages)."""

ELSEWHERE_HINT: Final = "Use what wrote it, or set SAGEBROKER_STATE_DIR to another folder."

T = TypeVar("T")


class SqliteFile:
    """The connection, for one thread at a time. The tables' methods are in the classes below it."""

    def __init__(self, path: Path, sql: sqlite3.Connection, files: OutputFiles) -> None:
        self.path = path
        self._sql = sql
        self._files = files
        self._identity: tuple[int, int] | None = _identity(path)

    @classmethod
    def open(cls, path: Path, outputs_folder: Callable[[str], Path]) -> Self:
        """The store at ``path``, made if there is none, with the tables of this version.

        Args:
            path: The file; SQLite keeps ``-wal`` and ``-shm`` beside it.
            outputs_folder: The folder for a session's large outputs, by the session's id.

        Raises:
            StorageError: It cannot be read or written, is damaged, is another program's or is from a
                later version. Nothing was changed then.
        """
        _create(path)
        with mapped(path):
            sql = sqlite3.connect(
                path, timeout=BUSY_LIMIT_S, isolation_level=None, check_same_thread=False
            )
        try:
            opened = cls(path, sql, OutputFiles(outputs_folder))
            opened._prepare()
        except BaseException:
            sql.close()
            raise
        return opened

    def close(self) -> None:
        """Close the file; harmless when it is closed. Raises `StorageError`."""
        with mapped(self.path):
            self._sql.close()

    def _prepare(self) -> None:
        with mapped(self.path):
            self._sql.row_factory = sqlite3.Row
            version = self._version()
            self._use_log()
            self._sql.execute("PRAGMA foreign_keys = ON")
            self._sql.execute(f"PRAGMA journal_size_limit = {LOG_KEPT_BYTES}")
        for step in range(version, schema.SCHEMA_VERSION):
            with self._writing() as sql:
                if self._version() == step:  # nobody else has made this step meanwhile
                    for statement in schema.MIGRATIONS[step]:
                        sql.execute(statement)
                    sql.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
                    sql.execute(f"PRAGMA user_version = {step + 1}")
        with self._writing():
            # Nothing to write: a file that can only be read is told now, not with the first result.
            pass

    def _version(self) -> int:
        """The version of the tables; 0 where there are none. Refuses what is not ours."""
        # The mark is read last: whoever makes the tables at this moment sets all three at once.
        (tables,) = self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
        version = int(self._pragma("user_version"))
        if self._pragma("application_id") != schema.APPLICATION_ID and (version or tables):
            raise StorageError(
                f"The file {self.path} is the database of another program.",
                hint=f"Nothing was changed in it. {ELSEWHERE_HINT}",
            )
        if version > schema.SCHEMA_VERSION:
            raise StorageError(
                f"The store {self.path} was written by a later sagebroker "
                f"(its version {version}, known here {schema.SCHEMA_VERSION}).",
                hint=f"Nothing was changed in it. {ELSEWHERE_HINT}",
            )
        return version

    def _use_log(self) -> None:
        """Switch to the write-ahead log, which the file remembers."""
        deadline = time.monotonic() + BUSY_LIMIT_S
        while self._pragma("journal_mode") != "wal":
            try:
                self._sql.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                # SQLite does not wait here by itself when others open the new file at the same time.
                if not is_held(error) or time.monotonic() > deadline:
                    raise
                time.sleep(BUSY_POLL_S)

    def _pragma(self, name: str) -> Any:
        (value,) = self._sql.execute(f"PRAGMA {name}").fetchone()
        return value

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is stored, or nothing.

        Args:
            durable: On disk before this returns. Otherwise a crash of the machine may undo it (and
                nothing before it); a crash of the process never does.

        Raises:
            StorageError: It cannot be stored.
        """
        self._check_place()
        with mapped(self.path):
            self._roll_back()
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
                self._sql.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _check_place(self) -> None:
        # SQLite would go on writing into a file that nobody finds any more.
        if self._identity is None or _identity(self.path) != self._identity:
            raise StorageError(
                f"The store {self.path} was moved or removed while it was in use.",
                hint="Put it back where it was, or start sagebroker anew to begin with an empty one.",
            )

    def _roll_back(self) -> None:
        # After a full disk SQLite has done it by itself; what fails here is tried before the next one.
        if self._sql.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._sql.execute("ROLLBACK")

    def _rows(self, make: Callable[[sqlite3.Row], T], query: str, *values: object) -> list[T]:
        """What a query finds, each row made into what ``make`` says. Raises `StorageError`."""
        with mapped(self.path):
            found = self._sql.execute(query, values).fetchall()
        try:
            return [make(row) for row in found]
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(self.path, f"a row cannot be understood ({error})") from error

    def _row(self, make: Callable[[sqlite3.Row], T], query: str, *values: object) -> T | None:
        """The first row that a query finds, or None. Raises `StorageError`."""
        found = self._rows(make, query, *values)
        return found[0] if found else None


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, or None where there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create(path: Path) -> None:
    """Make the file for its owner only, where there is none; SQLite would follow the umask."""
    try:
        # Exclusively: closing a descriptor of a file that is in use would drop this process's locks on it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StorageError(
            f"The store {path} cannot be made: {error.strerror}.", hint=MOVE_HINT
        ) from error
