"""Waiting for a cell or a kernel on behalf of a caller: progress while it lasts, cancellation heeded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from sagebroker.errors import BrokerError
from sagebroker.racing import first
from sagebroker.server.callers import broker_of

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from sagebroker.session.cell import Cell
    from sagebroker.session.session import Session
    from sagebroker.users import Users

FIRST_PROGRESS_S: Final = 1.0
"""Before the first progress notification; most cells have ended by then."""
PROGRESS_INTERVAL_S: Final = 5.0
"""Between later ones; clients that time out by silence wait 60 s or more."""
CANCEL_LIMIT_S: Final = 0.5
"""For a cancelled call to see its cell stopped. The wish is left at once and carried out by the
session's own task; nobody reads the answer of a cancelled call, and a client that closes kills
the server 2 s later."""

T = TypeVar("T")


async def with_progress(
    ctx: Context[Users], describe: Callable[[], str], work: Callable[[], Awaitable[T]]
) -> T:
    """Do ``work`` and report progress meanwhile, if the client asked for it.

    Args:
        ctx: The call; its client gets seconds as progress, strictly increasing.
        describe: What goes on, for instance ``cell 7 running``; the seconds are added.
        work: What to wait for.

    Raises:
        BrokerError: What ``work`` raised.
    """
    failure: BrokerError | None = None
    result: list[T] = []
    async with anyio.create_task_group() as tg:
        tg.start_soon(_report, ctx, describe)
        try:
            result.append(await work())
        except BrokerError as error:
            # Carried out of the task group, which would wrap it.
            failure = error
        tg.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result[0]


async def awake(ctx: Context[Users], name: str) -> Session:
    """The named session, woken if it sleeps. Raises `BrokerError`."""
    broker = await broker_of(ctx)
    return await with_progress(ctx, lambda: "waking the session,", lambda: broker.awake(name))


async def wait_for_cell(ctx: Context[Users], session: Session, cell: Cell, wait_s: float) -> None:
    """Wait until the cell ends or asks something, ``wait_s`` seconds have passed, or the server is ending."""
    if not cell.status.is_final and wait_s > 0:
        await wait_for_first(ctx, session, cell, partial(cell.wait_settled, wait_s))


async def wait_for_first(
    ctx: Context[Users], session: Session, cell: Cell, *works: Callable[[], Awaitable[object]]
) -> None:
    """Wait until the first of ``works`` has ended, or the server is ending.

    A cancelled call stops its cell: the person behind the client has pressed Stop. The ladder is
    climbed by the session; this call leaves the wish, waits a bounded moment and goes.
    """
    ending = ctx.request_context.lifespan_context.ending
    try:
        await with_progress(
            ctx,
            lambda: f"cell {cell.number} {cell.word}",
            lambda: first(*works, ending.wait),
        )
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(CANCEL_LIMIT_S, shield=True):
            await session.cancel(cell, "cancelled")
        raise


async def _report(ctx: Context[Users], describe: Callable[[], str]) -> None:
    began = anyio.current_time()
    delay = FIRST_PROGRESS_S
    while True:
        await anyio.sleep(delay)
        delay = PROGRESS_INTERVAL_S
        seconds = anyio.current_time() - began
        await ctx.report_progress(round(seconds, 3), None, f"{describe()} {seconds:.0f} s")
