"""`Session`: a client's named workspace: one kernel at a time, cells in order.

Everything a caller may do (submit, interrupt, cancel, restart) leaves a wish on the session's desk,
which its life carries out, so that a caller who goes away leaves nothing half done.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

import anyio
from anyio.abc import TaskStatus

from sagebroker.config import BrokerConfig
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import BrokerError, KernelStartError, SessionClosedError
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.kernel import Wire
from sagebroker.model import CellStatus, LadderOutcome, SessionState
from sagebroker.session import outcome
from sagebroker.session.cell import Cell
from sagebroker.session.desk import Desk, RestartWish
from sagebroker.session.info import SessionInfo
from sagebroker.session.launch import Launcher
from sagebroker.session.life import Life
from sagebroker.store.folders import SessionFolder, SessionRecord

STOP_LIMIT_S = 20.0
"""A stop wish is carried out within the ladder's own limits, about 12 s at worst."""


class Session:
    """See the module. Made by the broker, which runs `run` in its task group.

    Args:
        is_new: Whether this broker made it, rather than finding one that stays.
        adopted: The container an earlier broker left running, where there is one.
        starts: Limits how many kernels start at once.
    """

    def __init__(
        self,
        record: SessionRecord,
        folder: SessionFolder,
        *,
        config: BrokerConfig,
        launcher: Launcher,
        wire: Wire,
        starts: anyio.Semaphore,
        is_new: bool = True,
        adopted: KernelHost | None = None,
    ) -> None:
        self._config = config
        self._desk = Desk(record, config.session)
        self._life = Life(
            self._desk,
            folder,
            config=config,
            launcher=launcher,
            wire=wire,
            starts=starts,
            is_new=is_new,
            adopted=adopted,
        )

    def __repr__(self) -> str:
        return f"<Session {self.name} [{self._desk.state}, {len(self._desk.queue)} queued]>"

    @property
    def name(self) -> str:
        """Its short name."""
        return self._desk.record.name

    @property
    def id(self) -> str:
        """Its random id."""
        return self._desk.record.id

    @property
    def keep(self) -> bool:
        """Whether it outlives its broker."""
        return self._desk.record.keep

    @property
    def current(self) -> Cell | None:
        """The running cell."""
        return self._desk.current

    @property
    def container(self) -> str | None:
        """The engine's id of its container."""
        return getattr(self._desk.host, "container", None)

    def info(self) -> SessionInfo:
        """What there is to know without asking anybody."""
        running = self._desk.current
        return SessionInfo(
            name=self.name,
            id=self.id,
            state=self._desk.state,
            keep=self.keep,
            cells=self._desk.queue.next_number - 1,
            running=running.number if running else None,
            running_s=running.elapsed_s if running else 0.0,
            queued=len(self._desk.queue),
            idle_s=0.0 if running else time.monotonic() - self._desk.active_at,
            memory_bytes=None,
            memory_limit_bytes=self._desk.record.memory_bytes,
            created=datetime.fromisoformat(self._desk.record.created),
            kernel_generation=self._desk.kernel.generation if self._desk.kernel else 0,
            kernelspec=self._desk.record.kernelspec,
            note=self._desk.note,
        )

    async def measure(self, runtime: ContainerRuntime) -> SessionInfo:
        """`info` with the memory in use, where the engine tells it."""
        info = self.info()
        if self.container is None:
            return info
        try:
            stats = await runtime.stats(self.container)
        except BrokerError:
            return info
        return replace(info, memory_bytes=stats.memory_bytes)

    def submit(self, code: str, *, time_limit_s: float | None = None) -> Cell:
        """Queue a cell; it runs when those before it have ended.

        Raises:
            QueueFullError: Too many cells wait.
            SessionClosedError: The session has ended.
            KernelStartError: Its kernel is gone and was not started again; says what to do.
        """
        self._check_open()
        if self._desk.state is SessionState.FAILED:
            raise KernelStartError(
                f"The session {self.name!r} has no kernel. {self._desk.note}",
                hint=f"sage_restart(session={self.name!r}) starts a new one; with restore=true it brings the "
                "variables of the newest checkpoint back.",
            )
        cell = self._desk.queue.add(code, time_limit_s)
        self._desk.touch()
        return cell

    def cell(self, number: int) -> Cell:
        """The cell with this number. Raises `CellNotFoundError`."""
        return self._desk.queue.get(number)

    def take_notices(self) -> list[str]:
        """Sentences about what happened unasked since the last call; each is given once."""
        taken, self._desk.notices = self._desk.notices, []
        losses, self._desk.losses = self._desk.losses, []
        return taken + [f"Cell {cell.number}: {loss}" for cell, loss in losses if not cell.told]

    def suspect(self) -> None:
        """The engine told something of its container: have the kernel looked at."""
        if self._desk.kernel is not None:
            self._desk.kernel.suspect()

    async def interrupt(self) -> LadderOutcome | None:
        """Stop the running cell; None where nothing runs. Queued cells go on."""
        cell = self._desk.current
        return None if cell is None else await self.cancel(cell, "request")

    async def cancel(self, cell: Cell, reason: str) -> LadderOutcome | None:
        """Stop a cell wherever it is: out of the queue, or up the ladder."""
        if cell.status is CellStatus.QUEUED:
            self._desk.queue.drop(cell, reason, outcome.NOT_RUN)
            return None
        if cell is self._desk.current:
            self._desk.want_stop(reason)
            await cell.wait(STOP_LIMIT_S)
        return cell.ladder

    async def restart(self, *, restore: bool = False) -> str:
        """A new kernel, whatever runs; returns a sentence about what was lost.

        Args:
            restore: Bring the newest checkpoint's variables back.

        Raises:
            KernelStartError: No new kernel came up.
        """
        self._check_open()
        dropped = self._desk.queue.drop_all("restart", outcome.NOT_RUN)
        wish = self._desk.restart = self._desk.restart or RestartWish(restore=restore)
        if self._desk.current is not None:
            self._desk.want_stop("restart", hard=True)
        self._desk.touch()
        with anyio.move_on_after(STOP_LIMIT_S + self._config.kernel.ready_limit_s):
            await wish.done.wait()
        if not wish.done.is_set() or wish.error:
            raise KernelStartError(wish.error or "The new kernel did not come up in time.")
        return outcome.restart_sentence(self.name, dropped, self._desk.restored)

    @property
    def is_removed(self) -> bool:
        """After its end: whether its container and files are gone, rather than left to stay or to the sweep."""
        return self._life.is_removed

    async def aclose(self, *, detach: bool = False) -> None:
        """End it; with ``detach`` its container goes on, for a later broker to adopt."""
        await self._life.stop(detach=detach)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Its life; ``task_status`` is started when the first kernel answers.

        Raises:
            BrokerError: The first kernel did not come up; nothing is left behind.
        """
        await self._life.run(task_status)

    def _check_open(self) -> None:
        if self._desk.state is SessionState.CLOSED:
            raise SessionClosedError(
                f"The session {self.name!r} has been closed.", hint="Open it again with sage_open."
            )
