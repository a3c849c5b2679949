"""`Store`: the database for asynchronous callers: one call at a time, each with a deadline."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from sagebroker.errors import StorageError

from .database import Database

CALL_LIMIT_S: Final = 20.0
"""A call takes milliseconds; this is four times what it may wait for another process's transaction."""

CLOSE_LIMIT_S: Final = 5.0
"""Closing empties the write-ahead log. What is left in it is read by whoever opens the store next."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Store:
    """Runs work on the `Database` in a thread. Made by `open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limiter = anyio.CapacityLimiter(1)
        # The limiter lets the next call in when one is abandoned, whose thread may still be at work.
        self._in_use = threading.Lock()
        self._is_left = False
        self._database: Database | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, outputs_folder: Callable[[str], Path]) -> AsyncIterator[Store]:
        """The store at ``path``, closed when this is left. Arguments and errors as `Database.open`."""
        store = cls(path)
        try:
            await store._in_thread(lambda: store._open(outputs_folder), CALL_LIMIT_S)
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await store._close()

    async def call(self, work: Callable[[Database], T], limit_s: float = CALL_LIMIT_S) -> T:
        """What ``work`` returns or raises, run on the database in a thread.

        Whoever is cancelled leaves no half of it: work that has begun goes on to its end, work that
        has not is never begun. After a `StorageError` for the time, too, it may yet come to its end.

        Args:
            work: Calls methods of the database; begins and ends with it.
            limit_s: Seconds for waiting and working together.

        Raises:
            StorageError: It took longer, or the database refused.
        """
        return await self._in_thread(lambda: work(self._opened()), limit_s)

    async def _in_thread(self, work: Callable[[], T], limit_s: float) -> T:
        given_up = threading.Event()

        def run() -> T:
            if not self._in_use.acquire(timeout=limit_s):
                raise self._silent(limit_s)
            try:
                if given_up.is_set():
                    raise self._silent(limit_s)
                return work()
            finally:
                self._close_if_left()
                self._in_use.release()

        try:
            with anyio.fail_after(limit_s):
                return await anyio.to_thread.run_sync(
                    run, abandon_on_cancel=True, limiter=self._limiter
                )
        except TimeoutError as error:
            raise self._silent(limit_s) from error
        finally:
            given_up.set()

    def _open(self, outputs_folder: Callable[[str], Path]) -> None:
        self._database = Database.open(self._path, outputs_folder)

    def _opened(self) -> Database:
        if self._database is None:
            raise StorageError(f"The store {self._path} is closed.", hint="Start sagebroker anew.")
        return self._database

    async def _close(self) -> None:
        # Whichever thread is the last to use the connection closes it, be it one that was given up.
        self._is_left = True
        try:
            await self._in_thread(lambda: None, CLOSE_LIMIT_S)
        except StorageError as error:
            _log.warning("The store is closed later; nothing in it is lost by that: %s", error)

    def _close_if_left(self) -> None:
        if not self._is_left or self._database is None:
            return
        database, self._database = self._database, None
        try:
            database.close()
        except StorageError as error:
            _log.warning("The store was not closed; nothing in it is lost by that: %s", error)

    def _silent(self, limit_s: float) -> StorageError:
        return StorageError(
            f"The disk under the store {self._path} does not answer (for {limit_s:g} s).",
            hint="What was asked for may still be done. Look at the disk, then try again.",
        )
