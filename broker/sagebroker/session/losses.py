"""`Losses`: has everybody told what the end of a kernel has cost, as soon as that is known."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING

from sagebroker.errors import BrokerError
from sagebroker.session import outcome
from sagebroker.session.fate import LIMIT_S as FATE_LIMIT_S
from sagebroker.session.fate import Fate

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from sagebroker.kernel.kernel import Kernel
    from sagebroker.model import CellStatus
    from sagebroker.session.cell import Cell
    from sagebroker.session.desk import Desk
    from sagebroker.session.saving import RowKeeper

_log = logging.getLogger(__name__)

CellEnd = tuple["CellStatus", str]
"""Status and a sentence about the cause."""


class Losses:
    """See the module.

    Args:
        desk: Where sentences for the next answers are put.
        keeper: Notes the deaths.
    """

    def __init__(self, desk: Desk, keeper: RowKeeper) -> None:
        self._desk = desk
        self._keeper = keeper
        self._fate = Fate()
        self.tg: TaskGroup
        """Where those wait who tell later."""

    def open(self, cause: str) -> None:
        """A kernel has ended; what became of the variables will be said."""
        self._fate.open(cause)

    def news(self, fate: str) -> str:
        """What has happened to the kernel, and to the variables; empty where it has not ended."""
        return f"{self._fate.cause} {fate}" if self._fate.cause else ""

    def settle(self, fate: str) -> None:
        """It is known what became of the variables; cells that wait are told, too."""
        if self._fate.cause:
            self._desk.queue.warn_waiting(f"Before this cell ran: {self._fate.cause} {fate}")
        self._fate.settle(fate)

    def tell_later(self, before: str) -> None:
        """Have the next answer say ``before`` and what became of the variables."""
        self.tg.start_soon(self._tell, before)

    def finish(self, cell: Cell, end: CellEnd) -> None:
        """End a cell under which the kernel has died, as soon as it can be said what is back."""
        self.tg.start_soon(self._finish, cell, *end)

    async def watch(self, kernel: Kernel) -> None:
        """Note the kernel's end, and wake the session's life for it."""
        report = await kernel.wait_dead()
        cause = outcome.death_sentence(report)
        self.open(cause)
        if self._desk.current is None and self._desk.restart is None:
            self.tell_later(f"While no cell ran: {cause}")
        self._desk.wake.set()
        detail = {"cause": report.cause.value, "generation": report.generation}
        self.tg.start_soon(partial(self._keeper.note, "kernel.died", **detail))

    async def _tell(self, before: str) -> None:
        self._desk.notices.append(f"{before} {await self._fate.told(math.inf)}".strip())
        # On disk, too: a broker that is killed before anybody asks must not take it along.
        try:
            await self._keeper.change(notices=tuple(self._desk.untold()))
        except BrokerError as error:
            _log.warning("Session %s: %s", self._keeper.row.id, error)

    async def _finish(self, cell: Cell, status: CellStatus, sentence: str) -> None:
        fate = ""
        try:
            fate = await self._fate.told(FATE_LIMIT_S)
            if not fate:
                self.tell_later("")
        finally:
            whole = f"{sentence} {fate or outcome.FATE_PENDING}"
            cell.notices.append(whole)
            self._desk.losses.append((cell, whole))
            cell.finish(status)
