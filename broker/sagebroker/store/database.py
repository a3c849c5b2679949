"""`Database`: everything that is stored of sessions, in one SQLite file. Every method blocks."""

from __future__ import annotations

from typing import Any, Final

from sagebroker.model import utcnow

from .cell_table import CellTable
from .encoding import encode_json, event_row
from .records import EventRow
from .session_table import SessionTable

EVENTS_KEPT: Final = 5_000
"""Some weeks of a busy installation, about 1 MB; older ones are of no use to anybody who asks why."""

EVENTS_SHOWN: Final = 200
"""What a person can look through."""


class Database(SessionTable, CellTable):
    """The store, for one thread at a time; `open` it and `close` it."""

    def add_event(self, word: str, session: str, detail: dict[str, Any]) -> None:
        """Store that something has happened now; the oldest go where there are too many.

        Args:
            word: One of the event words.
            session: Id of the session it is about; empty for none.
            detail: What else is to be known; never code or outputs.
        """
        at = utcnow().timestamp()
        with self._writing() as sql:
            sql.execute(
                "INSERT INTO events (at, session, word, detail) VALUES (?, ?, ?, ?)",
                (at, session, word, encode_json(detail)),
            )
            sql.execute(
                "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (EVENTS_KEPT,)
            )

    def events(self, session: str | None = None, most: int = EVENTS_SHOWN) -> list[EventRow]:
        """The newest events, of one session or of all, the newest last."""
        query = (
            "SELECT at, session, word, detail FROM events WHERE session = coalesce(?, session) "
            "ORDER BY id DESC LIMIT ?"
        )
        return self._rows(event_row, query, session, most)[::-1]
