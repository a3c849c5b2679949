"""`Life`: runs a session, from its first kernel to its end.

The only place that changes a session's kernel: it launches a container, serves cells on one
incarnation of the kernel after the other, and gives up after a crash loop until a restart is wished.

What it leaves behind: nothing, where the session was closed or never came up; everything but its
sockets' connection, where it is to stay. A session that is to stay and cannot be reached now (its
kernel computes, the engine is away, the caller went) stays as it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from sagebroker.config import BrokerConfig
from sagebroker.errors import BrokerError, KernelStartError, StorageError
from sagebroker.kernel import ladder
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.kernel import Kernel, Wire, open_kernel
from sagebroker.logs import event
from sagebroker.model import CellStatus, ExitCause, ExitReport, SessionState
from sagebroker.session import outcome
from sagebroker.session.cell import Cell
from sagebroker.session.desk import Desk, RestartWish
from sagebroker.session.fate import LIMIT_S as FATE_LIMIT_S
from sagebroker.session.fate import Fate
from sagebroker.session.launch import Launcher
from sagebroker.session.runner import CellRunner
from sagebroker.store.folders import SessionFolder

REVIVE_LIMIT_S = 10.0
"""Time the keeper has for a new kernel in place of one that had to be given up."""

ADOPT_LIMIT_S = 20.0
"""Time a kernel that an earlier broker left has to answer; one that computes does not."""

_POLL_S = 0.02

_log = logging.getLogger(__name__)


class Life:
    """See the module.

    Args:
        is_new: Whether this broker made the session, rather than finding one that stays.
        adopted: The container an earlier broker left running, where there is one.
        starts: Limits how many kernels start at once.
    """

    def __init__(
        self,
        desk: Desk,
        folder: SessionFolder,
        *,
        config: BrokerConfig,
        launcher: Launcher,
        wire: Wire,
        starts: anyio.Semaphore,
        is_new: bool,
        adopted: KernelHost | None,
    ) -> None:
        self._desk = desk
        self._folder = folder
        self._config = config
        self._launcher = launcher
        self._kernel_folder = launcher.kernel_folder(desk.record.id)
        self._runner = CellRunner(desk, folder, config)
        self._wire = wire
        self._starts = starts
        self._is_new = is_new
        self._adopted = adopted
        self._was_ready = False
        self._deaths: deque[float] = deque(maxlen=config.session.crash_limit)
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._end_wish: str | None = None
        self._fate = Fate()
        self._restore = True
        self._tg: TaskGroup
        self.is_removed = False
        """After the end: whether container and files are gone."""

    async def stop(self, *, detach: bool) -> None:
        """End it, and return when it has ended; with ``detach`` its container goes on.

        Of several wishes the first counts.
        """
        if self._end_wish is None:
            self._end_wish = "detach" if detach else "close"
        self._scope.cancel()
        await self._ended.wait()

    async def run(self, ready: TaskStatus[None]) -> None:
        """Live; ``ready`` is started when the first kernel answers.

        Raises:
            BrokerError: The first kernel did not come up.
        """
        try:
            with self._scope:
                async with anyio.create_task_group() as self._tg:
                    if not self._is_new and self._adopted is None:
                        self._fate.open("The container ended while nobody was connected.")
                        self._tg.start_soon(self._tell_fate_later, self._fate.cause)
                    await self._live(ready)
        except BaseExceptionGroup as group:
            # The task group is not the caller's business: one error arrives as itself.
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from group.exceptions[0].__cause__
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()

    @property
    def _stays(self) -> bool:
        """Whether it is to be left as it is at the end."""
        if self._end_wish is not None:
            return self._end_wish == "detach"
        return self._desk.record.keep if self._was_ready else not self._is_new

    async def _live(self, ready: TaskStatus[None]) -> None:
        while True:
            try:
                await self._in_container(ready)
            except BrokerError as error:
                if not self._was_ready:
                    raise
                await self._discard()
                await self._wait_for_restart(str(error))
            else:
                await self._discard()

    async def _in_container(self, ready: TaskStatus[None]) -> None:
        """Serve one incarnation after the other; returns when the container is used up."""
        self._desk.state = SessionState.STARTING
        await self._starts.acquire()
        is_starting = True
        try:
            is_adopted = self._adopted is not None
            host = self._desk.host = self._adopted or await self._launcher.launch(
                self._desk.record, self._folder, restore=self._restore
            )
            self._adopted = None
            while True:
                try:
                    async with self._open(host, is_adopted=is_adopted) as kernel:
                        if is_starting:
                            self._starts.release()
                            is_starting = False
                        await self._begin(kernel, ready, is_adopted=is_adopted)
                        is_adopted = False
                        await self._serve(kernel)
                    report = await kernel.wait_dead()
                except KernelStartError as error:
                    if error.report is None or not self._was_ready:
                        raise
                    report = error.report
                self._desk.kernel, self._desk.state = None, SessionState.STARTING
                if not await self._can_go_on(host, report):
                    return
        finally:
            if is_starting:
                self._starts.release()
            self._desk.kernel = None

    def _open(self, host: KernelHost, *, is_adopted: bool) -> AbstractAsyncContextManager[Kernel]:
        config = self._config.kernel
        return open_kernel(
            host,
            config,
            wire=self._wire,
            wire_id=self._desk.record.wire_id,
            session=self._desk.record.id,
            ready_limit_s=min(ADOPT_LIMIT_S, config.ready_limit_s)
            if is_adopted
            else config.ready_limit_s,
        )

    async def _begin(self, kernel: Kernel, ready: TaskStatus[None], *, is_adopted: bool) -> None:
        restore = await kernel.host.restored()
        if restore is not None and restore.generation != kernel.generation:
            restore = None
        fate = outcome.fate_sentence(restore)
        known = self._desk.record.generation
        if is_adopted and known and known != kernel.generation:
            self._desk.notices.append(f"While nobody was connected the kernel ended. {fate}")
        if self._fate.cause:
            self._desk.queue.warn_waiting(f"Before this cell ran: {self._fate.cause} {fate}")
            self._fate.settle(fate)
        await self._ask_restore(wanted=True)
        self._desk.kernel, self._desk.state, self._desk.note = kernel, SessionState.READY, ""
        self._desk.restored = restore
        if self._desk.record.keep:
            try:
                await self._save_record(generation=kernel.generation)
            except StorageError as error:
                self._desk.notices.append(str(error))
        if not self._was_ready:
            self._was_ready = True
            ready.started()
        if self._desk.restart is not None and self._desk.restart.began:
            self._deaths.clear()
            self._desk.restart.end()
            self._desk.restart = None

    async def _serve(self, kernel: Kernel) -> None:
        """Run cells until the kernel is dead."""
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._wake_on_death, kernel)
            while not kernel.is_dead:
                wake = self._desk.wake = anyio.Event()
                if self._desk.restart is not None:
                    await self._replace(kernel, self._desk.restart)
                    continue
                cell = self._desk.queue.take()
                if cell is None:
                    self._desk.state = SessionState.READY
                    await wake.wait()
                    continue
                end = await self._runner.run(kernel, cell)
                if end is not None:
                    self._fate.open(end[1])
                    self._tg.start_soon(self._finish_with_fate, cell, *end)
            tg.cancel_scope.cancel()

    async def _replace(self, kernel: Kernel, wish: RestartWish) -> None:
        await self._begin_restart(wish)
        done = await ladder.replace(kernel)
        if done.rung == ladder.UNDELIVERED:
            wish.end("The container engine does not answer; the kernel was left as it is.")
            self._desk.restart = None

    async def _begin_restart(self, wish: RestartWish) -> None:
        wish.began = True
        await self._ask_restore(wanted=wish.restore)

    async def _ask_restore(self, *, wanted: bool) -> None:
        self._restore = wanted
        try:
            await anyio.to_thread.run_sync(
                partial(self._kernel_folder.ask_restore, "newest" if wanted else "none")
            )
        except BrokerError as error:
            # No reason to give a kernel up: what it brings back is told truthfully in any case.
            _log.warning("Session %s: %s", self._desk.record.id, error)

    async def _wake_on_death(self, kernel: Kernel) -> None:
        report = await kernel.wait_dead()
        cause = outcome.death_sentence(report)
        self._fate.open(cause)
        if self._desk.current is None and self._desk.restart is None:
            self._tg.start_soon(self._tell_fate_later, f"While no cell ran: {cause}")
        self._desk.wake.set()

    async def _tell_fate_later(self, before: str) -> None:
        """Have the next answer say what became of the variables."""
        self._desk.notices.append(f"{before} {await self._fate.told(math.inf)}".strip())

    async def _finish_with_fate(self, cell: Cell, status: CellStatus, sentence: str) -> None:
        """End a cell whose kernel is dead as soon as it can be said what is back."""
        fate = ""
        try:
            fate = await self._fate.told(FATE_LIMIT_S)
            if not fate:
                self._tg.start_soon(self._tell_fate_later, "")
        finally:
            whole = f"{sentence} {fate or outcome.FATE_PENDING}"
            cell.notices.append(whole)
            self._desk.losses.append((cell, whole))
            cell.finish(status)

    async def _can_go_on(self, host: KernelHost, report: ExitReport) -> bool:
        """After a death: whether the container's next kernel may serve.

        Raises:
            KernelStartError: Too many deaths in a short time.
        """
        if report.cause is not ExitCause.REPLACED:
            self._count_death(report)
        if report.cause is ExitCause.CONTAINER_GONE:
            return False
        status = await host.status()
        if report.cause in (ExitCause.HOSTILE, ExitCause.UNKNOWN) and (
            status is None or status.generation <= report.generation
        ):
            # Nobody has seen it end: it may still run.
            await host.replace()
        with anyio.move_on_after(REVIVE_LIMIT_S):
            while True:
                status = await host.status()
                if status is not None and status.generation > report.generation:
                    return True
                await anyio.sleep(_POLL_S)
        return False

    def _count_death(self, report: ExitReport) -> None:
        limits = self._config.session
        now = time.monotonic()
        self._deaths.append(now)
        recent = [at for at in self._deaths if now - at <= limits.crash_window_s]
        if len(recent) >= limits.crash_limit:
            raise KernelStartError(
                outcome.crash_loop_sentence(len(recent), limits.crash_window_s, report)
            )

    async def _wait_for_restart(self, why: str) -> None:
        """Stay without a kernel until somebody wants a new one."""
        self._desk.state, self._desk.note = SessionState.FAILED, why
        self._desk.queue.drop_all("failed", f"The cell was not run: {why}")
        _log.warning(
            "Session %s: %s",
            self._desk.record.id,
            why,
            extra=event("session.failed", session=self._desk.record.id),
        )
        if self._desk.restart is not None and self._desk.restart.began:
            self._desk.restart.end(why)
            self._desk.restart = None
        self._fate.settle(f"{outcome.UNREVIVED} {why}")
        while self._desk.restart is None:
            self._desk.wake = anyio.Event()
            await self._desk.wake.wait()
        await self._begin_restart(self._desk.restart)
        self._deaths.clear()

    async def _discard(self) -> bool:
        """Remove the container; False where that has to be tried again."""
        self._desk.host = None
        try:
            await self._launcher.discard(self._desk.record.id)
        except BrokerError as error:
            # The sweep of orphans tries again; the keeper's lease ends what it cannot reach.
            _log.warning(
                "The container of session %s is not removed yet: %s", self._desk.record.id, error
            )
            return False
        return True

    async def _end(self) -> None:
        """Leave behind what is to stay, and nothing else."""
        self._desk.state = SessionState.CLOSED
        self._desk.queue.drop_all("closed", outcome.NOT_RUN)
        if self._desk.restart is not None:
            self._desk.restart.end(f"The session {self._desk.record.name!r} has been closed.")
        try:
            if self._stays:
                await self._save_record(generation=self._desk.record.generation)
            elif await self._discard():
                await anyio.to_thread.run_sync(self._folder.delete)
                self.is_removed = True
            else:
                self._desk.record = replace(self._desk.record, keep=False)
                await self._save_record(generation=0)
        except BrokerError as error:
            _log.warning("Session %s did not end cleanly: %s", self._desk.record.id, error)
        finally:
            self._folder.unlock()
            self._ended.set()

    async def _save_record(self, *, generation: int) -> None:
        """Write down what a later broker needs to go on."""
        told_later = [f"Cell {c.number}: {s}" for c, s in self._desk.losses if not c.told]
        self._desk.record = replace(
            self._desk.record,
            next_cell=self._desk.queue.next_number,
            generation=generation,
            notices=(*self._desk.notices, *told_later),
        )
        await anyio.to_thread.run_sync(self._folder.write, self._desk.record)
