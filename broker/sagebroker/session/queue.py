"""`CellQueue`: the cells of one session, in order and numbered; no I/O."""

from __future__ import annotations

from collections import deque

from sagebroker.config import SessionConfig
from sagebroker.errors import CellNotFoundError, QueueFullError
from sagebroker.model import CellStatus
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session.cell import Cell


class CellQueue:
    """Cells waiting, and those that ended and are remembered."""

    def __init__(self, session: str, limits: SessionConfig, *, next_number: int = 1) -> None:
        self._session = session
        self._limits = limits
        self._cells: dict[int, Cell] = {}
        self._waiting: deque[Cell] = deque()
        self.next_number = next_number

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, code: str, time_limit_s: float | None) -> Cell:
        """A new cell at the end of the queue.

        Raises:
            QueueFullError: ``max_queued_cells`` wait already.
        """
        if len(self._waiting) >= self._limits.max_queued_cells:
            raise QueueFullError(
                f"{len(self._waiting)} cells already wait in session {self._session!r}.",
                hint="Wait for them with sage_wait, or stop the running one with sage_interrupt.",
            )
        wanted = self._limits.time_limit_s if time_limit_s is None else time_limit_s
        cell = Cell(
            number=self.next_number,
            code=code,
            time_limit_s=min(wanted, self._limits.max_time_limit_s),
            outputs=OutputFold(
                stream_bytes=self._limits.stream_bytes,
                display_bytes=self._limits.display_bytes,
                max_displays=self._limits.max_displays,
            ),
        )
        self.next_number += 1
        self._cells[cell.number] = cell
        self._waiting.append(cell)
        self._forget()
        return cell

    def take(self) -> Cell | None:
        """The next cell to run."""
        return self._waiting.popleft() if self._waiting else None

    def put_back(self, cell: Cell) -> None:
        """A cell that was taken and not sent: it is next again."""
        cell.requeue()
        self._waiting.appendleft(cell)

    def get(self, number: int) -> Cell:
        """The cell with this number.

        Raises:
            CellNotFoundError: There is none, or it is forgotten.
        """
        found = self._cells.get(number)
        if found is None:
            known = (
                f"cells {min(self._cells)} to {max(self._cells)} are known"
                if self._cells
                else "it has none yet"
            )
            raise CellNotFoundError(
                f"Session {self._session!r} has no cell {number}; {known}.",
                hint="Use a number that an earlier answer gave.",
            )
        return found

    def drop(self, cell: Cell, reason: str, sentence: str) -> None:
        """End a waiting cell without running it."""
        if cell in self._waiting:
            self._waiting.remove(cell)
        cell.stop_reason = reason
        cell.notices.append(sentence)
        cell.finish(CellStatus.INTERRUPTED)

    def drop_all(self, reason: str, sentence: str) -> int:
        """End every waiting cell; returns how many."""
        dropped = list(self._waiting)
        for cell in dropped:
            self.drop(cell, reason, sentence)
        return len(dropped)

    def warn_waiting(self, sentence: str) -> None:
        """Add a sentence to the answer of every waiting cell."""
        for cell in self._waiting:
            cell.notices.append(sentence)

    def _forget(self) -> None:
        """Forget the oldest ended cells beyond `kept_cells` and `kept_bytes`, but not the newest."""
        ended = [cell for cell in self._cells.values() if cell.status.is_final]
        kept_bytes = sum(cell.outputs.kept_bytes for cell in ended)
        excess = len(ended) - self._limits.kept_cells
        for index, cell in enumerate(ended[:-1]):
            if index >= excess and kept_bytes <= self._limits.kept_bytes:
                return
            kept_bytes -= cell.outputs.kept_bytes
            del self._cells[cell.number]
