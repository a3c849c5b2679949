"""`CellRunner`: runs one cell on one kernel, within its limits, and draws the conclusion."""

from __future__ import annotations

import logging

import anyio
import anyio.to_thread

from sagebroker.config import BrokerConfig
from sagebroker.errors import KernelError
from sagebroker.kernel import ladder
from sagebroker.kernel.journal import JOURNAL_LIMIT_BYTES
from sagebroker.kernel.kernel import Kernel, RunningCell
from sagebroker.logs import event
from sagebroker.model import CellStatus, ExitReport
from sagebroker.session import outcome
from sagebroker.session.cell import Cell
from sagebroker.session.desk import Desk
from sagebroker.session.files import used_bytes
from sagebroker.store.folders import SessionFolder

FILES_LOOK_INTERVAL_S = 2.0
"""Time between counts of the session's files while a cell runs."""

STOP_RETRY_S = 5.0
"""Time between attempts to stop a cell while the engine passes no signal on."""

_log = logging.getLogger(__name__)


class CellRunner:
    """Takes cells from the desk to a kernel."""

    def __init__(self, desk: Desk, folder: SessionFolder, config: BrokerConfig) -> None:
        self._desk = desk
        self._folder = folder
        self._config = config
        self._climbing = False

    async def run(self, kernel: Kernel, cell: Cell) -> tuple[CellStatus, str] | None:
        """Run ``cell`` to its end.

        Returns:
            None when the cell is finished or back in the queue. Where the kernel died under it, its
            status and a sentence about the cause: it is to be finished when it is known what became
            of the variables.
        """
        self._desk.begin_cell(cell)
        self._climbing = False
        try:
            async with kernel.executing(cell.code, cell.outputs) as running:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(self._enforce, kernel, cell, running, tg.cancel_scope)
                    tg.start_soon(self._watch_files, cell)
                    await running.wait_ended()
                    if not self._climbing:
                        tg.cancel_scope.cancel()
                return self._conclude(cell, running, kernel.exit)
        except KernelError as error:
            self._unsent(kernel, cell, error)
        except BaseException:
            cell.stop_reason = "closed"
            cell.notices.append(outcome.CLOSED)
            cell.finish(CellStatus.INTERRUPTED)
            raise
        finally:
            self._desk.end_cell()
        return None

    def _unsent(self, kernel: Kernel, cell: Cell, error: KernelError) -> None:
        """The kernel is dead or takes nothing: the cell is next again, a few times."""
        cell.attempts += 0 if kernel.is_dead else 1
        if cell.attempts < outcome.UNSENT_LIMIT:
            self._desk.queue.put_back(cell)
            kernel.suspect()
        else:
            cell.notices.append(f"The cell was not run: {error}")
            cell.finish(CellStatus.DIED)

    async def _enforce(
        self, kernel: Kernel, cell: Cell, running: RunningCell, scope: anyio.CancelScope
    ) -> None:
        """Climb the ladder when the time limit has passed or somebody wishes it."""
        with anyio.move_on_after(cell.time_limit_s):
            await self._desk.stop_wanted.wait()
        while not running.has_ended:
            self._climbing = True
            reason, hard = self._desk.stop or ("time_limit", False)
            cell.stop_reason = reason
            if hard:
                done = await ladder.replace(kernel)
            else:
                waits_s = self._config.kernel.sigint_waits_s
                done = await ladder.climb(kernel, running.wait_ended, waits_s)
            if done.rung != ladder.UNDELIVERED:
                cell.ladder = done
                break
            if outcome.UNDELIVERED not in cell.notices:
                cell.notices.append(outcome.UNDELIVERED)
            with anyio.move_on_after(STOP_RETRY_S):
                await running.wait_ended()
        if self._climbing:
            scope.cancel()

    async def _watch_files(self, cell: Cell) -> None:
        limit = self._config.container.files_bytes
        checkpoint = self._config.checkpoint
        # Nothing but the kernel's checkpoints and journal has to be there; user code can write, too.
        checkpoints_limit = (checkpoint.keep + 1) * checkpoint.limit_bytes + JOURNAL_LIMIT_BYTES
        while not cell.status.is_final:
            await anyio.sleep(FILES_LOOK_INTERVAL_S)
            used = await anyio.to_thread.run_sync(
                lambda: used_bytes(self._folder.files, enough=limit), abandon_on_cancel=True
            )
            saved = await anyio.to_thread.run_sync(
                lambda: used_bytes(self._folder.checkpoints, enough=checkpoints_limit),
                abandon_on_cancel=True,
            )
            if used > limit or saved > checkpoints_limit:
                self._desk.want_stop("files_full")
                return

    def _conclude(
        self, cell: Cell, running: RunningCell, exit_report: ExitReport | None
    ) -> tuple[CellStatus, str] | None:
        execution = running.execution
        cell.failure = execution.failure
        cell.execution_count = execution.execution_count
        cell.payload_text = execution.payload
        cell.reply_lost, cell.output_lost = execution.reply_lost, running.output_lost
        cell.exit = exit_report
        status = outcome.final_status(execution, cell.ladder, exit_report)
        sentence = outcome.end_sentence(cell, status, exit_report)
        _log.info(
            "Cell %d of session %s: %s",
            cell.number,
            self._desk.record.id,
            status,
            extra=event(
                "cell.finished", session=self._desk.record.id, cell=cell.number, status=status.value
            ),
        )
        if exit_report is not None:
            return status, sentence
        cell.notices += [sentence] if sentence else []
        cell.finish(status)
        return None
