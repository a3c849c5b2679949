"""`Desk`: what a session's face and its life share: the state, and wishes to be carried out; no I/O."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import anyio

from sagebroker.config import SessionConfig
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.keeper import RestoreReport
from sagebroker.kernel.kernel import Kernel
from sagebroker.model import SessionState
from sagebroker.session.cell import Cell
from sagebroker.session.queue import CellQueue
from sagebroker.store.folders import SessionRecord


@dataclass(kw_only=True, eq=False)
class RestartWish:
    """The wish for a new kernel."""

    restore: bool
    """Whether the newest checkpoint is restored."""
    began: bool = False
    error: str = ""
    done: anyio.Event = field(default_factory=anyio.Event)

    def end(self, error: str = "") -> None:
        """It is carried out, or cannot be."""
        self.error = error
        self.done.set()


class Desk:
    """See the module. `Session` puts wishes here, `Life` takes them and keeps the rest true."""

    def __init__(self, record: SessionRecord, limits: SessionConfig) -> None:
        self.record = record
        self.queue = CellQueue(record.name, limits, next_number=record.next_cell)
        self.state = SessionState.STARTING
        self.note = ""
        self.notices: list[str] = list(record.notices)
        self.losses: list[tuple[Cell, str]] = []
        """What cells cost their session; said with the next answer unless the cell's own was given."""
        self.host: KernelHost | None = None
        self.kernel: Kernel | None = None
        self.restored: RestoreReport | None = None
        """What the kernel that serves brought back when it came up."""
        self.current: Cell | None = None
        self.stop: tuple[str, bool] | None = None
        """Reason, and whether the kernel is to be replaced at once."""
        self.stop_wanted = anyio.Event()
        self.restart: RestartWish | None = None
        self.wake = anyio.Event()
        self.active_at = time.monotonic()

    def touch(self) -> None:
        """Something was done or wished: the life looks at the desk."""
        self.active_at = time.monotonic()
        self.wake.set()

    def want_stop(self, reason: str, *, hard: bool = False) -> None:
        """Have the running cell stopped; the first reason counts, unless a harder one comes."""
        if self.stop is None or (hard and not self.stop[1]):
            self.stop = (reason, hard)
        self.stop_wanted.set()

    def begin_cell(self, cell: Cell) -> None:
        """A cell goes to the kernel; wishes to stop an earlier one are void."""
        self.state, self.current = SessionState.BUSY, cell
        self.stop, self.stop_wanted = None, anyio.Event()
        cell.start()

    def end_cell(self) -> None:
        """The running cell is done with."""
        self.current = None
        self.touch()
