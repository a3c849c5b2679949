"""`CellQueue`: the cells of one session, in order and numbered; no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sagebroker.config import SessionConfig
from sagebroker.errors import CellNotFoundError, QueueFullError
from sagebroker.model import CellStatus
from sagebroker.protocol.outputs import OutputFold
from sagebroker.protocol.requests import found_again
from sagebroker.session.cell import Cell, ignore

if TYPE_CHECKING:
    from sagebroker.protocol.requests import ClientRequest

ABORTED = "The cell was not run: one before it, of the same client, has failed."

RETRY_AFTER_S = 5.0
"""Told to whom no place for a cell can be given now; cells end all the time."""


class CellQueue:
    """Cells waiting, and those that ended and are remembered.

    Args:
        session: The session's name, for errors.
        limits: How many may wait and are remembered.
        next_number: Of the first cell to come.
        on_change: Told of each change of what is stored of a cell.
    """

    def __init__(
        self,
        session: str,
        limits: SessionConfig,
        *,
        next_number: int = 1,
        on_change: Callable[[Cell], None] = ignore,
    ) -> None:
        self._session = session
        self._limits = limits
        self._on_change = on_change
        self._cells: dict[int, Cell] = {}
        self._waiting: deque[Cell] = deque()
        self._had_turns: list[bytes] = []
        """Clients with waiting cells that were served, the last one last."""
        self.next_number = next_number

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self,
        code: str,
        time_limit_s: float | None,
        *,
        author: str = "api",
        request_id: str = "",
        request: ClientRequest | None = None,
    ) -> Cell:
        """A new cell at the end of the queue.

        Raises:
            QueueFullError: ``max_queued_cells`` wait already.
        """
        if len(self._waiting) >= self._limits.max_queued_cells:
            raise QueueFullError(
                f"{len(self._waiting)} cells already wait in session {self._session!r}.",
                hint="Wait for them with sage_wait, or stop the running one with sage_interrupt.",
                retry_after_s=RETRY_AFTER_S,
            )
        wanted = self._limits.time_limit_s if time_limit_s is None else time_limit_s
        is_silent = request is not None and request.is_silent
        cell = Cell(
            number=0 if is_silent else self.next_number,
            code=code,
            time_limit_s=min(wanted, self._limits.max_time_limit_s),
            outputs=new_fold(self._limits),
            author=author,
            request_id=request_id,
            request=request,
            on_change=ignore if is_silent else self._on_change,
        )
        self._waiting.append(cell)
        if not is_silent:
            self.next_number += 1
            self._cells[cell.number] = cell
            self._forget()
        cell.on_change(cell)
        return cell

    def resume(self, cell: Cell) -> None:
        """A cell that an earlier broker has left; one that was not sent waits again."""
        cell.on_change = self._on_change
        cell.request = found_again(cell.request_id, cell.code)
        self._cells[cell.number] = cell
        if cell.status is CellStatus.QUEUED:
            self._waiting.append(cell)

    def of_request(self, request_id: str) -> Cell | None:
        """The newest remembered cell with the client's name for a request."""
        found = [c for c in self._cells.values() if request_id and c.request_id == request_id]
        return found[-1] if found else None

    def take(self) -> Cell | None:
        """The next cell to run: each Jupyter client has its turn, as have all others together.

        A client's own cells keep their order; the client goes first that has had no turn for longest.
        """
        first: dict[bytes, Cell] = {}
        for cell in self._waiting:
            first.setdefault(cell.client, cell)
        if not first:
            return None
        had = self._had_turns
        client = min(first, key=lambda c: had.index(c) if c in had else -1)
        self._had_turns = [*(c for c in had if c in first and c != client), client]
        self._waiting.remove(first[client])
        return first[client]

    def put_back(self, cell: Cell) -> None:
        """A cell that was taken and not sent: it is next again."""
        cell.requeue()
        self._waiting.appendleft(cell)

    def get(self, number: int) -> Cell:
        """The cell with this number.

        Raises:
            CellNotFoundError: There is none, or it is forgotten here.
        """
        found = self._cells.get(number)
        if found is None:
            raise cell_not_found(self._session, number, sorted(self._cells))
        return found

    def remembered(self) -> dict[int, Cell]:
        """The cells that are kept here, by number."""
        return dict(self._cells)

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

    def abort_behind(self, cell: Cell) -> None:
        """End what the client of ``cell`` has queued behind it, if it wishes so of one that fails."""
        if cell.request is not None and cell.request.stops_on_error:
            for waiting in [c for c in self._waiting if c.client == cell.client]:
                self.drop(waiting, "aborted", ABORTED)

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


def new_fold(limits: SessionConfig) -> OutputFold:
    """Where the outputs of a cell go."""
    return OutputFold(
        stream_bytes=limits.stream_bytes,
        display_bytes=limits.display_bytes,
        max_displays=limits.max_displays,
    )


def cell_not_found(session: str, number: int, known: Sequence[int]) -> CellNotFoundError:
    """The error for a cell that a session does not have; ``known`` are the numbers of those it has."""
    if not known:
        return CellNotFoundError(
            f"Session {session!r} has no cell {number}; it has none yet.",
            hint=f'sage_run(code="…", session="{session}") runs its first.',
        )
    return CellNotFoundError(
        f"Session {session!r} has no cell {number}; cells {known[0]} to {known[-1]} are known.",
        hint="Use a number that an earlier answer gave.",
    )
