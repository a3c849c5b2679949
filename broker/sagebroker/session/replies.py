"""What Jupyter clients are replied where the kernel says nothing; no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sagebroker.model import CellStatus

if TYPE_CHECKING:
    from sagebroker.errors import BrokerError
    from sagebroker.model import LadderOutcome
    from sagebroker.session.cell import Cell
    from sagebroker.session.session import Session


ABORTED: Final[dict[str, Any]] = {"status": "aborted", "execution_count": 0}
"""The content of a reply to a request that was not run because one before it has failed."""


def type_of(request: str) -> str:
    """The type of the reply to a request of this type."""
    return request.removesuffix("_request") + "_reply"


def error(name: str, text: str) -> dict[str, Any]:
    """The content of a reply that tells an error."""
    return {"status": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}


def failure(problem: BrokerError) -> dict[str, Any]:
    """The content of a reply to what the broker could not do."""
    return error(type(problem).__name__, str(problem))


def unsupported(what: str) -> dict[str, Any]:
    """The content of a reply to a request that nobody here understands."""
    return error("UnsupportedRequest", f"{what} is not supported by this kernel.")


def of_cell(cell: Cell) -> dict[str, Any]:
    """The content of an ``execute_reply`` to a cell that has ended and to which the kernel has not replied."""
    if cell.status is CellStatus.OK:
        return {
            "status": "ok",
            "execution_count": cell.execution_count or 0,
            "user_expressions": {},
            "payload": [],
        }
    if cell.stop_reason == "aborted":
        return ABORTED
    if cell.failure is not None:
        content = {
            "status": "error",
            "ename": cell.failure.ename,
            "evalue": cell.failure.evalue,
            "traceback": list(cell.failure.traceback),
        }
    else:
        died = cell.status is CellStatus.DIED
        told = " ".join(cell.notices) or "The cell was stopped."
        content = error("KernelDied" if died else "KeyboardInterrupt", told)
    return content | {"execution_count": cell.execution_count or 0}


def interrupted(done: LadderOutcome | None) -> str:
    """What an interrupt came to, in a sentence."""
    if done is None:
        return "Nothing ran."
    if done.variables_kept:
        return f"Stopped after {done.elapsed_ms / 1000:.1f} s; all variables are kept."
    return f"Stopped after {done.elapsed_ms / 1000:.1f} s, by a new kernel; the variables are those of the newest checkpoint."


def session_info(session: Session | None) -> dict[str, Any]:
    """What a session is and does."""
    if session is None:
        return {"status": "ok", "state": "hibernated", "note": "", "generation": 0, "software": ""}
    info = session.info()
    return {
        "status": "ok",
        "name": info.name,
        "id": info.id,
        "state": info.state.value,
        "note": info.note,
        "generation": info.kernel_generation,
        "software": "" if session.kernel is None else session.kernel.software,
    }
