"""`Cell`: one piece of code sent to a session, from its queueing to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from sagebroker.model import CellFailure, CellStatus, ExitReport, InputRequest, LadderOutcome

if TYPE_CHECKING:
    from sagebroker.protocol.execution import Execution
    from sagebroker.protocol.outputs import OutputFold
    from sagebroker.protocol.requests import ClientRequest

AWAITING_INPUT: Final = "awaiting_input"
"""The word of a cell that runs and asks something."""


def ignore(cell: Cell) -> None:
    """Nothing of it is stored."""


@dataclass(kw_only=True, eq=False)
class Cell:
    """One piece of code and everything that came of it.

    States: ``queued → running → ok | error | interrupted | died``, or ``queued → interrupted``.
    Only its session changes it, by its methods, which tell `on_change`; `outputs` grows while it runs.
    """

    number: int
    """Counts from 1 in its session; 0 for what is no cell of the transcript: see `is_silent`."""
    code: str
    time_limit_s: float
    outputs: OutputFold
    author: str = "api"
    """Who sent it: ``mcp``, ``cli``, ``api``, ``jupyter``."""
    request: ClientRequest | None = None
    """What a Jupyter client has sent; goes to the kernel in place of the code."""
    request_id: str = ""
    """The client's own name for the request, by which a repeated one is recognised."""
    msg_id: str = ""
    """Of the execute request; a cell with one may have been executed."""
    generation: int = 0
    """The incarnation of the kernel it was sent to."""
    status: CellStatus = CellStatus.QUEUED
    failure: CellFailure | None = None
    execution_count: int | None = None
    """The kernel's own prompt number."""
    payload_text: str = ""
    """What the kernel's pager would show (``factor?``)."""
    ladder: LadderOutcome | None = None
    """What was done to stop it, if anything."""
    stop_reason: str = ""
    """Why it was stopped: ``time_limit``, ``request``, ``cancelled``, ``restart``, ``closed``, ``files_full``,
    ``aborted``."""
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
    asks: InputRequest | None = None
    """What it asks, while it waits for the answer."""
    questions: int = 0
    """How often it has asked."""
    is_stored: bool = False
    """The store knows of it, perhaps in an earlier state."""
    on_change: Callable[[Cell], None] = field(default=ignore, repr=False)
    """Told of each change of what is stored of it."""
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    ended_at: float | None = None
    _ended: anyio.Event = field(default_factory=anyio.Event, repr=False)
    _settled: anyio.Event = field(default_factory=anyio.Event, repr=False)
    """It has ended, or asks something: without a caller nothing comes of it."""
    _moved_on: anyio.Event = field(default_factory=anyio.Event, repr=False)
    """What it asked last is asked no more."""

    @property
    def elapsed_s(self) -> float:
        """Seconds it has run, or ran; 0 while queued or when it never ran."""
        if self.started_at is None:
            return 0.0
        return (self.ended_at if self.ended_at is not None else time.monotonic()) - self.started_at

    @property
    def is_silent(self) -> bool:
        """Whether it only runs: a widget's message, or code that a tool runs for itself."""
        return self.number == 0

    @property
    def client(self) -> bytes:
        """Which Jupyter client sent it; empty for all others together."""
        return b"" if self.request is None else self.request.client

    @property
    def word(self) -> str:
        """Its status in a word for people and programs."""
        return AWAITING_INPUT if self.asks is not None else self.status.value

    def ask(self, request: InputRequest | None) -> None:
        """It asks something, or nothing any more."""
        if self.status is not CellStatus.RUNNING or (request is None and self.asks is None):
            return
        self._moved_on.set()
        self.asks = request
        if request is not None:
            self.questions += 1
            self._moved_on = anyio.Event()
            self._settled.set()
        else:
            self._settled = anyio.Event()
        self.on_change(self)

    def requeue(self) -> None:
        """It was not sent after all."""
        self.status = CellStatus.QUEUED
        self.started_at = None
        self.msg_id = ""
        self.on_change(self)

    def start(self, msg_id: str, generation: int) -> None:
        """It is about to be sent to the kernel."""
        self.status = CellStatus.RUNNING
        self.msg_id, self.generation = msg_id, generation
        self.started_at = time.monotonic()
        self.on_change(self)

    def take(self, execution: Execution) -> None:
        """What its execution came to, beside its outputs and its status."""
        self.failure = execution.failure
        self.execution_count = execution.execution_count
        self.payload_text = execution.payload

    def finish(self, status: CellStatus, ended_at: float | None = None) -> None:
        """It ended, now or at an earlier monotonic second; the first end counts."""
        if self.status.is_final:
            return
        self.status, self.asks = status, None
        now = time.monotonic()
        self.ended_at = now if ended_at is None else min(now, ended_at)
        for event in (self._ended, self._settled, self._moved_on):
            event.set()
        self.on_change(self)

    def tell(self) -> None:
        """A caller is being given its end, if it has ended."""
        if self.status.is_final and not self.told:
            self.told = True
            self.on_change(self)

    async def wait(self, limit_s: float) -> bool:
        """Wait at most ``limit_s`` seconds for its end; whether it has ended."""
        if limit_s > 0:
            with anyio.move_on_after(limit_s):
                await self._ended.wait()
        return self.status.is_final

    async def wait_settled(self, limit_s: float) -> None:
        """Wait at most ``limit_s`` seconds until it has ended or asks something."""
        if limit_s > 0:
            with anyio.move_on_after(limit_s):
                await self._settled.wait()

    async def wait_moved_on(self) -> None:
        """Wait until what it asks now is asked no more: it was answered, withdrawn, or the cell has ended."""
        if self.asks is not None:
            await self._moved_on.wait()
