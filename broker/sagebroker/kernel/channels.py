"""`ChannelSet`: the four message channels to one incarnation of a kernel.

One task per channel is the only receiver of its socket: it drains, checks, parses and hands over,
nothing else. A set is never reused for the kernel's next incarnation: its sockets are pinned to
the inodes of this one, so that a request cannot be delivered to a later kernel.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import zmq
import zmq.asyncio
from anyio import CancelScope, create_task_group, fail_after, sleep
from anyio.lowlevel import checkpoint
from jupyter_client.session import Session
from zmq.utils.monitor import recv_monitor_message

from sagebroker.errors import WireError, alone
from sagebroker.kernel.intake import Intake, IntakeCounts, WireLimits
from sagebroker.kernel.sockets import PinnedSocket
from sagebroker.protocol.messages import DELIMITER, Channel, Message, parse, sign

if TYPE_CHECKING:
    from sagebroker.kernel.connection import ConnectionInfo
    from sagebroker.protocol.requests import ClientRequest

CHANNELS: Final[tuple[Channel, ...]] = ("shell", "control", "stdin", "iopub")
USERNAME: Final = "sagebroker"
"""User name in the headers of our messages."""
SEND_RETRY_S: Final = 0.01
"""Seconds between tries to send into a full queue or before the connection stands."""
TURN_S: Final = 0.005
"""Seconds a reader may work before other tasks run: 100 flooding kernels delay a task by 0.5 s."""
FLOOD_REPORT_INTERVAL_S: Final = 1.0
"""Seconds between two ``flooding`` events of a channel."""

EventKind = Literal[
    "connected", "disconnected", "handshake_failed", "severed", "flooding", "hostile"
]
_MONITORED: Final[dict[int, EventKind]] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: "connected",
    zmq.EVENT_DISCONNECTED: "disconnected",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "handshake_failed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "handshake_failed",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "handshake_failed",
}


@dataclass(frozen=True)
class ChannelEvent:
    """Something happened to a channel.

    ``connected`` and ``handshake_failed`` as named. ``disconnected``: the kernel's end is gone, or
    it sent a frame over the limit and ZeroMQ hung up; on iopub nothing may ever come again, so the
    set is to be rebuilt. ``severed``: `ChannelSet.sever` has hung up. ``flooding``: messages are dropped because the budget is used up.
    ``hostile``: as many invalid messages as the limit allows have come; sent once per channel.
    """

    channel: Channel
    kind: EventKind
    detail: str = ""


MessageHandler = Callable[[Message], None]
EventHandler = Callable[[ChannelEvent], None]


class ChannelSet:
    """Made by `open_channels`. Handlers run in the readers' tasks and must not block."""

    def __init__(
        self,
        connection: ConnectionInfo,
        *,
        context: zmq.asyncio.Context,
        wire_id: str,
        on_message: MessageHandler,
        on_event: EventHandler,
        limits: WireLimits,
    ) -> None:
        self._connection = connection
        self._context = context
        self._on_message = on_message
        self._on_event = on_event
        self._limits = limits
        self._wire_id = wire_id
        self._wire = Session(
            key=connection.key,
            signature_scheme=connection.signature_scheme,
            packer="json",
            unpacker="json",
            session=wire_id,
            username=USERNAME,
            digest_history_size=0,
            check_pid=False,
        )
        self._pins: list[PinnedSocket] = []
        self._sockets: dict[Channel, zmq.asyncio.Socket] = {}
        self._monitors: dict[Channel, zmq.asyncio.Socket] = {}
        now = time.monotonic()
        self._intakes: dict[Channel, Intake[zmq.Frame]] = {
            name: Intake(limits, now) for name in CHANNELS
        }
        self._is_severed = False
        self._serving = CancelScope()
        self._reported_hostile: set[Channel] = set()
        self._reported_flood: dict[Channel, float] = {}

    @property
    def counts(self) -> Mapping[Channel, IntakeCounts]:
        """Messages, bytes and drops of each channel so far."""
        return {name: intake.counts for name, intake in self._intakes.items()}

    @staticmethod
    def new_msg_id() -> str:
        """A fresh request id, so that a waiter can be registered before the send."""
        return uuid.uuid4().hex

    async def send(
        self,
        channel: Channel,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        msg_id: str | None = None,
    ) -> str:
        """Send one request; returns its id.

        Either the whole message is handed to ZeroMQ or, when this raises or is cancelled, nothing
        of it.

        Args:
            channel: shell, control or stdin.
            msg_type: Such as ``execute_request``.
            content: The request's content.
            msg_id: An id from `new_msg_id`; a fresh one by default.

        Raises:
            WireError: The kernel takes nothing for ``send_limit_s`` seconds, or the content cannot
                be encoded.
        """
        message = self._wire.msg(msg_type, dict(content))
        request_id = msg_id or self.new_msg_id()
        message["header"]["msg_id"] = message["msg_id"] = request_id
        try:
            frames = self._wire.serialize(message)
        except (ValueError, TypeError) as error:
            raise WireError(f"A {msg_type} cannot be encoded: {error}.") from error
        await self._send(channel, msg_type, frames)
        return request_id

    async def pass_on(self, channel: Channel, request: ClientRequest) -> None:
        """Send a client's request, with its own header. Either the whole of it or nothing, as `send`.

        Raises:
            WireError: The kernel takes nothing for ``send_limit_s`` seconds.
        """
        signature = sign(self._connection.key, request.frames)
        frames = [DELIMITER, signature, *request.frames, *request.buffers]
        await self._send(channel, request.msg_type, frames)

    async def _send(self, channel: Channel, msg_type: str, frames: list[bytes]) -> None:
        try:
            with fail_after(self._limits.send_limit_s):
                while not await self._send_now(channel, frames):  # noqa: ASYNC110 - no event
                    await sleep(SEND_RETRY_S)
        except TimeoutError as error:
            raise WireError(
                f"The kernel took no {msg_type} on {channel} for {self._limits.send_limit_s:g} s.",
                hint="Its connection is gone or it has stopped reading; restart the session's kernel.",
            ) from error
        except zmq.ZMQError as error:
            raise WireError(f"Sending a {msg_type} on {channel} failed: {error}.") from error

    def connect(self) -> None:
        """Make and connect all sockets; `open_channels` calls it.

        Raises:
            KernelStartError: A socket of the kernel is missing.
            WireError: Something else is in a socket's place, or ZeroMQ refuses.
        """
        try:
            for name in CHANNELS:
                self._connect(name)
        except zmq.ZMQError as error:
            raise WireError(f"The kernel's channels cannot be opened: {error}.") from error

    async def serve(self) -> None:
        """Read and watch all channels until cancelled or severed; `open_channels` starts it."""
        try:
            with self._serving:
                async with create_task_group() as tasks:
                    for name in CHANNELS:
                        tasks.start_soon(self._watch, name, name=f"watch {name}")
                        tasks.start_soon(self._read, name, name=f"read {name}")
        finally:
            self.close()

    def close(self) -> None:
        """Close all sockets, then let the pinned inodes go; after all readers have ended."""
        self._is_severed = True
        for name, socket in self._sockets.items():
            if name in self._monitors:
                socket.disable_monitor()
                self._monitors[name].close(linger=0)
            socket.close(linger=0)
        for pin in self._pins:
            pin.close()
        self._monitors.clear()
        self._sockets.clear()
        self._pins.clear()

    @property
    def received_bytes(self) -> int:
        """Bytes of all frames that were read from all channels."""
        return sum(intake.counts.bytes for intake in self._intakes.values())

    def sever(self, detail: str) -> None:
        """Hang up on the kernel for good: ZeroMQ frees what it holds, nothing comes or goes.

        Closing is the only way: a SUB socket that is merely disconnected keeps its connection
        while a message is on its way (measured with libzmq 4.3.5). Does nothing the second time.

        Args:
            detail: Why, for the ``severed`` events.
        """
        if self._is_severed:
            return
        self._is_severed = True
        self._serving.cancel()
        for name in CHANNELS:
            self._on_event(ChannelEvent(name, "severed", detail))

    def accuse(self, detail: str) -> None:
        """Report the kernel as hostile on iopub, for what a guard has seen.

        Args:
            detail: What that is.
        """
        self._on_event(ChannelEvent("iopub", "hostile", detail))

    async def _send_now(self, channel: Channel, frames: list[bytes]) -> bool:
        """Whether there was room for the message."""
        if self._is_severed:
            raise WireError("The connection to the kernel has been closed.")
        try:
            # Without DONTWAIT a future of its own would wait, and end as a cancellation of the
            # caller when the socket is closed.
            await self._sockets[channel].send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    async def _read(self, name: Channel) -> None:
        """Read one channel until cancelled."""
        socket = self._sockets[name]
        raw: zmq.Socket[bytes] = zmq.Socket.shadow(socket.underlying)
        turn_began = time.monotonic()
        while True:
            frame: zmq.Frame | None = await socket.recv(copy=False)
            # The rest of what is there needs no future of its own, and a message of very many
            # frames must not be received in one go.
            while frame is not None:
                now = time.monotonic()
                self._take(name, frame, now)
                if now - turn_began >= TURN_S:
                    await checkpoint()
                    turn_began = time.monotonic()
                frame = _receive_now(raw)

    async def _watch(self, name: Channel) -> None:
        """Report one channel's connection until cancelled."""
        monitor = self._monitors[name]
        while True:
            seen = await recv_monitor_message(monitor)
            kind = _MONITORED.get(seen["event"])
            if kind is not None:
                self._on_event(ChannelEvent(name, kind, f"value {seen['value']}"))

    def _connect(self, name: Channel) -> None:
        pin = PinnedSocket(self._connection.socket_path(name))
        self._pins.append(pin)
        socket = self._context.socket(zmq.SUB if name == "iopub" else zmq.DEALER)
        self._sockets[name] = socket
        socket.linger = 0
        socket.setsockopt(zmq.MAXMSGSIZE, self._limits.max_frame_bytes)
        socket.setsockopt(zmq.RCVHWM, self._limits.queue_messages)
        if name == "iopub":
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        else:
            socket.setsockopt(zmq.IDENTITY, self._wire_id.encode())
            # Nothing is queued for a connection that is not there: a full or dead one is told.
            socket.setsockopt(zmq.IMMEDIATE, 1)
        events = 0
        for event in _MONITORED:
            events |= event
        self._monitors[name] = socket.get_monitor_socket(events)
        socket.connect(pin.endpoint)

    def _take(self, name: Channel, frame: zmq.Frame, now: float) -> None:
        intake = self._intakes[name]
        frames = intake.take(frame, now, more=frame.more)
        if frames is not None:
            try:
                message = parse(name, [part.bytes for part in frames], self._connection.key)
            except WireError as error:
                intake.refuse(error.message)
            else:
                self._on_message(message)
                return
        if not frame.more:
            self._report(name, intake, now)

    def _report(self, name: Channel, intake: Intake[zmq.Frame], now: float) -> None:
        """Tell of a message that was not delivered, seldom enough not to flood in turn."""
        if intake.is_over and name not in self._reported_hostile:
            self._reported_hostile.add(name)
            reasons = intake.counts.invalid + intake.counts.dropped
            worst = reasons.most_common(1)
            self._on_event(ChannelEvent(name, "hostile", worst[0][0] if worst else ""))
        if intake.is_flooded:
            last = self._reported_flood.get(name)
            if last is None or now - last >= FLOOD_REPORT_INTERVAL_S:
                self._reported_flood[name] = now
                self._on_event(ChannelEvent(name, "flooding", "the budget is used up"))


