"""`Session`: a client's named workspace: one kernel at a time, cells in order.

Everything a caller may do (submit, interrupt, cancel, restart) leaves a wish on the session's desk,
which its life carries out, so that a caller who goes away leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from sagebroker.errors import (
    CellNotFoundError,
    KernelDiedError,
    KernelStartError,
    SessionClosedError,
)
from sagebroker.kernel.checkpoints import CheckpointInfo, VariableList, read_checkpoints
from sagebroker.model import CellStatus, LadderOutcome
from sagebroker.session import namespace, outcome
from sagebroker.session.asking import answer
from sagebroker.session.desk import Desk, Listener, RestartWish, SaveWish, SleepWish
from sagebroker.session.drain import drain
from sagebroker.session.file_access import SessionFiles
from sagebroker.session.info import SessionInfo, info_of, measured
from sagebroker.session.inspection import inspect
from sagebroker.session.life import Life
from sagebroker.session.recall import recall
from sagebroker.session.saving import RowKeeper
from sagebroker.session.transcript import Transcript

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig
    from sagebroker.container.runtime import ContainerRuntime
    from sagebroker.kernel.folders import RestoreOrder
    from sagebroker.kernel.held import Wire
    from sagebroker.kernel.inspection import Inspected, Question
    from sagebroker.kernel.kernel import Kernel
    from sagebroker.protocol.requests import ClientRequest
    from sagebroker.session.cell import Cell
    from sagebroker.session.found import Found
    from sagebroker.session.launch import Launcher
    from sagebroker.session.sleep import Saved
    from sagebroker.store.records import CellRow
    from sagebroker.store.store import Store

STOP_LIMIT_S = 20.0
"""A stop wish is carried out within the ladder's own limits, about 12 s at worst."""


