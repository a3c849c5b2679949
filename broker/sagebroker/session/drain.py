"""The last things that a session does when its broker ends: stop what runs, save what can be saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

from sagebroker.model import SessionState
from sagebroker.session import outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sagebroker.config import HibernationConfig
    from sagebroker.session.cell import Cell
    from sagebroker.session.desk import Desk

END_STOP_LIMIT_S = 2.0
"""Time to stop a running cell when the broker ends: a client that closes kills the server 4 s later."""


class SleepWisher(Protocol):
    """Has the variables saved; returns why they are not, or what is lost."""

    def __call__(self, *, force: bool, final: bool) -> Awaitable[str]:
        """Ask for it."""
        ...


async def drain(
    desk: Desk,
    limits: HibernationConfig,
    cancel: Callable[[Cell, str], Awaitable[object]],
    save: SleepWisher,
) -> None:
    """Bring a session to rest; what could not be saved is put among the notices.

    Args:
        desk: The session's.
        limits: How long that may take.
        cancel: Stops a cell, for a reason.
        save: Has the variables saved.
    """
    desk.queue.drop_all("closed", outcome.NOT_RUN)
    cell = desk.current
    if cell is not None and not await cell.wait(limits.drain_s):
        with anyio.move_on_after(END_STOP_LIMIT_S):
            await cancel(cell, "closed")
    if desk.kernel is None or desk.current is not None:
        why = "a cell could not be stopped" if desk.current else "it had no kernel"
        desk.notices.append(outcome.ended_unsaved(why))
        return
    hindrance = "it took too long to save anything"
    with anyio.move_on_after(limits.save_limit_s + END_STOP_LIMIT_S):
        hindrance = await save(force=True, final=True)
    if hindrance and desk.state is not SessionState.CLOSED:
        desk.notices.append(outcome.ended_unsaved(hindrance))
