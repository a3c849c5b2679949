"""The interrupt ladder: the one road by which a running cell is stopped.

SIGINT, repeated; then the keeper kills everything but itself and forks a new kernel; then, if the
keeper is silent, the container is given up. Interrupt *messages* are never sent: they need the
GIL, and a late one hits the next cell. The ladder ends only when what it sent has arrived, so that
it cannot hit the next cell either. An engine that passes nothing on is no reason to give a kernel
up: then the outcome is `UNDELIVERED`, and the cell runs on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from sagebroker.errors import ContainerError, KernelError
from sagebroker.model import LadderOutcome

if TYPE_CHECKING:
    from sagebroker.kernel.kernel import Kernel

UNDELIVERED = "undelivered"
"""The rung of an outcome where the engine passed no signal on."""

REPLACE_LIMIT_S = 3.0
"""The keeper kills and forks in 0.3 s; a keeper silent for ten times that is given up."""

ARRIVAL_LIMIT_S = 0.5
"""The keeper passes a signal on, and says so, within milliseconds."""

ANSWER_LIMIT_S = 5.0
"""A kernel whose cell has ended answers within milliseconds; seconds on a loaded machine."""

_ARRIVAL_POLL_S = 0.01

_log = logging.getLogger(__name__)


async def climb(
    kernel: Kernel, ended: Callable[[], Awaitable[None]], waits_s: tuple[float, ...]
) -> LadderOutcome:
    """Stop what runs in ``kernel``; returns when it has ended, one way or another.

    Args:
        kernel: The incarnation that runs the cell.
        ended: Returns when the cell has ended, well or not, or the kernel has died.
        waits_s: Seconds after each SIGINT; when the last have passed, the kernel is replaced.
    """
    began = time.monotonic()
    before = kernel.interrupts_passed_on
    sent = 0
    for wait_s in waits_s:
        if await _delivered(kernel.host.interrupt):
            sent += 1
        with anyio.move_on_after(wait_s) as waiting:
            await ended()
        if waiting.cancelled_caught:
            continue
        if kernel.is_dead:
            return _outcome("new_kernel", began, kept=False)
        if await _fence(kernel, before + sent):
            return _outcome("sigint", began, kept=True)
        break
    return await _replace(kernel, began)


async def replace(kernel: Kernel) -> LadderOutcome:
    """Go to the last rungs at once: a new kernel, whatever runs."""
    return await _replace(kernel, time.monotonic())


async def _replace(kernel: Kernel, began: float) -> LadderOutcome:
    delivered = kernel.is_dead or await _delivered(kernel.host.replace)
    with anyio.move_on_after(REPLACE_LIMIT_S):
        await kernel.wait_dead()
        return _outcome("new_kernel", began, kept=False)
    if not delivered:
        return _outcome(UNDELIVERED, began, kept=True)
    kernel.give_up("the keeper did not answer")
    return _outcome("new_container", began, kept=False)


async def _delivered(send: Callable[[], Awaitable[bool]]) -> bool:
    """Whether the engine took a signal. That nobody is there to get it (False) is the watch's business."""
    try:
        return await send()
    except ContainerError as error:
        _log.warning("The engine passed no signal on: %s", error)
        return False


async def _fence(kernel: Kernel, expected: int) -> bool:
    """Wait until every signal has arrived and the kernel's main thread answers again.

    An arrival that is not told in time is no reason to give a kernel up; one that does not answer is.
    """
    with anyio.move_on_after(ARRIVAL_LIMIT_S):
        while kernel.interrupts_passed_on < expected and not kernel.is_dead:
            await anyio.sleep(_ARRIVAL_POLL_S)
            await kernel.look()
    with anyio.move_on_after(ANSWER_LIMIT_S):
        try:
            await kernel.wait_answering()
        except KernelError as error:
            _log.warning("The kernel does not answer after an interrupt: %s", error)
            return False
        return not kernel.is_dead
    return False


def _outcome(rung: str, began: float, *, kept: bool) -> LadderOutcome:
    return LadderOutcome(
        rung=rung, elapsed_ms=(time.monotonic() - began) * 1000.0, variables_kept=kept
    )
