"""Running cells in tests of sessions."""

from __future__ import annotations

import anyio

from sagebroker.session.cell import Cell
from sagebroker.session.session import Session

LIMIT_S = 120.0
"""A hang is told within this; nothing is measured by it."""


async def ended(session: Session, code: str, *, time_limit_s: float | None = None) -> Cell:
    """The cell of ``code``, when it has ended."""
    cell = session.submit(code, time_limit_s=time_limit_s)
    assert await cell.wait(LIMIT_S)
    return cell


async def started(session: Session, code: str) -> Cell:
    """The cell of ``code``, when the kernel runs it."""
    cell = session.submit("print('started', flush=True)\n" + code)
    with anyio.fail_after(LIMIT_S):
        while "started" not in cell.outputs.stdout.text(100):
            await anyio.sleep(0.01)
    return cell


def result(cell: Cell) -> str:
    """The text of a cell's value."""
    (output,) = [o for o in cell.outputs.displays if o.is_result]
    text = output.data["text/plain"]
    assert isinstance(text, str)
    return text
