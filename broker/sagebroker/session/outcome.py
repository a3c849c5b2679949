"""What a cell's end means, in a status and in sentences; no I/O, no clock."""

from __future__ import annotations

from sagebroker.kernel.keeper import RestoreReport
from sagebroker.model import CellStatus, ExitCause, ExitReport, LadderOutcome
from sagebroker.protocol.execution import Execution
from sagebroker.session.cell import Cell

STOP_REASONS = {
    "time_limit": "reached its time limit",
    "request": "was interrupted on request",
    "cancelled": "was interrupted because its caller cancelled the call",
    "restart": "was ended by the restart of its kernel",
    "closed": "was ended with its session",
    "files_full": "was stopped because the session's files exceed their limit",
}
"""What each ``Cell.stop_reason`` means, as a clause."""

NOT_RUN = "The cell was not run."
"""For cells that leave the queue unrun."""

UNDELIVERED = "The computation could not be stopped yet: the container engine does not answer. It is tried again."

UNSENT_LIMIT = 3
"""Attempts to send a cell to a kernel that takes nothing."""

CLOSED = "The session was closed while the cell ran."

UNKNOWN_END = (
    "How the cell ended is not known: its broker was killed, and the kernel has no record of it."
)

NEVER_BEGUN = "The cell was not run: its broker was killed before the kernel had it."

NO_CONTAINER = "The container ended while nobody was connected."
"""For sessions that are found again."""

HAD_NO_KERNEL = "The session had no kernel any more when its broker ended."

LOST = "All variables are lost; the files in /files are kept."

UNREVIVED = (
    "The variables are gone but for those of the newest checkpoint, which sage_restart with restore=true "
    "brings back; the files in /files are kept."
)

FATE_PENDING = "A new kernel is being started; the next answer says which variables are back."


def final_status(
    execution: Execution, ladder: LadderOutcome | None, exit_report: ExitReport | None
) -> CellStatus:
    """The status of a cell whose execution has ended or whose kernel is dead."""
    if exit_report is not None and execution.status is None:
        return CellStatus.DIED if ladder is None else CellStatus.INTERRUPTED
    if execution.status == "ok" or (execution.status is None and execution.outputs.failure is None):
        # A cell that ends well although it was interrupted caught the interrupt or was quicker;
        # with its reply lost nobody knows, and the interrupt is the likelier end.
        return CellStatus.INTERRUPTED if ladder and execution.status is None else CellStatus.OK
    if execution.status == "aborted":
        return CellStatus.INTERRUPTED
    return CellStatus.ERROR if ladder is None else CellStatus.INTERRUPTED


def conclusion(
    cell: Cell, execution: Execution, exit_report: ExitReport | None
) -> tuple[CellStatus, str]:
    """How ``cell`` ended: its status, and a sentence where it did not end by itself."""
    if exit_report is None and _was_stopped_before(cell):
        why = _why(cell.stop_reason, cell.time_limit_s)
        return CellStatus.INTERRUPTED, f"The cell {why}. All variables are kept."
    status = final_status(execution, cell.ladder, exit_report)
    return status, end_sentence(cell, status, exit_report)


def end_sentence(cell: Cell, status: CellStatus, exit_report: ExitReport | None) -> str:
    """What ended ``cell``; empty where it ended by itself. `fate_sentence` says what became of the rest."""
    unasked = exit_report is not None and exit_report.cause is not ExitCause.REPLACED
    if cell.ladder is not None and not unasked:
        if status is CellStatus.OK:
            why = STOP_REASONS.get(cell.stop_reason, cell.stop_reason)
            return f"The cell {why}, and ended by itself meanwhile. All variables are kept."
        return stop_sentence(cell.stop_reason, cell.time_limit_s, cell.ladder)
    return "" if exit_report is None else death_sentence(exit_report)


