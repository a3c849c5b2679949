"""`Desk`: what a session's face and its life share: the state, and wishes to be carried out; no I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from sagebroker.model import CellStatus, SessionState
from sagebroker.session import outcome
from sagebroker.session.queue import CellQueue

if TYPE_CHECKING:
    from sagebroker.config import SessionConfig
    from sagebroker.kernel.folders import RestoreOrder
    from sagebroker.kernel.host import KernelHost
    from sagebroker.kernel.keeper import RestoreReport
    from sagebroker.kernel.kernel import Kernel
    from sagebroker.protocol.messages import Message
    from sagebroker.session.cell import Cell
    from sagebroker.session.found import Found
    from sagebroker.session.sleep import Saved


@dataclass(kw_only=True, eq=False)
class RestartWish:
    """The wish for a new kernel."""

    restore: RestoreOrder
    """Which checkpoint is restored."""
    began: bool = False
    error: str = ""
    done: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        # To the type checker a bool is a number, too; here it can only mean this.
        if isinstance(self.restore, bool):
            self.restore = "newest" if self.restore else "none"

    def end(self, error: str = "") -> None:
        """It is carried out, or cannot be."""
        self.error = error
        self.done.set()


@dataclass(kw_only=True, eq=False)
class SleepWish:
    """The wish that the session sleep."""

    is_forced: bool
    """Also where some variables cannot be saved."""
    is_final: bool = False
    """The broker ends: also where results cannot be stored."""
    hindrance: str = ""
    """Why it does not, or what is lost by it."""
    done: anyio.Event = field(default_factory=anyio.Event)

    def end(self, hindrance: str = "") -> None:
        """It is carried out, or will not be."""
        self.hindrance = hindrance
        self.done.set()


@dataclass(kw_only=True, eq=False)
class SaveWish:
    """The wish that the variables be saved now."""

    label: str
    """For the checkpoint; empty for none."""
    saved: Saved | None = None
    """What came of it; None while it waits, and where the kernel has ended."""
    done: anyio.Event = field(default_factory=anyio.Event)

    def end(self, saved: Saved | None) -> None:
        """It is carried out, or cannot be."""
        self.saved = saved
        self.done.set()


class Listener:
    """Who wants to know what a session's kernel says. This one does not."""

    def heard(self, message: Message) -> None:
        """The kernel has sent this, for whomever."""

    def began(self, sentence: str) -> None:
        """A new kernel serves; says why, and what became of the variables. Empty for the session's first."""

    def ended(self, *, is_removed: bool) -> None:
        """The session has ended: it is gone, or asleep, or goes on without its broker."""


class Desk:
    """See the module. `Session` puts wishes here, `Life` takes them and keeps the rest true."""

    def __init__(
        self, found: Found, limits: SessionConfig, on_change: Callable[[Cell], None]
    ) -> None:
        self.name = found.row.name
        self.queue = CellQueue(self.name, limits, next_number=found.next_cell, on_change=on_change)
        for cell in (*found.lost, *((found.left,) if found.left else ()), *found.queued):
            self.queue.resume(cell)
        for cell in found.lost:
            cell.notices.append(outcome.UNKNOWN_END)
            cell.finish(CellStatus.INTERRUPTED)
        for cell in found.untold:
            cell.on_change = on_change
        self.state = SessionState.STARTING
        self.note = ""
        self.notices: list[str] = list(found.row.notices)
        self.are_stored_notices_told = False
        """Those in the store need not be told again by a later broker."""
        self.losses: list[tuple[Cell, str]] = [
            (cell, " ".join(cell.notices)) for cell in found.untold
        ]
        """What cells cost their session; said with the next answer unless the cell's own was given."""
        self.host: KernelHost | None = None
        self.kernel: Kernel | None = None
        self.restored: RestoreReport | None = None
        """What the kernel that serves brought back when it came up."""
        self.current: Cell | None = None
        self.abandoned: Cell | None = None
        """The cell that ran when the session's life was ended; it may still run."""
        self.listener = Listener()
        self.guest_cells: list[int] = list(found.guest_cells)
        """Numbers of the cells that Jupyter clients have run, and of which no other caller was told yet."""
        self.stop: tuple[str, bool] | None = None
        """Reason, and whether the kernel is to be replaced at once."""
        self.stop_wanted = anyio.Event()
        self.restart: RestartWish | None = None
        self.sleep: SleepWish | None = None
        self.saves: list[SaveWish] = []
        self.wake = anyio.Event()
        self.active_at = time.monotonic()
        self.is_used = not found.is_new
        """Whether anybody has ever sent it a cell or written a file, as far as is known."""

    def hear(self, message: Message) -> None:
        """The kernel has sent this."""
        self.listener.heard(message)

    def use(self) -> None:
        """Somebody leaves something in the session: it is worth keeping from now on."""
        self.is_used = True
        self.touch()

    def touch(self) -> None:
        """Something was done or wished: the life looks at the desk."""
        self.active_at = time.monotonic()
        self.wake.set()

    def end_wishes(self) -> None:
        """The session has ended: nobody carries them out any more."""
        if self.restart is not None:
            self.restart.end(f"The session {self.name!r} has been closed.")
        if self.sleep is not None:
            self.sleep.end("it has ended")
        self.drop_saves()

    def drop_saves(self) -> None:
        """There is no kernel that could save anything."""
        dropped, self.saves = self.saves, []
        for wish in dropped:
            wish.end(None)

    def want_stop(self, reason: str, *, hard: bool = False) -> None:
        """Have the running cell stopped; the first reason counts, unless a harder one comes."""
        if self.stop is None or (hard and not self.stop[1]):
            self.stop = (reason, hard)
        self.stop_wanted.set()

    def begin_cell(self, cell: Cell) -> None:
        """A cell goes to the kernel; wishes to stop an earlier one are void."""
        self.state, self.current = SessionState.BUSY, cell
        self.stop, self.stop_wanted = None, anyio.Event()

    def end_cell(self) -> None:
        """The running cell is done with."""
        cell, self.current = self.current, None
        if cell is not None and (cell.status is CellStatus.RUNNING or cell.reply_lost):
            # The kernel is dead, or has not said how it ended; else its reply tells the client.
            self.queue.abort_behind(cell)
        if cell is not None and cell.request is not None and not cell.is_silent:
            self.guest_cells.append(cell.number)
        self.touch()

    def take_notices(self) -> list[str]:
        """Sentences about what happened unasked since the last call; each is given once."""
        taken = self.untold()
        for cell, _ in self.losses:
            # By whoever is told here; a later broker, which finds the cell, is not to tell it again.
            cell.tell()
        self.are_stored_notices_told = self.are_stored_notices_told or bool(taken)
        self.notices, self.losses = [], []
        return taken

    def untold(self) -> list[str]:
        """Sentences that nobody has been told yet."""
        told_later = [
            f"Cell {cell.number}: {s}"
            for cell, s in self.losses
            # An earlier broker has stored both its cells and its notices.
            if not cell.told
            and not any(n.startswith(f"Cell {cell.number}: ") for n in self.notices)
        ]
        return [*self.notices, *told_later]
