"""`Kernel`: one incarnation of a session's kernel, from its first answer to its death.

Every incarnation has sockets of its own: a request that the dead kernel did not take must never
reach the next one, which listens on the same paths.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from sagebroker.config import KernelConfig
from sagebroker.errors import KernelError, KernelStartError
from sagebroker.kernel.channels import ChannelSet
from sagebroker.kernel.death import DeathWatch
from sagebroker.kernel.heartbeat import Heartbeat
from sagebroker.kernel.held import HeldChannels, Wire
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.router import MessageRouter
from sagebroker.kernel.running import Follower, MessageTaker, RunningCell
from sagebroker.kernel.start import wait_forked
from sagebroker.model import ExitCause, ExitReport
from sagebroker.protocol.execution import Execution
from sagebroker.protocol.messages import Channel, Message, software_of
from sagebroker.protocol.outputs import OutputFold
from sagebroker.protocol.requests import OWN_PREFIX, ClientRequest, execute_request

NUDGE_INTERVAL_S = 0.3
"""Time between requests to a kernel that does not answer yet: iopub loses what is sent before the
subscription has arrived, and nothing tells when that is."""

_log = logging.getLogger(__name__)


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
        on_message: MessageTaker,
    ) -> None:
        self.host = host
        self.generation = generation
        self._session = session
        self._on_message = on_message
        self._router = MessageRouter(on_foreign=_ignore)
        self._watch = DeathWatch(
            host, generation, session=session, heartbeat_suspect_s=config.heartbeat_suspect_s
        )
        self._heartbeat = Heartbeat(host.connection, wire.context, config.heartbeat_interval_s)
        self._line = HeldChannels(
            host.connection,
            wire=wire,
            wire_id=wire_id,
            session=session,
            watch=self._watch,
            on_message=self._take,
        )
        self.info: dict[str, Any] = {}
        """What it says of itself: the content of its ``kernel_info_reply``."""

    def __repr__(self) -> str:
        state = "dead" if self.is_dead else "alive"
        return f"<Kernel {self._session} generation {self.generation} [{state}]>"

    @property
    def software(self) -> str:
        """Which kernel it says it is, and its version: ``sage 10.8``."""
        return software_of(self.info)

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
        return self._line.gaps

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
                self.info = message.content
                answered.set()

        msg_id = _own_id()
        with self._router.expect(msg_id, on_message):
            await self._line.channels.send("shell", "kernel_info_request", {}, msg_id=msg_id)
            await self.first(answered)

    @asynccontextmanager
    async def executing(
        self,
        code: str,
        outputs: OutputFold,
        *,
        msg_id: str,
        on_message: MessageTaker,
        request: ClientRequest | None = None,
    ) -> AsyncIterator[RunningCell]:
        """Send ``code``; inside the context its messages are received.

        Args:
            code: The cell's.
            outputs: Where its outputs go.
            msg_id: Of the request; a new one for each.
            on_message: Called with each message that comes of it.
            request: Of a client, to be sent in place of the code.

        Raises:
            KernelDiedError: The kernel is dead already; nothing was sent.
            WireError: The kernel takes no request; nothing was sent.
        """
        channels = await self._line.ready()
        has_reply = request is None or request.has_reply
        execution = Execution(msg_id, outputs, has_reply=has_reply)
        running = RunningCell(execution, self, on_message)
        with self._router.expect(msg_id, running.feed):
            if request is None:
                content = execute_request(code)
                await channels.send("shell", "execute_request", content, msg_id=msg_id)
            else:
                await channels.pass_on("shell", request)
            yield running

    async def pass_on(self, channel: Channel, request: ClientRequest) -> None:
        """Send a client's request that runs no code. Raises `KernelDiedError`, `WireError`."""
        await (await self._line.ready()).pass_on(channel, request)

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
        content = {"status": "ok", "value": text}
        await (await self._line.ready()).send("stdin", "input_reply", content)

    async def ask(self, expressions: dict[str, str]) -> dict[str, Any]:
        """Have Python expressions evaluated silently: no output, no history, no prompt number.

        To be bounded by the caller: it is answered after whatever runs before it.

        Returns:
            The kernel's answers by name, hostile input; empty where the kernel has ended.

        Raises:
            KernelDiedError: The kernel is dead already.
            WireError: The kernel takes no request.
        """
        channels = await self._line.ready()
        execution = Execution(_own_id())
        answered = anyio.Event()

        def on_message(message: Message) -> None:
            execution.feed(message, time.monotonic())
            if execution.reply is not None:
                answered.set()

        with self._router.expect(execution.msg_id, on_message):
            content = execute_request("", silent=True, expressions=expressions)
            await channels.send("shell", "execute_request", content, msg_id=execution.msg_id)
            await self.first(answered)
        return execution.user_expressions

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
        await self._watch.first(wanted)

    def _take(self, message: Message) -> None:
        if not message.parent_id.startswith(OWN_PREFIX):
            self._on_message(message)
        self._router.deliver(message)

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
            msg_id = _own_id()
            with self._router.expect(msg_id, on_message), anyio.move_on_after(NUDGE_INTERVAL_S):
                await self._line.channels.send("control", "kernel_info_request", {}, msg_id=msg_id)
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
    on_message: MessageTaker,
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
        on_message: Called with each message but the answers to the broker's own questions.
        ready_limit_s: Seconds it has to answer.
        is_computing: It runs an earlier broker's cell and may not answer before that has ended: it is
            yielded unasked, and `Kernel.wait_ready` is to be called later.

    Raises:
        KernelStartError: It does not answer in time, or died on the way; then with the report.
    """
    deadline = time.monotonic() + ready_limit_s
    status = await wait_forked(host, deadline)
    kernel = Kernel(
        host,
        config,
        wire=wire,
        wire_id=wire_id,
        generation=status.generation,
        session=session,
        on_message=on_message,
    )
    problem: KernelError | None = None
    is_ready = False
    async with anyio.create_task_group() as tg:
        tg.start_soon(kernel._watch.run, kernel._heartbeat)  # noqa: SLF001
        tg.start_soon(kernel._beat)  # noqa: SLF001
        with anyio.move_on_after(max(0.0, deadline - time.monotonic())):
            try:
                await tg.start(kernel._line.run)  # noqa: SLF001
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


def _own_id() -> str:
    return OWN_PREFIX + ChannelSet.new_msg_id()


def _ignore(message: Message) -> None:
    """What nobody waits for: output of threads after their cell, late replies; `on_message` has had it."""