@asynccontextmanager
async def open_channels(
    connection: ConnectionInfo,
    *,
    context: zmq.asyncio.Context,
    wire_id: str,
    on_message: MessageHandler,
    on_event: EventHandler,
    limits: WireLimits | None = None,
) -> AsyncIterator[ChannelSet]:
    """Open the channels of one incarnation of a kernel.

    Args:
        connection: Where the kernel's sockets are, by host paths.
        context: The ZeroMQ context; a set takes 12 of its 1023 sockets (3 for each monitored one).
        wire_id: ZeroMQ identity and wire session. A later process that uses the same one gets the
            replies to this one's requests; two at once get each other's.
        on_message: Called with every valid message, in order for each channel.
        on_event: Called with every `ChannelEvent`.
        limits: Limits of each channel.

    Raises:
        KernelStartError: A socket of the kernel is missing.
        WireError: Something else is in a socket's place, or ZeroMQ refuses.
    """
    channels = ChannelSet(
        connection,
        context=context,
        wire_id=wire_id,
        on_message=on_message,
        on_event=on_event,
        limits=limits or WireLimits(),
    )
    try:
        with alone():
            channels.connect()
            async with create_task_group() as readers:
                readers.start_soon(channels.serve, name="kernel channels")
                yield channels
                readers.cancel_scope.cancel()
    finally:
        channels.close()


def _receive_now(raw: zmq.Socket[bytes]) -> zmq.Frame | None:
    try:
        return raw.recv(zmq.DONTWAIT, copy=False)
    except zmq.Again:
        return None
