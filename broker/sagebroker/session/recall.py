"""`recall`: cells out of the store, as they were.

For callers who ask after a session's kernel, or its broker, has gone.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sagebroker.model import CellFailure, ExitCause, ExitReport, LadderOutcome, monotonic
from sagebroker.protocol.messages import Message
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session.cell import Cell
from sagebroker.session.queue import cell_not_found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagebroker.config import SessionConfig
    from sagebroker.store.database import Database
    from sagebroker.store.records import CellRow, OutputRow


def recall(db: Database, session: str, name: str, number: int, limits: SessionConfig) -> Cell:
    """A session's stored cell with its outputs. Blocks.

    Args:
        db: The store.
        session: Id of the session.
        name: The session's name, for the error.
        number: Of the cell.
        limits: Of what is kept of one cell.

    Raises:
        CellNotFoundError: There is none, or it is forgotten.
        StorageError: The store cannot be read.
    """
    row = db.cell(session, number)
    if row is None:
        raise cell_not_found(name, number, [c.number for c in db.cells(session)])
    return cell_of(row, db.outputs(session, number), limits)


def list_cells(
    db: Database, session: str, live: Mapping[int, Cell], most: int, limits: SessionConfig
) -> list[Cell]:
    """A session's newest cells, in order; those that are only stored have no outputs. Blocks.

    Args:
        db: The store.
        session: Id of the session.
        live: Cells of which more is known than is stored yet, by number.
        most: How many.
        limits: Of what is kept of one cell.

    Raises:
        StorageError: The store cannot be read.
    """
    stored = {row.number: cell_of(row, (), limits) for row in db.cells(session, most=most)}
    known = {**stored, **live}
    return [known[number] for number in sorted(known)[-most:]]


def cell_of(row: CellRow, outputs: Sequence[OutputRow], limits: SessionConfig) -> Cell:
    """The cell that was stored as ``row`` with ``outputs``."""
    # What was stored of a flood is its head, a line and its tail: a little more than was kept.
    fold = OutputFold(2 * limits.stream_bytes, 2 * limits.display_bytes, 2 * limits.max_displays)
    for output in outputs:
        fold.add(
            Message(channel="iopub", msg_type=output.msg_type, msg_id="", content=output.content)
        )
    cell = Cell(
        number=row.number,
        code=row.code,
        time_limit_s=row.time_limit_s,
        outputs=fold,
        author=row.author,
        request_id=row.request_id,
        msg_id=row.msg_id,
        generation=row.kernel_generation,
        failure=_failure(row.failure),
        execution_count=row.execution_count,
        payload_text=row.payload_text,
        ladder=None if row.ladder is None else LadderOutcome(**row.ladder),
        stop_reason=row.stop_reason,
        exit=_exit(row.exit),
        notices=list(row.notices),
        reply_lost=row.reply_lost,
        output_lost=row.output_lost,
        told=row.told,
        is_stored=True,
        queued_at=monotonic(row.queued_at) or time.monotonic(),
        started_at=monotonic(row.started_at),
    )
    if row.status.is_final:
        cell.finish(row.status)
        cell.ended_at = monotonic(row.ended_at) or cell.ended_at
    else:
        cell.status = row.status
    return cell


def _failure(stored: dict[str, Any] | None) -> CellFailure | None:
    if stored is None:
        return None
    return CellFailure(**{**stored, "traceback": tuple(stored["traceback"])})


def _exit(stored: dict[str, Any] | None) -> ExitReport | None:
    return None if stored is None else ExitReport(**{**stored, "cause": ExitCause(stored["cause"])})
