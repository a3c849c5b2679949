"""`CellRunner`: runs one cell on one kernel, within its limits, and draws the conclusion."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.errors import BrokerError, KernelError
from sagebroker.kernel import ladder
from sagebroker.kernel.channels import ChannelSet
from sagebroker.kernel.checkpoints import LABELLED_LIMIT
from sagebroker.kernel.journal import JOURNAL_FILE, JOURNAL_LIMIT_BYTES, JournalReader
from sagebroker.logs import event
from sagebroker.model import CellStatus, ExitReport, monotonic
from sagebroker.protocol.execution import input_wanted
from sagebroker.session import outcome
from sagebroker.session.files import used_bytes
from sagebroker.session.missed import find_missed
from sagebroker.session.queue import new_fold

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from sagebroker.config import BrokerConfig
    from sagebroker.kernel.kernel import Kernel
    from sagebroker.kernel.running import RunningCell
    from sagebroker.protocol.messages import Message
    from sagebroker.session.cell import Cell
    from sagebroker.session.desk import Desk
    from sagebroker.session.transcript import Transcript
    from sagebroker.store.folders import SessionFolder

FILES_LOOK_INTERVAL_S = 2.0
"""Time between counts of the session's files while a cell runs."""

STOP_RETRY_S = 5.0
"""Time between attempts to stop a cell while the engine passes no signal on."""

_log = logging.getLogger(__name__)


def journal_path(folder: SessionFolder) -> Path:
    """Where a session's kernel keeps its journal."""
    return folder.checkpoints / JOURNAL_FILE


def journal_written_at(folder: SessionFolder) -> float | None:
    """The monotonic second at which that was written last; None where there is none. Blocks."""
    try:
        return monotonic(journal_path(folder).stat().st_mtime)
    except OSError:
        return None


