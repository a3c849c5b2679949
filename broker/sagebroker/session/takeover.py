"""`Takeover`: what becomes of the cell that ran when an earlier broker ended.

A cell is sent once at most: its row was stored before, so whatever is not certain is told as such,
never tried again. Where its kernel still runs it is followed to its end; else its kernel's journal
tells how far it came.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.errors import BrokerError
from sagebroker.kernel.journal import JournalReader
from sagebroker.model import CellStatus, ExitCause, ExitReport
from sagebroker.protocol.execution import Execution
from sagebroker.session import outcome
from sagebroker.session.queue import new_fold
from sagebroker.session.runner import journal_path, journal_written_at

if TYPE_CHECKING:
    from collections.abc import Set

    from sagebroker.config import BrokerConfig, SessionConfig
    from sagebroker.kernel.folders import KernelFolder
    from sagebroker.kernel.kernel import Kernel
    from sagebroker.protocol.messages import Message
    from sagebroker.session.cell import Cell
    from sagebroker.session.losses import CellEnd, Losses
    from sagebroker.session.runner import CellRunner
    from sagebroker.session.transcript import Transcript
    from sagebroker.store.folders import SessionFolder


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What a journal says of one cell."""

    execution: Execution
    messages: list[Message]
    is_begun: bool
    """The kernel has begun with it: the journal is about it."""
    is_incomplete: bool
    """Something the cell has published is not in it."""

    @property
    def has_ended(self) -> bool:
        """Whether the cell came to its end."""
        return self.execution.reply is not None


class Takeover:
    """See the module."""

    def __init__(
        self,
        folder: SessionFolder,
        kernel_folder: KernelFolder,
        *,
        config: BrokerConfig,
        runner: CellRunner,
        transcript: Transcript,
        losses: Losses,
        earlier: Set[str],
    ) -> None:
        self._earlier = earlier
        """Ids of the requests of the cells before."""
        self._folder = folder
        self._kernel_folder = kernel_folder
        self._config = config
        self._runner = runner
        self._transcript = transcript
        self._losses = losses

    async def go_on(self, kernel: Kernel, cell: Cell, fate: str) -> CellEnd | None:
        """Go on with ``cell`` on the kernel that serves now; returns as `CellRunner.run`.

        Args:
            kernel: Perhaps the one it was sent to, which may compute and not have answered yet.
            cell: The one that was sent.
            fate: What became of the variables if this is another kernel.
        """
        if cell.generation != kernel.generation:
            report = await _report_of(kernel, cell.generation)
            self._losses.open(outcome.death_sentence(report))
            self._losses.settle(fate)
            await self.conclude(cell, report)
            return None
        answers = False
        if await self._begun_cell(kernel) != cell.msg_id:
            # Perhaps it is on its way still: then it is before what the kernel answers now.
            answers = await self.wait_ready(kernel)
        begun = await self._begun_cell(kernel)
        if begun == cell.msg_id:
            end = await self._runner.follow(kernel, cell)
            if end is not None:
                return end
        else:
            # A later cell, of which the store knows nothing, may have come after it.
            is_known = begun in self._earlier if begun else begun is not None
            never = answers and is_known
            cell.notices.append(outcome.NEVER_BEGUN if never else outcome.UNKNOWN_END)
            cell.finish(CellStatus.INTERRUPTED)
        await self.wait_ready(kernel)
        return None

    async def conclude(self, cell: Cell, report: ExitReport) -> None:
        """End a cell whose kernel ended while nobody was connected, by what its journal tells."""
        left = await self._traces(cell)
        self._take(cell, left)
        sentence = outcome.death_sentence(report)
        if left.has_ended:
            status, why = outcome.conclusion(cell, left.execution, None)
            cell.notices += [why] if why else []
            ended_at = await anyio.to_thread.run_sync(journal_written_at, self._folder)
            cell.finish(status, ended_at)
            self._losses.tell_later(f"After cell {cell.number}: {sentence}")
        else:
            cell.exit = report
            self._losses.finish(cell, (CellStatus.DIED, sentence))

    def _take(self, cell: Cell, left: Traces) -> None:
        """Give a cell what is left of it."""
        execution = left.execution
        if left.is_begun:
            cell.outputs = execution.outputs
            self._transcript.replace_outputs(cell)
            for message in left.messages:
                self._transcript.add(cell, message)
            cell.take(execution)
        cell.output_lost = left.is_incomplete or not left.has_ended

    async def _begun_cell(self, kernel: Kernel) -> str | None:
        """Id of the request with which the newest cell has begun; empty for none, None if nobody knows."""
        reader = JournalReader(journal_path(self._folder), kernel.host.connection.key)
        await anyio.to_thread.run_sync(reader.read_new)
        return None if reader.is_broken and not reader.msg_id else reader.msg_id

    async def _traces(self, cell: Cell) -> Traces:
        try:
            connection = await anyio.to_thread.run_sync(self._kernel_folder.load)
        except BrokerError:
            # Gone with the machine's runtime folder: nobody can tell whether the journal is the kernel's.
            execution = Execution(cell.msg_id, cell.outputs)
            return Traces(execution=execution, messages=[], is_begun=False, is_incomplete=True)
        reader = JournalReader(journal_path(self._folder), connection.key)
        return await anyio.to_thread.run_sync(
            partial(_read, cell.msg_id, reader, self._config.session)
        )

    async def wait_ready(self, kernel: Kernel) -> bool:
        """Wait for a kernel that was not asked yet to answer; one that does not is replaced later."""
        with anyio.move_on_after(self._config.kernel.ready_limit_s):
            try:
                await kernel.wait_ready()
            except BrokerError:
                return False
            return not kernel.is_dead
        return False


async def _report_of(kernel: Kernel, generation: int) -> ExitReport:
    """How an earlier incarnation has ended, as far as the keeper knows."""
    status = await kernel.host.status()
    if status is None:
        return ExitReport(cause=ExitCause.UNKNOWN, generation=generation)
    return status.exit_of(generation, kernel.host.memory_limit_bytes)


def _read(msg_id: str, reader: JournalReader, limits: SessionConfig) -> Traces:
    execution = Execution(msg_id, new_fold(limits))
    found: list[Message] = []
    while messages := reader.read_new():
        found += messages
        if reader.is_at_end:
            break
    is_begun = reader.msg_id == msg_id
    for message in found if is_begun else ():
        execution.feed(message, time.monotonic())
    return Traces(
        execution=execution,
        messages=found if is_begun else [],
        is_begun=is_begun,
        is_incomplete=reader.is_broken or reader.is_truncated,
    )
