"""`SessionTable`: the sessions of the store."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from sagebroker.errors import NameTakenError, SessionGoneError, StaleError

from .encoding import SESSION_COLUMNS, session_row, to_columns
from .records import SessionRow
from .sqlite_file import SqliteFile

NAME_LIMIT_CHARS: Final = 40
"""Length of a session's name, as `session.names` checks it."""

_FIXED: Final = frozenset({"id", "created", "revision"})
"""What no change of a session touches by itself."""


class SessionTable(SqliteFile):
    """What is stored about sessions. Every method raises `StorageError` where the file cannot be used."""

    def add_session(self, row: SessionRow) -> None:
        """Store a new session.

        Raises:
            NameTakenError: Another session has its name.
        """
        columns = to_columns({name: getattr(row, name) for name in SESSION_COLUMNS})
        marks = ", ".join("?" * len(columns))
        with self._writing() as sql:
            self._check_name(row.id, row.name)
            sql.execute(
                f"INSERT INTO sessions ({', '.join(columns)}) VALUES ({marks})",
                tuple(columns.values()),
            )

    def session(self, session_id: str) -> SessionRow | None:
        """The session with this id, or None."""
        return self._row(session_row, "SELECT * FROM sessions WHERE id = ?", session_id)

    def session_named(self, name: str) -> SessionRow | None:
        """The session with this name, or None."""
        return self._row(session_row, "SELECT * FROM sessions WHERE name = ?", name)

    def sessions(self) -> list[SessionRow]:
        """All sessions, the oldest first."""
        return self._rows(session_row, "SELECT * FROM sessions ORDER BY created, id")

    def change_session(self, session_id: str, revision: int, **fields: Any) -> SessionRow:
        """Change fields of a session that nobody has changed since it was read; returns the new row.

        Args:
            session_id: Id of the session.
            revision: The revision that was read.
            fields: New values by the names of `SessionRow`'s fields.

        Raises:
            StaleError: Somebody has changed it.
            SessionGoneError: It is not stored any more.
            NameTakenError: Another session has the new name.
        """
        if unknown := set(fields) - set(SESSION_COLUMNS) | set(fields) & _FIXED:
            raise TypeError(f"not fields of a session that change: {sorted(unknown)}")
        columns = to_columns(fields)
        changes = "".join(f"{name} = ?, " for name in columns)
        with self._writing() as sql:
            self._check_revision(session_id, revision)
            if "name" in fields:
                self._check_name(session_id, fields["name"])
            sql.execute(
                f"UPDATE sessions SET {changes}revision = revision + 1 WHERE id = ?",
                (*columns.values(), session_id),
            )
            changed = self.session(session_id)
        assert changed is not None  # the transaction has just written it
        return changed

    def free_name(self, base: str) -> str:
        """``base``, or with the smallest number that makes it one that no session has.

        It is not reserved: who adds a session with it may still find it taken.
        """
        taken = set(self._rows(lambda row: str(row["name"]), "SELECT name FROM sessions"))
        return first_free(base, taken)

    def remove_session(self, session_id: str) -> None:
        """Forget a session with its cells, outputs and events; harmless when it is gone.

        Files of its large outputs stay: they go with the session's folder.
        """
        with self._writing() as sql:
            sql.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
            sql.execute("DELETE FROM events WHERE session = ?", (session_id,))

    def _check_name(self, session_id: str, name: str) -> None:
        other = self.session_named(name)
        if other is not None and other.id != session_id:
            raise NameTakenError(
                f"Another session is named {name!r} already.", hint="Choose another name."
            )

    def _check_revision(self, session_id: str, revision: int) -> None:
        stored = self.session(session_id)
        if stored is None:
            raise session_gone(session_id)
        if stored.revision != revision:
            raise StaleError(
                f"The session {stored.name!r} was changed meanwhile "
                f"(revision {stored.revision}, read was {revision}).",
                hint="Look at it again, and decide anew.",
            )


def session_gone(session_id: str) -> SessionGoneError:
    """The error for a session that is not stored."""
    return SessionGoneError(
        f"The session {session_id} has been closed meanwhile.", hint="Open it anew."
    )


def first_free(base: str, taken: Container[str]) -> str:
    """The first of ``base``, ``base-2``, ``base-3`` … that is not taken, at most `NAME_LIMIT_CHARS` long."""
    name, number = base[:NAME_LIMIT_CHARS], 1
    while name in taken:
        number += 1
        suffix = f"-{number}"
        name = base[: NAME_LIMIT_CHARS - len(suffix)] + suffix
    return name
