"""`CellTable`: cells and outputs of the store, and which of them are forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sagebroker.model import CellStatus

from .encoding import (
    CELL_COLUMNS,
    cell_row,
    decode_json,
    encode_json,
    encode_text,
    to_columns,
)
from .faults import refused
from .records import CellRow, OutputRow
from .session_table import session_gone
from .sqlite_file import SqliteFile

FILE_ABOVE_BYTES: Final = 256 * 2**10
"""An output whose JSON is larger lies in a file: a database page holds 4 KiB, and many pages in a
chain are slow to read and bloat the write-ahead log. Most pictures are smaller."""

UNFINISHED: Final = tuple(status.value for status in CellStatus if not status.is_final)

Outputs = Mapping[tuple[str, int], Sequence[tuple[str, dict[str, Any]]]]
"""By session and cell: type and content of each new message, in order."""

_UPSERT: Final = (
    f"INSERT INTO cells ({', '.join(CELL_COLUMNS)}) VALUES ({', '.join('?' * len(CELL_COLUMNS))}) "
    "ON CONFLICT (session, number) DO UPDATE SET "
    + ", ".join(f"{c} = excluded.{c}" for c in CELL_COLUMNS if c not in ("session", "number"))
)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """What a stored cell costs."""

    number: int
    size_bytes: int
    """Its code, its pager's text and its outputs."""
    is_finished: bool


class CellTable(SqliteFile):
    """What is stored about cells. Every method raises `StorageError` where the file cannot be used."""

    def save(
        self,
        *,
        cells: Sequence[CellRow] = (),
        outputs: Outputs | None = None,
        anew: Container[tuple[str, int]] = (),
    ) -> None:
        """Store cells, new or changed, and append outputs; all of it or nothing.

        Outputs of the cells in ``anew`` take the place of those that are stored.

        With cells it is on disk when this returns. Outputs alone survive the end of the process at
        once, and a crash of the machine from the next transaction with cells on.

        Raises:
            SessionGoneError: A session of them is not stored.
        """
        made: list[tuple[str, int, int]] = []
        replaced: list[tuple[str, int, int]] = []
        rows = [
            tuple(to_columns({c: getattr(cell, c) for c in CELL_COLUMNS}).values())
            for cell in cells
        ]
        try:
            with self._writing(durable=bool(cells)) as sql:
                self._check_sessions({c.session for c in cells} | {s for s, _ in outputs or {}})
                sql.executemany(_UPSERT, rows)
                for (session, cell), messages in (outputs or {}).items():
                    first = 1 + self._last_seq(session, cell)
                    if (session, cell) in anew:
                        replaced += self._drop_outputs(session, cell)
                    self._append(session, cell, messages, made, first=first, durable=bool(cells))
        except BaseException:
            for session, cell, seq in made:
                self._files.remove(session, [(cell, seq)])
            raise
        # Afterwards: a row without its file would be a result lost.
        for session, cell, seq in replaced:
            self._files.remove(session, [(cell, seq)])

    def cell(self, session: str, number: int) -> CellRow | None:
        """A session's cell, or None."""
        query = "SELECT * FROM cells WHERE session = ? AND number = ?"
        return self._row(cell_row, query, session, number)

    def cell_of_request(self, session: str, request_id: str) -> CellRow | None:
        """The newest cell with the client's name for a request, or None; no cell has an empty one."""
        if not request_id:
            return None
        # The second condition is the index's own, without which SQLite does not use it.
        query = (
            "SELECT * FROM cells WHERE session = ? AND request_id = ? AND request_id != x'' "
            "ORDER BY number DESC LIMIT 1"
        )
        return self._row(cell_row, query, session, encode_text(request_id))

    def cells(
        self,
        session: str,
        *,
        first: int | None = None,
        last: int | None = None,
        most: int | None = None,
    ) -> list[CellRow]:
        """Cells of a session, the newest last.

        Args:
            session: Id of the session.
            first: Lowest number.
            last: Highest number.
            most: How many, counted from the newest.
        """
        query = (
            "SELECT * FROM cells WHERE session = ?1 AND number >= coalesce(?2, number) "
            "AND number <= coalesce(?3, number) ORDER BY number DESC LIMIT coalesce(?4, -1)"
        )
        return self._rows(cell_row, query, session, first, last, most)[::-1]

    def unfinished_cells(self, session: str) -> list[CellRow]:
        """The cells that are queued or running, in order."""
        # Spelt out as in the index, or SQLite does not use it.
        statuses = ", ".join(f"'{status}'" for status in UNFINISHED)
        query = f"SELECT * FROM cells WHERE session = ? AND status IN ({statuses}) ORDER BY number"
        return self._rows(cell_row, query, session)

    def next_number(self, session: str) -> int:
        """The number of the session's next cell, from 1; none is given twice."""
        query = "SELECT coalesce(max(number), 0) FROM cells WHERE session = ?"
        return 1 + (self._row(lambda row: int(row[0]), query, session) or 0)

    def outputs(self, session: str, number: int) -> list[OutputRow]:
        """A cell's outputs, in order; one that is lost is a sentence on stderr that says so."""
        query = "SELECT * FROM outputs WHERE session = ? AND cell = ? ORDER BY seq"
        return self._rows(self._output, query, session, number)

    def forget(self, session: str, keep_cells: int, keep_bytes: int) -> int:
        """Remove a session's oldest cells with their outputs until it keeps to both limits.

        The newest cell and unfinished ones stay whatever the limits.

        Args:
            session: Id of the session.
            keep_cells: Cells to keep.
            keep_bytes: Size to keep, of code, pager's text and outputs together.

        Returns:
            How many were removed.
        """
        query = (
            "SELECT number, status, length(code) + length(payload_text) + output_bytes AS size_bytes "
            "FROM cells WHERE session = ? ORDER BY number"
        )
        with self._writing() as sql:
            numbers = which_to_forget(self._rows(_weight, query, session), keep_cells, keep_bytes)
            large = [place for number in numbers for place in self._large(session, number)]
            sql.executemany(
                "DELETE FROM cells WHERE session = ? AND number = ?",
                [(session, number) for number in numbers],
            )
        # Afterwards: a row without its file would be a result lost.
        self._files.remove(session, [(cell, seq) for _, cell, seq in large])
        return len(numbers)

    def _check_sessions(self, ids: Iterable[str]) -> None:
        for session in sorted(ids):
            if not self._rows(tuple, "SELECT 1 FROM sessions WHERE id = ?", session):
                raise session_gone(session)

    def _last_seq(self, session: str, cell: int) -> int:
        query = "SELECT coalesce(max(seq), 0) FROM outputs WHERE session = ? AND cell = ?"
        return self._row(lambda row: int(row[0]), query, session, cell) or 0

    def _large(self, session: str, cell: int) -> list[tuple[str, int, int]]:
        """Session, cell and place of the outputs that lie in files."""
        query = "SELECT seq FROM outputs WHERE session = ? AND cell = ? AND content IS NULL"
        return self._rows(lambda row: (session, cell, int(row["seq"])), query, session, cell)

    def _drop_outputs(self, session: str, cell: int) -> list[tuple[str, int, int]]:
        """Forget a cell's outputs; returns the places of those whose files are to go."""
        large = self._large(session, cell)
        self._sql.execute("DELETE FROM outputs WHERE session = ? AND cell = ?", (session, cell))
        self._sql.execute(
            "UPDATE cells SET output_count = 0, output_bytes = 0 WHERE session = ? AND number = ?",
            (session, cell),
        )
        return large

    def _append(
        self,
        session: str,
        cell: int,
        messages: Sequence[tuple[str, dict[str, Any]]],
        made: list[tuple[str, int, int]],
        *,
        first: int,
        durable: bool,
    ) -> None:
        """Add outputs to a cell from place ``first`` on; ``made`` gets the places of those in files."""
        query = "SELECT output_count FROM cells WHERE session = ? AND number = ?"
        before = self._row(lambda row: int(row[0]), query, session, cell)
        if before is None:
            raise refused(self.path, f"session {session} has no cell {cell}")
        added_bytes = 0
        for seq, (msg_type, content) in enumerate(messages, first):
            kind, stored = _encoded(msg_type, content)
            added_bytes += len(stored)
            row_content: bytes | None = stored
            if len(stored) > FILE_ABOVE_BYTES:
                self._files.write(session, cell, seq, stored, durable=durable)
                made.append((session, cell, seq))
                row_content = None
            self._sql.execute(
                "INSERT INTO outputs (session, cell, seq, msg_type, bytes, content) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (session, cell, seq, kind, len(stored), row_content),
            )
        self._sql.execute(
            "UPDATE cells SET output_count = ?, output_bytes = output_bytes + ? "
            "WHERE session = ? AND number = ?",
            (before + len(messages), added_bytes, session, cell),
        )

    def _output(self, row: sqlite3.Row) -> OutputRow:
        seq, msg_type = int(row["seq"]), str(row["msg_type"])
        try:
            stored = row["content"]
            if stored is None:
                stored = self._files.read(row["session"], row["cell"], seq)
            content = decode_json(stored)
            if not isinstance(content, dict):
                raise ValueError("it is no message's content")  # noqa: TRY004 - of what is stored
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            return OutputRow(seq=seq, msg_type="stream", content=_lost(msg_type, error))
        return OutputRow(seq=seq, msg_type=msg_type, content=content)


