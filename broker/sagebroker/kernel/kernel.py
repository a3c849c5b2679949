"""`Kernel`: one incarnation of a session's kernel, from its first answer to its death.

Every incarnation has sockets of its own: a request that the dead kernel did not take must never
reach the next one, which listens on the same paths. Within one incarnation the channels are rebuilt
when they break (ZeroMQ hangs up on a frame that is too large and never comes back); the identity
stays, so that a pending reply still arrives, and output lost in between is noted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import zmq.asyncio
from anyio.abc import TaskStatus

from sagebroker.config import KernelConfig
from sagebroker.errors import KernelDiedError, KernelError, KernelStartError
from sagebroker.kernel.channels import ChannelEvent, ChannelSet, open_channels
from sagebroker.kernel.death import DeathWatch
from sagebroker.kernel.guard import MemoryGuard
from sagebroker.kernel.heartbeat import Heartbeat
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.router import MessageRouter
from sagebroker.kernel.running import Follower, MessageTaker, RunningCell, execute_request
from sagebroker.kernel.start import wait_forked
from sagebroker.logs import event
from sagebroker.model import ExitCause, ExitReport
from sagebroker.protocol.execution import Execution
from sagebroker.protocol.messages import Message, software_of
from sagebroker.protocol.outputs import OutputFold

NUDGE_INTERVAL_S = 0.3
"""Time between requests to a kernel that does not answer yet: iopub loses what is sent before the
subscription has arrived, and nothing tells when that is."""

VERDICT_LIMIT_S = 1.5
"""After channels broke, time for the watch to find the kernel dead before they are rebuilt."""

MAX_REBUILDS = 5
"""Times the channels are rebuilt within `REBUILD_WINDOW_S`; an honest kernel breaks them hardly ever."""

REBUILD_WINDOW_S = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What every kernel of a broker shares on the way to its sockets."""

    context: zmq.asyncio.Context
    guard: MemoryGuard