def _was_stopped_before(cell: Cell) -> bool:
    """Whether an earlier broker was stopping the cell when it was killed, and the cell has obeyed."""
    return (
        cell.ladder is None
        and bool(cell.stop_reason)
        and cell.failure is not None
        and cell.failure.ename == "KeyboardInterrupt"
    )


def stop_sentence(reason: str, time_limit_s: float, ladder: LadderOutcome) -> str:
    """What was done to stop a cell."""
    why = _why(reason, time_limit_s)
    took = f"{ladder.elapsed_ms / 1000.0:.2f} s"
    if ladder.rung == "sigint":
        return f"The cell {why}: SIGINT stopped it after {took}. All variables are kept."
    if ladder.rung == "new_kernel":
        return f"The cell {why}, but ignored it: the kernel was killed after {took}."
    return (
        f"The cell {why}, but ignored it and so did its container: both were given up after {took}."
    )


def _why(reason: str, time_limit_s: float) -> str:
    """Why a cell was stopped, as a clause."""
    why = STOP_REASONS.get(reason, reason)
    return why + (f" of {time_limit_s:g} s" if reason == "time_limit" else "")


def death_sentence(report: ExitReport) -> str:
    """A kernel's unasked end."""
    sentence = f"The kernel {report.sentence()}."
    if report.cause is ExitCause.OUT_OF_MEMORY:
        sentence += " Use less memory at once, or ask the operator for a larger limit."
    return sentence


def fate_sentence(restore: RestoreReport | None) -> str:
    """What became of the variables when a new kernel took the place of one that ended.

    Args:
        restore: What the new kernel says it brought back.
    """
    if restore is None or restore.number is None:
        why = (
            f" (restoring failed: {restore.error})" if restore is not None and restore.error else ""
        )
        return f"A new kernel takes its place. {LOST}{why}"
    missing = ", ".join(f"{name} ({reason})" for name, reason in restore.missing)
    tail = f" Missing: {missing}." if missing else ""
    return (
        f"A new kernel takes its place with {restore.names} variables as they were {_moment(restore)}, "
        f"{_age(restore.age_s)} before; what was changed since is lost.{tail} The files in /files are kept."
    )


def ended_unsaved(why: str) -> str:
    """What a session has lost by falling asleep."""
    return f"When the session fell asleep, {why}; what the checkpoint before has is kept."


def wake_sentence(session: str, restore: RestoreReport | None) -> str:
    """What a session has that was asleep."""
    if restore is None or restore.number is None:
        tail = "It has no variables"
        if restore is not None and restore.error:
            tail += f" (restoring failed: {restore.error})"
        return f"Session {session!r} was asleep and is awake again. {tail}; the files in /files are there."
    missing = ", ".join(f"{name} ({reason})" for name, reason in restore.missing)
    tail = f" Missing: {missing}." if missing else ""
    return (
        f"Session {session!r} was asleep and is awake again, with {restore.names} variables as they were "
        f"{_moment(restore)}, {_age(restore.age_s)} ago.{tail} The files in /files are there."
    )


def _moment(restore: RestoreReport) -> str:
    """When the variables were saved; before a kernel's first cell it has what it began with."""
    return f"after In[{restore.cell}]" if restore.cell else "when the last kernel began"


def restart_sentence(session: str, dropped: int, restore: RestoreReport | None) -> str:
    """What a restart did."""
    tail = f" {dropped} queued cells were dropped." if dropped else ""
    if restore is None or restore.number is None:
        fate = "All variables are gone; the files in /files are kept."
    else:
        fate = f"It has{fate_sentence(restore).removeprefix('A new kernel takes its place with')}"
    return f"Session {session!r} has a new kernel. {fate}{tail}"


def _age(seconds: float) -> str:
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def crash_loop_sentence(deaths: int, window_s: float, report: ExitReport) -> str:
    """Why a session gave up."""
    return (
        f"The kernel died {deaths} times within {window_s:.0f} s, the last time because it "
        f"{report.sentence()}. No new one was started."
    )