class Session:
    """See the module. Made by the broker, which runs `run` in its task group.

    Args:
        found: The session as it was found or made.
        starts: Limits how many kernels start at once.
        on_change: Told the session's name, and the cells that have changed.
    """

    def __init__(
        self,
        found: Found,
        *,
        config: BrokerConfig,
        launcher: Launcher,
        wire: Wire,
        store: Store,
        starts: anyio.Semaphore,
        on_change: Callable[[str, Collection[int]], None],
    ) -> None:
        self._config = config
        self._store = store
        self._folder = found.folder
        self._keeper = RowKeeper(store, found.row)
        self._transcript = Transcript(
            store,
            found.row.id,
            limits=config.session,
            retention=config.transcript,
            on_trouble=lambda sentence: self._desk.notices.append(sentence),
            on_stored=partial(on_change, found.row.name),
        )
        self._desk = Desk(found, config.session, self._transcript.changed)
        self._life = Life(
            self._desk,
            found,
            config=config,
            launcher=launcher,
            wire=wire,
            keeper=self._keeper,
            transcript=self._transcript,
            starts=starts,
        )

    def __repr__(self) -> str:
        return f"<Session {self.name} [{self._desk.state}]>"

    @property
    def name(self) -> str:
        """Its short name."""
        return self._keeper.row.name

    @property
    def id(self) -> str:
        """Its random id."""
        return self._keeper.row.id

    @property
    def keep(self) -> bool:
        """Whether its kernel goes on when its broker ends."""
        return self._keeper.row.on_end == "stay"

    @property
    def current(self) -> Cell | None:
        """The running cell."""
        return self._desk.current

    @property
    def container(self) -> str | None:
        """The engine's id of its container."""
        return getattr(self._desk.host, "container", None)

    @property
    def is_ending(self) -> bool:
        """Whether it has begun to end; it takes no cells any more."""
        return self._life.is_ending

    @property
    def is_removed(self) -> bool:
        """After its end: whether its container and files are gone, rather than left to stay or to the sweep."""
        return self._life.is_removed

    def info(self) -> SessionInfo:
        """What there is to know without asking anybody."""
        return info_of(self._keeper.row, self._desk)

    async def measure(self, runtime: ContainerRuntime) -> SessionInfo:
        """`info` with the memory in use, where the engine tells it."""
        return await measured(self.info(), self.container, runtime)

    def submit(
        self,
        code: str,
        *,
        time_limit_s: float | None = None,
        author: str = "api",
        request_id: str = "",
        request: ClientRequest | None = None,
    ) -> Cell:
        """Queue a cell; it runs when those before it have ended.

        Args:
            code: Its code.
            time_limit_s: Seconds it may run; as configured by default.
            author: Who sends it: ``mcp``, ``cli``, ``api``.
            request_id: The caller's own name for the request; see `cell_of_request`.
            request: A Jupyter client's, which goes to the kernel in place of the code.

        Raises:
            QueueFullError: Too many cells wait.
            SessionClosedError: The session has ended.
            KernelStartError: Its kernel is gone and was not started again; says what to do.
        """
        self._check_open()
        namespace.check_not_failed(self._desk)
        cell = self._desk.queue.add(
            code, time_limit_s, author=author, request_id=request_id, request=request
        )
        self._desk.use()
        return cell

    @property
    def kernel(self) -> Kernel | None:
        """The kernel that serves now; None while there is none."""
        return self._desk.kernel

    def listen(self, listener: Listener) -> None:
        """Have ``listener`` told all that the kernels of the session say from now on."""
        self._desk.listener = listener

    def abort_behind(self, cell: Cell) -> None:
        """End what a Jupyter client has queued behind its cell that has failed, if it wishes so."""
        self._desk.queue.abort_behind(cell)

    def take_guest_cells(self) -> list[int]:
        """Numbers of the cells that Jupyter clients have run since the last call."""
        taken, self._desk.guest_cells = self._desk.guest_cells, []
        return taken

    async def keep_running(self) -> None:
        """Have its kernel go on when its broker ends. Raises `StorageError`."""
        await self._keeper.change(on_end="stay")

    async def past_cells(self, most: int) -> list[CellRow]:
        """The newest stored cells, in order. Raises `StorageError`."""
        return await self._store.call(lambda db: db.cells(self.id, most=most))

    def cell(self, number: int) -> Cell:
        """The remembered cell with this number. Raises `CellNotFoundError`."""
        return self._desk.queue.get(number)

    def remembered(self) -> dict[int, Cell]:
        """The cells that are in memory, by number."""
        return self._desk.queue.remembered()

    async def recall(self, number: int) -> Cell:
        """The cell with this number, stored or not. Raises `CellNotFoundError`, `StorageError`."""
        try:
            return self.cell(number)
        except CellNotFoundError:
            limits = self._config.session
            return await self._store.call(lambda db: recall(db, self.id, self.name, number, limits))

    async def cell_of_request(self, request_id: str) -> Cell | None:
        """The cell that a request of this name has made already, perhaps with an earlier broker.

        Raises:
            StorageError: The store cannot be read: nobody knows whether there is one.
        """
        known = self._desk.queue.of_request(request_id)
        if known is not None or not request_id:
            return known
        row = await self._store.call(lambda db: db.cell_of_request(self.id, request_id))
        # Once more: another call with the same name may have been quicker.
        known = self._desk.queue.of_request(request_id)
        return known if known is not None or row is None else await self.recall(row.number)

    def take_notices(self) -> list[str]:
        """Sentences about what happened unasked since the last call; each is given once."""
        return self._desk.take_notices()

    def suspect(self) -> None:
        """The engine told something of its container: have the kernel looked at."""
        if (kernel := self._desk.kernel) is not None:
            kernel.suspect()

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

    async def answer(self, cell: Cell, text: str) -> None:
        """Answer what a cell asks; see `asking.answer`."""
        await answer(self._desk, cell, text)

    def files(self) -> SessionFiles:
        """Its files. Writing one is a use of it, so that its end does not remove them."""
        limit = self._config.container.files_bytes
        return SessionFiles(self._folder, self._keeper.row, limit, on_write=self._desk.use)

    async def restart(self, *, restore: RestoreOrder = "none") -> str:
        """A new kernel, whatever runs; returns a sentence about what was lost.

        Args:
            restore: Which checkpoint's variables to bring back.

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
            self._check_open()
            raise KernelStartError(wish.error or "The new kernel did not come up in time.")
        return outcome.restart_sentence(self.name, dropped, self._desk.restored)

    async def variables(self, pattern: str, limit: int) -> VariableList:
        """The user's variables, by a look that none of their methods can harm.

        Args:
            pattern: Of the names, as in a shell.
            limit: Most variables.

        Raises:
            SessionBusyError: A cell runs.
            KernelError: The kernel gives no answer.
        """
        kernel = await self._idle_kernel("its variables can be listed")
        return await namespace.list_variables(kernel, self.name, pattern, limit)

    async def inspect(self, question: Question) -> Inspected:
        """What a name means: nothing is evaluated but attributes, and nothing changes.

        Raises:
            SessionBusyError: A cell runs.
            InspectionError: There is nothing to say of it; says why, and what to do.
            KernelError: The kernel gives no answer.
        """
        return await inspect(self._desk, question, self._config.kernel.ready_limit_s)

    async def checkpoint(self, label: str = "") -> Saved:
        """Have the variables saved now.

        Args:
            label: A name under which they stay saved, beyond the newest checkpoints.

        Raises:
            CheckpointLabelError: The label is none.
            SessionBusyError: A cell runs.
            KernelDiedError: The kernel has ended before it was done.
        """
        namespace.check_label(label)
        await self._idle_kernel("its variables can be saved")
        wish = SaveWish(label=label)
        self._desk.saves.append(wish)
        self._desk.wake.set()
        await wish.done.wait()
        if wish.saved is None:
            raise KernelDiedError(f"The kernel of session {self.name!r} has ended meanwhile.")
        return wish.saved

    async def checkpoints(self) -> list[CheckpointInfo]:
        """The saved namespaces, the newest last."""
        return await anyio.to_thread.run_sync(partial(read_checkpoints, self._folder.checkpoints))

    async def restore_order(self, wanted: bool | int | str) -> RestoreOrder:  # noqa: FBT001
        """What a caller means by ``restore``: none, the newest checkpoint, or one by number or label.

        Raises:
            CheckpointNotFoundError: There is no such checkpoint; tells the ones there are.
        """
        return namespace.restore_order(self.name, wanted, await self.checkpoints())

    async def hibernate(self, *, force: bool = False) -> str:
        """Save the variables and end, to be woken by name; returns why it does not, or what is lost.

        Args:
            force: Also where some variables cannot be saved, which are lost then.
        """
        return "it has ended" if self.is_ending else await self._wish_sleep(force=force)

    async def _wish_sleep(self, *, force: bool, final: bool = False) -> str:
        """Why it does not sleep; empty where it does now."""
        wish = self._desk.sleep = self._desk.sleep or SleepWish(is_forced=force, is_final=final)
        self._desk.wake.set()
        await wish.done.wait()
        if self.is_ending:
            await self._life.wait_ended()
        return wish.hindrance

    async def wait_ended(self) -> None:
        """Return when it has ended."""
        await self._life.wait_ended()

    async def aclose(self) -> None:
        """End it; nothing is left."""
        await self._life.stop("close")

    async def leave(self) -> None:
        """The broker ends: leave the session as its owner wants it, its kernel running or asleep."""
        await anyio.to_thread.run_sync(self._folder.unsign)
        on_end = self._keeper.row.on_end
        if on_end != "hibernate":
            await self._life.stop(on_end)
        elif not self._desk.is_used:
            await self._life.stop("close")
        else:
            await drain(self._desk, self._config.hibernation, self.cancel, self._wish_sleep)
            await self._life.stop("hibernate")

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Its life; ``task_status`` is started when the first kernel answers.

        Raises:
            BrokerError: The first kernel did not come up; nothing is left behind.
        """
        await self._life.run(task_status)

    def _check_open(self) -> None:
        if self.is_ending:
            raise SessionClosedError(
                f"The session {self.name!r} has been closed.", hint="Open it again with sage_open."
            )

    async def _idle_kernel(self, what: str) -> Kernel:
        kernel = await namespace.idle_kernel(self._desk, what, self._config.kernel.ready_limit_s)
        self._check_open()
        return kernel