class Kernel:
    """One running incarnation. Made by `open_kernel`, which yields it when it answers.

    States: alive, then dead for good (`is_dead`, `exit`).
    """

    def __init__(
        self,
        host: KernelHost,
        config: KernelConfig,
        *,
        wire: Wire,
        wire_id: str,
        generation: int,
        session: str,
    ) -> None:
        self.host = host
        self.generation = generation
        self._wire = wire
        self._wire_id = wire_id
        self._session = session
        self._router = MessageRouter(on_foreign=_ignore)
        self._watch = DeathWatch(
            host, generation, session=session, heartbeat_suspect_s=config.heartbeat_suspect_s
        )
        self._heartbeat = Heartbeat(host.connection, wire.context, config.heartbeat_interval_s)
        self._channels: ChannelSet
        self._broken = anyio.Event()
        self._usable = anyio.Event()
        self._was_severed = False
        self._gaps = 0
        self.software = ""
        """Which kernel it says it is, and its version: ``sage 10.8``."""

    def __repr__(self) -> str:
        state = "dead" if self.is_dead else "alive"
        return f"<Kernel {self._session} generation {self.generation} [{state}]>"

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        return self._watch.dead.is_set()

    @property
    def exit(self) -> ExitReport | None:
        """How it ended; None while it lives."""
        return self._watch.exit

    @property
    def interrupts_passed_on(self) -> int:
        """SIGINTs the keeper has passed on so far, as of the last look."""
        return self._watch.interrupts_passed_on

    @property
    def gaps(self) -> int:
        """How often output may have been lost: channels were rebuilt, or overran their budget."""
        return self._gaps

    async def wait_dead(self) -> ExitReport:
        """Return how it ended, once it has."""
        await self._watch.dead.wait()
        assert self.exit is not None
        return self.exit

    async def wait_answering(self) -> None:
        """Return when the main thread has answered a request sent now, or the kernel is dead.

        Raises:
            WireError: The kernel takes no request.
        """
        answered = anyio.Event()

        def on_message(message: Message) -> None:
            if message.channel == "shell":
                self.software = software_of(message.content)
                answered.set()

        msg_id = ChannelSet.new_msg_id()
        with self._router.expect(msg_id, on_message):
            await self._channels.send("shell", "kernel_info_request", {}, msg_id=msg_id)
            await self.first(answered)

    @asynccontextmanager
    async def executing(
        self, code: str, outputs: OutputFold, *, msg_id: str, on_message: MessageTaker
    ) -> AsyncIterator[RunningCell]:
        """Send ``code``; inside the context its messages are received.

        Args:
            code: The cell's.
            outputs: Where its outputs go.
            msg_id: Of the request; a new one for each.
            on_message: Called with each message that comes of it.

        Raises:
            KernelDiedError: The kernel is dead already; nothing was sent.
            WireError: The kernel takes no request; nothing was sent.
        """
        await self._wait_usable()
        running = RunningCell(Execution(msg_id, outputs), self, on_message)
        with self._router.expect(msg_id, running.feed):
            await self._channels.send(
                "shell", "execute_request", execute_request(code), msg_id=msg_id
            )
            yield running

    @asynccontextmanager
    async def following(
        self, journal: Path, outputs: OutputFold, *, msg_id: str, on_message: MessageTaker
    ) -> AsyncIterator[RunningCell]:
        """Go on with a cell that an earlier broker has sent.

        Args:
            journal: The file that the kernel keeps of it.
            outputs: Where its outputs go, from its first on.
            msg_id: Of its request.
            on_message: Called with each message that comes of it.
        """
        follower = Follower(
            journal,
            self.host.connection.key,
            self,
            Execution(msg_id, outputs),
            on_message=on_message,
            wait_answering=self.wait_answering,
        )
        with self._router.expect(msg_id, follower.heard):
            # At once, so that a cell that has ended is not taken for one that is to be stopped.
            await follower.read()
            async with anyio.create_task_group() as tg:
                tg.start_soon(follower.run)
                yield follower.running
                tg.cancel_scope.cancel()

    async def answer(self, text: str) -> None:
        """Answer what the running cell asks. Raises `WireError` where the kernel takes nothing."""
        await self._wait_usable()
        await self._channels.send("stdin", "input_reply", {"status": "ok", "value": text})

    async def ask(self, expressions: dict[str, str]) -> dict[str, Any]:
        """Have Python expressions evaluated silently: no output, no history, no prompt number.

        To be bounded by the caller: it is answered after whatever runs before it.

        Returns:
            The kernel's answers by name, hostile input; empty where the kernel has ended.

        Raises:
            KernelDiedError: The kernel is dead already.
            WireError: The kernel takes no request.
        """
        await self._wait_usable()
        execution = Execution(ChannelSet.new_msg_id())
        answered = anyio.Event()

        def on_message(message: Message) -> None:
            execution.feed(message, time.monotonic())
            if execution.reply is not None:
                answered.set()

        with self._router.expect(execution.msg_id, on_message):
            content = execute_request("", silent=True, expressions=expressions)
            await self._channels.send("shell", "execute_request", content, msg_id=execution.msg_id)
            await self.first(answered)
        return execution.user_expressions

    async def _wait_usable(self) -> None:
        await self.first(self._usable)
        if self.is_dead:
            raise KernelDiedError("The kernel has ended.")

    async def look(self) -> None:
        """Read the keeper's status now."""
        await self._watch.look()

    def suspect(self) -> None:
        """Something hints at its death: look at once. Called with the engine's events."""
        self._watch.suspect()

    def give_up(self, detail: str) -> None:
        """Count it as dead although nothing confirms it; its container must go."""
        self._watch.die(ExitCause.CONTAINER_GONE, detail)

    async def first(self, wanted: anyio.Event) -> None:
        """Wait for an event or for death."""
        async with anyio.create_task_group() as tg:

            async def wait(one: anyio.Event) -> None:
                await one.wait()
                tg.cancel_scope.cancel()

            tg.start_soon(wait, wanted)
            tg.start_soon(wait, self._watch.dead)

    async def _connect(self, *, task_status: TaskStatus[None]) -> None:
        """Hold the channels open, and rebuild them when they break."""
        is_first = True
        breaks: deque[float] = deque(maxlen=MAX_REBUILDS + 1)
        while not self.is_dead:
            self._broken, self._was_severed = anyio.Event(), False
            try:
                async with open_channels(
                    self.host.connection,
                    context=self._wire.context,
                    wire_id=self._wire_id,
                    on_message=self._router.deliver,
                    on_event=self._on_event,
                ) as channels:
                    self._channels = channels
                    self._usable.set()
                    if is_first:
                        task_status.started()
                        is_first = False
                    with self._wire.guard.watching(channels):
                        await self.first(self._broken)
            except KernelError as error:
                if is_first:
                    raise
                _log.info("The channels of session %s cannot be opened: %s", self._session, error)
            self._usable = anyio.Event()
            with anyio.move_on_after(VERDICT_LIMIT_S):
                await self._watch.dead.wait()
                return
            self._gaps += 1
            # The memory guard severs the innocent, too, until it has found who fills the memory.
            if not self._was_severed:
                breaks.append(time.monotonic())
            if len(breaks) > MAX_REBUILDS and breaks[-1] - breaks[0] < REBUILD_WINDOW_S:
                self._watch.die(ExitCause.HOSTILE, "its channels broke again and again")

    def _on_event(self, happened: ChannelEvent) -> None:
        if happened.kind == "connected":
            self._watch.connected()
        elif happened.kind in ("disconnected", "severed"):
            self._was_severed = self._was_severed or happened.kind == "severed"
            self._watch.disconnected()
            self._broken.set()
        elif happened.kind == "flooding":
            self._gaps += 1
        elif happened.kind == "hostile":
            _log.warning(
                "The kernel of session %s breaks the protocol: %s",
                self._session,
                happened.detail,
                extra=event("kernel.hostile", session=self._session),
            )
            self._watch.die(ExitCause.HOSTILE, happened.detail)

    async def _beat(self) -> None:
        try:
            await self._heartbeat.run()
        except KernelError as error:
            # Without a heartbeat the kernel is only watched less closely.
            _log.warning("No heartbeat of session %s: %s", self._session, error)

    async def wait_ready(self) -> None:
        """Return when control answers, iopub is proven and the main thread has answered."""
        heard = anyio.Event()
        pending = {"control", "iopub"}

        def on_message(message: Message) -> None:
            pending.discard(message.channel)
            if not pending:
                heard.set()

        while pending and not self.is_dead:
            msg_id = ChannelSet.new_msg_id()
            with self._router.expect(msg_id, on_message), anyio.move_on_after(NUDGE_INTERVAL_S):
                await self._channels.send("control", "kernel_info_request", {}, msg_id=msg_id)
                await self.first(heard)
        if not self.is_dead:
            await self.wait_answering()