class CellRunner:
    """Takes cells from the desk to a kernel."""

    def __init__(
        self,
        desk: Desk,
        folder: SessionFolder,
        config: BrokerConfig,
        transcript: Transcript,
        session: str,
    ) -> None:
        self._desk = desk
        self._folder = folder
        self._config = config
        self._transcript = transcript
        self._session = session
        self._climbing = False

    async def run(self, kernel: Kernel, cell: Cell) -> tuple[CellStatus, str] | None:
        """Run ``cell`` to its end.

        Returns:
            None when the cell is finished or back in the queue. Where the kernel died under it, its
            status and a sentence about the cause: it is to be finished when it is known what became
            of the variables.
        """
        if cell.status.is_final:
            return None
        self._desk.begin_cell(cell)
        request = cell.request
        msg_id = ChannelSet.new_msg_id() if request is None else request.msg_id
        cell.start(msg_id, kernel.generation)
        try:
            if not await self._is_noted(cell) or self._is_dropped(cell):
                return None
            sending = kernel.executing(
                cell.code,
                cell.outputs,
                msg_id=cell.msg_id,
                on_message=partial(self._hear, cell),
                request=request,
            )
            return await self._to_its_end(kernel, cell, sending)
        except KernelError as error:
            self._unsent(kernel, cell, error)
        finally:
            self._desk.end_cell()
        return None

    async def follow(self, kernel: Kernel, cell: Cell) -> tuple[CellStatus, str] | None:
        """Go on with a cell that an earlier broker has sent; returns as `run`."""
        self._desk.begin_cell(cell)
        cell.outputs = new_fold(self._config.session)
        self._transcript.replace_outputs(cell)
        following = kernel.following(
            journal_path(self._folder),
            cell.outputs,
            msg_id=cell.msg_id,
            on_message=partial(self._hear, cell),
        )
        try:
            return await self._to_its_end(kernel, cell, following, is_followed=True)
        finally:
            self._desk.end_cell()

    def _hear(self, cell: Cell, message: Message) -> None:
        """Take what comes of a cell, beside its execution."""
        if message.channel == "stdin":
            cell.ask(input_wanted(message))
        if not cell.is_silent:
            self._transcript.add(cell, message)

    async def _to_its_end(
        self,
        kernel: Kernel,
        cell: Cell,
        executing: AbstractAsyncContextManager[RunningCell],
        *,
        is_followed: bool = False,
    ) -> tuple[CellStatus, str] | None:
        self._climbing = False
        ended_at = None
        try:
            async with executing as running:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(self._enforce, kernel, cell, running, tg.cancel_scope)
                    tg.start_soon(self._watch_files, cell)
                    if not (is_followed or cell.is_silent):
                        key = kernel.host.connection.key
                        journal = JournalReader(journal_path(self._folder), key)
                        tg.start_soon(find_missed, kernel, cell, journal)
                    await running.wait_ended()
                    if not self._climbing:
                        tg.cancel_scope.cancel()
                if is_followed:
                    # It may have ended long before anybody was here to see it.
                    ended_at = await anyio.to_thread.run_sync(journal_written_at, self._folder)
                return self._conclude(cell, running, kernel.exit, ended_at)
        except KernelError:
            raise
        except BaseException:
            # The session ends, and knows whether the kernel goes on with it.
            self._desk.abandoned = cell
            raise

    async def _is_noted(self, cell: Cell) -> bool:
        """Have it on disk that ``cell`` is being sent; whether it may be.

        A cell of which the store says that it waits would be run again by the next broker.
        """
        if cell.is_silent:
            return True
        try:
            await self._transcript.write()
        except BrokerError as error:
            if cell.is_stored or self._transcript.may_hold(cell):
                cell.notices.append(f"{outcome.NOT_RUN} {error} Send it again after that.")
                cell.finish(CellStatus.INTERRUPTED)
                return False
        return True

    def _unsent(self, kernel: Kernel, cell: Cell, error: KernelError) -> None:
        """The kernel is dead or takes nothing: the cell is next again, a few times."""
        cell.attempts += 0 if kernel.is_dead else 1
        if self._is_dropped(cell):
            return
        if cell.attempts < outcome.UNSENT_LIMIT:
            self._desk.queue.put_back(cell)
            kernel.suspect()
        else:
            cell.notices.append(f"The cell was not run: {error}")
            cell.finish(CellStatus.DIED)

    def _is_dropped(self, cell: Cell) -> bool:
        """Whether somebody has wished a cell stopped that was not sent yet: it is ended unrun."""
        if self._desk.stop is None:
            return False
        cell.requeue()
        self._desk.queue.drop(cell, self._desk.stop[0], outcome.NOT_RUN)
        return True

    async def _enforce(
        self, kernel: Kernel, cell: Cell, running: RunningCell, scope: anyio.CancelScope
    ) -> None:
        """Climb the ladder when the time limit has passed or somebody wishes it."""
        with anyio.move_on_after(max(0.0, cell.time_limit_s - cell.elapsed_s)):
            await self._desk.stop_wanted.wait()
        while not running.has_ended:
            self._climbing = True
            reason, hard = self._desk.stop or ("time_limit", False)
            if cell.stop_reason != reason:
                # On disk soon: if this broker is killed, the next one knows why the cell ended.
                cell.stop_reason = reason
                cell.on_change(cell)
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
        most = checkpoint.keep + LABELLED_LIMIT + 1
        checkpoints_limit = most * checkpoint.limit_bytes + JOURNAL_LIMIT_BYTES
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
        self,
        cell: Cell,
        running: RunningCell,
        exit_report: ExitReport | None,
        ended_at: float | None,
    ) -> tuple[CellStatus, str] | None:
        execution = running.execution
        cell.take(execution)
        cell.reply_lost, cell.output_lost = execution.reply_lost, running.output_lost
        cell.exit = exit_report
        if exit_report is None and not execution.ended(time.monotonic()):
            cell.notices.append(outcome.UNKNOWN_END)
            cell.finish(CellStatus.INTERRUPTED, ended_at)
            return None
        status, sentence = outcome.conclusion(cell, execution, exit_report)
        _log.info(
            "Cell %d of session %s: %s",
            cell.number,
            self._session,
            status,
            extra=event(
                "cell.finished", session=self._session, cell=cell.number, status=status.value
            ),
        )
        if exit_report is not None:
            return status, sentence
        cell.notices += [sentence] if sentence else []
        cell.finish(status, ended_at)
        return None
