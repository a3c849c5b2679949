"""`RowKeeper`: a session's row in the store, changed by the process that serves the session."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio

from sagebroker.errors import SessionGoneError, StaleError, StorageError

if TYPE_CHECKING:
    from sagebroker.store.database import Database
    from sagebroker.store.records import SessionRow
    from sagebroker.store.store import Store


_log = logging.getLogger(__name__)


class RowKeeper:
    """See the module.

    Args:
        store: Where the row is.
        row: As it was read under the session's lock.
    """

    def __init__(self, store: Store, row: SessionRow) -> None:
        self._store = store
        self._changing = anyio.Lock()
        self.row = row
        """As it is stored, as far as is known."""

    async def change(self, **fields: Any) -> None:
        """Store new values of some fields.

        Raises:
            StorageError: The store refuses; the row is as it was.
            SessionGoneError: The row has been removed.
        """
        async with self._changing:
            try:
                self.row = await self._store.call(lambda db: self._write(db, fields))
            except StaleError:
                # Only we write it: an earlier call has ended after we gave it up.
                self.row = await self._store.call(self._read)
                self.row = await self._store.call(lambda db: self._write(db, fields))

    async def note(self, word: str, **detail: Any) -> None:
        """Store that something has happened; that it cannot be is no reason to fail.

        Args:
            word: One of the event words.
            detail: What else is to be known; never code or outputs.
        """
        try:
            await self._store.call(lambda db: db.add_event(word, self.row.id, detail))
        except StorageError as error:
            _log.debug("An event of session %s is not stored: %s", self.row.id, error)

    async def remove(self) -> None:
        """Forget the session. Raises `StorageError`."""
        async with self._changing:
            await self._store.call(lambda db: db.remove_session(self.row.id))

    def _write(self, db: Database, fields: dict[str, Any]) -> SessionRow:
        return db.change_session(self.row.id, self.row.revision, **fields)

    def _read(self, db: Database) -> SessionRow:
        row = db.session(self.row.id)
        if row is None:
            raise SessionGoneError(f"The session {self.row.name!r} has been removed meanwhile.")
        return row