@asynccontextmanager
async def open_kernel(
    host: KernelHost,
    config: KernelConfig,
    *,
    wire: Wire,
    wire_id: str,
    session: str,
    ready_limit_s: float,
    is_computing: bool = False,
) -> AsyncIterator[Kernel]:
    """Connect to the kernel that the keeper runs now, and yield it when it answers.

    Args:
        host: The kernel's surroundings.
        config: How it is watched.
        wire: The way to its sockets.
        wire_id: ZeroMQ identity; the same for every incarnation of a session's kernel.
        session: Id of the session, for the log.
        ready_limit_s: Seconds it has to answer.
        is_computing: It runs an earlier broker's cell and may not answer before that has ended: it is
            yielded unasked, and `Kernel.wait_ready` is to be called later.

    Raises:
        KernelStartError: It does not answer in time, or died on the way; then with the report.
    """
    deadline = time.monotonic() + ready_limit_s
    status = await wait_forked(host, deadline)
    kernel = Kernel(
        host, config, wire=wire, wire_id=wire_id, generation=status.generation, session=session
    )
    problem: KernelError | None = None
    is_ready = False
    async with anyio.create_task_group() as tg:
        tg.start_soon(kernel._watch.run, kernel._heartbeat)  # noqa: SLF001
        tg.start_soon(kernel._beat)  # noqa: SLF001
        with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
            try:
                await tg.start(kernel._connect)  # noqa: SLF001
                if not is_computing:
                    await kernel.wait_ready()
                is_ready = not kernel.is_dead
            except KernelError as error:
                problem = error
        if is_ready:
            yield kernel
        tg.cancel_scope.cancel()
    # Raised here, where no task group wraps it.
    if not is_ready:
        raise _start_error(kernel, ready_limit_s) from problem


def _start_error(kernel: Kernel, ready_limit_s: float) -> KernelStartError:
    if kernel.exit is not None:
        return KernelStartError(f"The new kernel {kernel.exit.sentence()}.", report=kernel.exit)
    return KernelStartError(
        f"The kernel did not answer within {ready_limit_s:.0f} s.",
        hint="Is the machine overloaded, or does another client's cell still run in it?",
    )


def _ignore(message: Message) -> None:
    """Messages of clients other than the broker; nobody reads them yet."""
