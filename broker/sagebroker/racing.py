"""`first`: waiting for one of several things."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def first(*works: Callable[[], Awaitable[object]]) -> None:
    """Wait until the first of ``works`` has ended; the others are cancelled."""
    async with anyio.create_task_group() as tg:

        async def run(work: Callable[[], Awaitable[object]]) -> None:
            await work()
            tg.cancel_scope.cancel()

        for work in works:
            tg.start_soon(run, work)
