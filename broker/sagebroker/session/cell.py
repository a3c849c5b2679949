"""`Cell`: one piece of code sent to a session, from its queueing to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from sagebroker.model import CellFailure, CellStatus, ExitReport, LadderOutcome

if TYPE_CHECKING:
    from sagebroker.protocol.outputs import OutputFold


@dataclass(kw_only=True, eq=False)
class Cell:
    """One piece of code and everything that came of it.

    States: ``queued → running → ok | error | interrupted | died``, or ``queued → interrupted``.
    Only its session changes it; `outputs` grows while it runs.
    """

    number: int
    """Counts from 1 in its session."""
    code: str
    time_limit_s: float
    outputs: OutputFold
    status: CellStatus = CellStatus.QUEUED
    failure: CellFailure | None = None
    execution_count: int | None = None
    """The kernel's own prompt number."""
    payload_text: str = ""
    """What the kernel's pager would show (``factor?``)."""
    ladder: LadderOutcome | None = None
    """What was done to stop it, if anything."""
    stop_reason: str = ""
    """Why it was stopped: ``time_limit``, ``request``, ``cancelled``, ``restart``, ``closed``, ``files_full``."""
    exit: ExitReport | None = None
    """How the kernel ended under it."""
    notices: list[str] = field(default_factory=list)
    """Sentences its answer must carry: what became of the kernel and its variables."""
    reply_lost: bool = False
    """The kernel's reply never came; outputs are whole."""
    output_lost: bool = False
    """Some output is missing."""
    told: bool = False
    """A caller has been given its end; what nobody was told is said with the session's next answer."""
    attempts: int = 0
    """How often it was to be sent; a kernel that takes nothing leaves it unsent."""
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ended_at: float | None = None
    _ended: anyio.Event = field(default_factory=anyio.Event, repr=False)

    @property
    def elapsed_s(self) -> float:
        """Seconds it has run, or ran; 0 while queued or when it never ran."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at if self.ended_at is not None else time.monotonic()) - self.started_at

    def requeue(self) -> None:
        """It was not sent after all."""
        self.status = CellStatus.QUEUED
        self.started_at = None

    def start(self) -> None:
        """It was sent to the kernel."""
        self.status = CellStatus.RUNNING
        self.started_at = time.monotonic()

    def finish(self, status: CellStatus) -> None:
        """It ended; the first end counts."""
        if self.status.is_final:
            return
        self.status = status
        self.ended_at = time.monotonic()
        self._ended.set()

    async def wait(self, limit_s: float) -> bool:
        """Wait at most ``limit_s`` seconds for its end; whether it has ended."""
        if limit_s > 0:
            with anyio.move_on_after(limit_s):
                await self._ended.wait()
        return self.status.is_final