def which_to_forget(cells: Sequence[Weight], keep_cells: int, keep_bytes: int) -> list[int]:
    """Numbers of the cells to forget so that the rest keeps to both limits.

    Args:
        cells: All of one session, the oldest first.
        keep_cells: Cells to keep.
        keep_bytes: Size to keep.
    """
    left_cells, left_bytes = len(cells), sum(cell.size_bytes for cell in cells)
    numbers: list[int] = []
    for cell in cells[:-1]:
        if left_cells <= keep_cells and left_bytes <= keep_bytes:
            break
        if cell.is_finished:
            numbers.append(cell.number)
            left_cells -= 1
            left_bytes -= cell.size_bytes
    return numbers


def _weight(row: sqlite3.Row) -> Weight:
    return Weight(
        number=int(row["number"]),
        size_bytes=int(row["size_bytes"]),
        is_finished=CellStatus(row["status"]).is_final,
    )


def _encoded(msg_type: str, content: dict[str, Any]) -> tuple[str, bytes]:
    """Type and JSON text to store; what cannot be written as JSON becomes a sentence on stderr."""
    try:
        return msg_type, encode_json(content)
    except (ValueError, TypeError, RecursionError) as error:
        return "stream", encode_json(_lost(msg_type, error))


def _lost(msg_type: str, error: Exception) -> dict[str, Any]:
    text = f"[An output of this cell ({msg_type}) is lost: {error}]\n"
    return {"name": "stderr", "text": text}
