"""`Life`: runs a session, from its first kernel to its end.

The only place that changes a session's kernel: it launches a container, or takes over the one that an
earlier broker has left, serves cells on one incarnation of the kernel after the other, and gives up
after a crash loop until a restart is wished.

What it leaves behind: nothing, where the session was closed or never came up; its saved variables and
files, where it sleeps; everything but its sockets' connection, where it is to stay. A session that
cannot be reached now (the engine is away, the caller went) stays as it is.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from sagebroker.errors import BrokerError, KernelStartError, StorageError, alone
from sagebroker.kernel.held import Wire
from sagebroker.kernel.kernel import Kernel, open_kernel
from sagebroker.kernel.start import wait_revived
from sagebroker.logs import event
from sagebroker.model import ExitCause, ExitReport, SessionState
from sagebroker.session import outcome
from sagebroker.session.deaths import DeathCount
from sagebroker.session.ending import End, Ending
from sagebroker.session.losses import Losses
from sagebroker.session.patience import RETRY_S, Patience
from sagebroker.session.runner import CellRunner
from sagebroker.session.takeover import Takeover
from sagebroker.session.wishes import Wishes

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from sagebroker.config import BrokerConfig
    from sagebroker.kernel.host import KernelHost
    from sagebroker.kernel.keeper import RestoreReport
    from sagebroker.session.cell import Cell
    from sagebroker.session.desk import Desk
    from sagebroker.session.found import Found
    from sagebroker.session.launch import Launcher
    from sagebroker.session.losses import CellEnd
    from sagebroker.session.saving import RowKeeper
    from sagebroker.session.transcript import Transcript

ADOPT_LIMIT_S = 20.0
"""Time a kernel that an earlier broker left has to answer; one that computes does not."""

_log = logging.getLogger(__name__)


class Life:
    """See the module.

    Args:
        found: The session as it was found or made.
        keeper: Of its row.
        transcript: Of its cells.
        starts: Limits how many kernels start at once.
    """

    def __init__(
        self,
        desk: Desk,
        found: Found,
        *,
        config: BrokerConfig,
        launcher: Launcher,
        wire: Wire,
        keeper: RowKeeper,
        transcript: Transcript,
        starts: anyio.Semaphore,
    ) -> None:
        self._desk = desk
        self._folder = found.folder
        self._config = config
        self._launcher = launcher
        self._keeper = keeper
        self._transcript = transcript
        self._kernel_folder = launcher.kernel_folder(keeper.row.id)
        self._runner = CellRunner(desk, found.folder, config, transcript, keeper.row.id)
        self._wire = wire
        self._starts = starts
        self._is_new = found.is_new
        self._was_asleep = found.was_asleep
        self._has_history = found.next_cell > 1
        self._known_generation = found.row.kernel_generation
        self._adopted: KernelHost | None = found.adopted
        self._left = found.left
        self._deaths = DeathCount(config.session)
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._ending = Ending(found, desk, keeper, launcher, transcript)
        self._patience = Patience()
        self._losses = Losses(desk, keeper)
        self._wishes = Wishes(
            desk, found.folder, self._kernel_folder, config=config, transcript=transcript
        )
        self._takeover = Takeover(
            found.folder,
            self._kernel_folder,
            config=config,
            runner=self._runner,
            transcript=transcript,
            losses=self._losses,
            earlier=found.earlier,
        )

    @property
    def is_removed(self) -> bool:
        """After the end: whether container and files are gone."""
        return self._ending.is_removed

    @property
    def is_ending(self) -> bool:
        """Whether it has begun to end: nothing more is run."""
        return self._ending.wish is not None or self._desk.state is SessionState.CLOSED

    async def wait_ended(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()

    async def stop(self, how: End) -> None:
        """End it, and return when it has ended. Of several wishes the first counts."""
        self._ending.wish = self._ending.wish or how
        await self._ending.unsign()
        self._scope.cancel()
        await self._ended.wait()

    async def run(self, ready: TaskStatus[None]) -> None:
        """Live; ``ready`` is started when the first kernel answers.

        Raises:
            BrokerError: The first kernel did not come up.
        """
        try:
            with alone(), self._scope:
                async with anyio.create_task_group() as self._losses.tg:
                    self._losses.tg.start_soon(self._transcript.run)
                    if not self._is_new and self._adopted is None:
                        await self._begin_without_container()
                    await self._live(ready)
        finally:
            with anyio.CancelScope(shield=True):
                await self._finish()

    async def _begin_without_container(self) -> None:
        """Say what became of a session whose container is gone."""
        left, self._left = self._left, None
        if left is not None:
            report = ExitReport(
                cause=ExitCause.CONTAINER_GONE,
                generation=left.generation,
                detail="while nobody was connected",
            )
            self._losses.open(outcome.NO_CONTAINER)
            await self._takeover.conclude(left, report)
        elif not self._was_asleep and self._has_history:
            had_none = self._keeper.row.state == "failed"
            cause = outcome.HAD_NO_KERNEL if had_none else outcome.NO_CONTAINER
            self._losses.open(cause)
            self._losses.tell_later(cause)

    async def _live(self, ready: TaskStatus[None]) -> None:
        while True:
            try:
                await self._in_container(ready)
            except BrokerError as error:
                if not self._ending.was_ready:
                    raise
                await self._discard()
                if self._patience.lasts(error, time.monotonic()):
                    await anyio.sleep(RETRY_S)
                else:
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
            host = self._desk.host = self._adopted or await self._launch()
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
                    if error.report is None or not self._ending.was_ready:
                        raise
                    report = error.report
                self._desk.kernel, self._desk.state = None, SessionState.STARTING
                self._desk.drop_saves()
                if not await self._can_go_on(host, report):
                    return
        finally:
            if is_starting:
                self._starts.release()
            self._desk.kernel = None

    async def _launch(self) -> KernelHost:
        self._ending.has_launched = True
        return await self._launcher.launch(
            self._keeper.row, self._folder, restore=self._wishes.restore
        )

    def _open(self, host: KernelHost, *, is_adopted: bool) -> AbstractAsyncContextManager[Kernel]:
        config = self._config.kernel
        return open_kernel(
            host,
            config,
            wire=self._wire,
            wire_id=self._keeper.row.wire_id,
            session=self._keeper.row.id,
            on_message=self._desk.hear,
            ready_limit_s=min(config.ready_limit_s, ADOPT_LIMIT_S if is_adopted else math.inf),
            is_computing=is_adopted and self._left is not None,
        )

    async def _begin(self, kernel: Kernel, ready: TaskStatus[None], *, is_adopted: bool) -> None:
        if is_adopted and self._left is not None and self._left.generation != kernel.generation:
            # It computes nothing of ours, and was not asked yet: only when it answers has it restored.
            await self._takeover.wait_ready(kernel)
        restore = await kernel.host.restored()
        if restore is not None and restore.generation != kernel.generation:
            restore = None
        self._tell_beginning(kernel, restore, is_adopted=is_adopted)
        fields: dict[str, object] = {
            "state": "ready",
            "kernel_generation": kernel.generation,
            "notices": tuple(self._desk.untold()),
        }
        if self._was_asleep and not self._ending.was_ready:
            # A row that says it sleeps would have its container swept.
            await self._keeper.change(**fields)
        else:
            await self._save(**fields)
        await self._wishes.return_to_newest(kernel)
        self._patience.renew()
        self._desk.kernel, self._desk.state, self._desk.note = kernel, SessionState.READY, ""
        self._desk.restored = restore
        if not self._ending.was_ready:
            # Whoever has given up is heard here; who does from now on waits for the session.
            await anyio.lowlevel.checkpoint_if_cancelled()
            self._ending.was_ready = True
            ready.started()
        await self._keeper.note("kernel.ready", software=kernel.software)
        if self._desk.restart is not None and self._desk.restart.began:
            self._deaths.clear()
            self._desk.restart.end()
            self._desk.restart = None

    def _tell_beginning(
        self, kernel: Kernel, restore: RestoreReport | None, *, is_adopted: bool
    ) -> None:
        """Have the next answers say what the new kernel means for the variables."""
        fate = outcome.fate_sentence(restore)
        news = self._losses.news(fate)
        known = self._known_generation
        self._known_generation = kernel.generation
        if self._was_asleep and not self._ending.was_ready:
            news = outcome.wake_sentence(self._keeper.row.name, restore)
            self._desk.notices.append(news)
        elif is_adopted and known and known != kernel.generation and self._left is None:
            news = f"While nobody was connected the kernel ended. {fate}"
            self._desk.notices.append(news)
        elif self._ending.was_ready and not news:
            news = f"The kernel was restarted. {fate}"
        self._losses.settle(fate)
        self._desk.listener.began(news)

    async def _serve(self, kernel: Kernel) -> None:
        """Run cells until the kernel is dead."""
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._losses.watch, kernel)
            left, self._left = self._left, None
            if left is not None:
                fate = outcome.fate_sentence(self._desk.restored)
                self._bury(left, await self._takeover.go_on(kernel, left, fate))
            while not kernel.is_dead:
                wake = self._desk.wake = anyio.Event()
                if await self._carry_out_wish(kernel):
                    continue
                if self._desk.are_stored_notices_told:
                    self._desk.are_stored_notices_told = False
                    await self._save_notices()
                cell = self._desk.queue.take()
                if cell is None:
                    self._desk.state = SessionState.READY
                    await wake.wait()
                    continue
                self._bury(cell, await self._runner.run(kernel, cell))
            tg.cancel_scope.cancel()

    async def _carry_out_wish(self, kernel: Kernel) -> bool:
        """What somebody wishes of the kernel; whether there was anything."""
        desk = self._desk
        if desk.restart is not None:
            await self._wishes.replace(kernel, desk.restart)
        elif desk.sleep is not None:
            if await self._wishes.fall_asleep(kernel, desk.sleep):
                self._ending.wish = self._ending.wish or "hibernate"
                desk.state = SessionState.CLOSED
                await self._ending.unsign()
                self._scope.cancel()
                await anyio.lowlevel.checkpoint()
        elif desk.saves:
            await self._wishes.save_now(kernel, desk.saves.pop(0))
        else:
            return False
        return True

    def _bury(self, cell: Cell, end: CellEnd | None) -> None:
        """Finish a cell under which the kernel has died, as soon as it is known what is back."""
        if end is not None:
            self._losses.open(end[1])
            self._losses.finish(cell, end)

    async def _can_go_on(self, host: KernelHost, report: ExitReport) -> bool:
        """After a death: whether the container's next kernel may serve.

        Raises:
            KernelStartError: Too many deaths in a short time.
        """
        self._deaths.add(report, time.monotonic())
        if report.cause is ExitCause.CONTAINER_GONE:
            return False
        return await wait_revived(host, report)

    async def _wait_for_restart(self, why: str) -> None:
        """Stay without a kernel until somebody wants a new one."""
        self._desk.state, self._desk.note = SessionState.FAILED, why
        self._desk.queue.drop_all("failed", f"The cell was not run: {why}")
        _log.warning(
            "Session %s: %s",
            self._keeper.row.id,
            why,
            extra=event("session.failed", session=self._keeper.row.id),
        )
        await self._save(state="failed")
        if self._desk.restart is not None and self._desk.restart.began:
            self._desk.restart.end(why)
            self._desk.restart = None
        self._losses.settle(f"{outcome.UNREVIVED} {why}")
        while self._desk.restart is None:
            wake = self._desk.wake = anyio.Event()
            if self._desk.sleep is not None:
                self._desk.sleep.end("it has no kernel")
                self._desk.sleep = None
            await wake.wait()
        await self._wishes.begin_restart(self._desk.restart)
        self._deaths.clear()

    async def _discard(self) -> None:
        self._desk.host = None
        await self._ending.discard()

    async def _save_notices(self) -> None:
        """Store what nobody has been told yet, if it is not what is stored."""
        untold = tuple(self._desk.untold())
        if untold != self._keeper.row.notices:
            await self._save(notices=untold)

    async def _save(self, **fields: object) -> None:
        """Change the stored row; that it cannot be is no reason to end anything."""
        try:
            await self._keeper.change(**fields)
        except BrokerError as error:
            _log.warning("Session %s: %s", self._keeper.row.id, error)
            if isinstance(error, StorageError):
                self._transcript.trouble(error)
            elif str(error) not in self._desk.notices:
                self._desk.notices.append(str(error))

    async def _finish(self) -> None:
        """Leave behind what is to stay, and nothing else."""
        self._desk.state = SessionState.CLOSED
        self._desk.end_wishes()
        try:
            await self._ending.run()
        finally:
            self._desk.listener.ended(is_removed=self._ending.is_removed)
            self._ended.set()
