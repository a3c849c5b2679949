"""`Heartbeat`: whether the kernel's process exists and is not stopped.

ipykernel answers from a C thread, also while a computation holds the GIL for minutes, so a beat
says nothing about whether cells are run, and silence is a suspicion to look into, never a verdict.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal

import zmq
import zmq.asyncio
from anyio.lowlevel import checkpoint

from sagebroker.errors import WireError
from sagebroker.kernel.sockets import PinnedSocket

if TYPE_CHECKING:
    from sagebroker.kernel.connection import ConnectionInfo

Verdict = Literal["beating", "late", "suspect"]

LATE_S: Final = 3.0
"""Silence worth a remark: under 8 busy processes on 2 cores the slowest of 200 pongs took 62 ms."""
SUSPECT_S: Final = 10.0
"""Silence after which the container is to be looked at."""
MAX_PONG_BYTES: Final = 64
"""Size of a pong; ours have under 20 bytes. ZeroMQ disconnects from a kernel that sends more."""
QUEUE_LENGTH: Final = 16
"""Pings and pongs queued: more are of no use."""
_PONGS_A_TURN: Final = 2 * QUEUE_LENGTH


def verdict(silent_s: float, *, late_s: float = LATE_S, suspect_s: float = SUSPECT_S) -> Verdict:
    """What ``silent_s`` seconds of silence mean."""
    if silent_s >= suspect_s:
        return "suspect"
    return "late" if silent_s >= late_s else "beating"


class Heartbeat:
    """Pings one kernel. The owner starts `run` in a task group and asks `silent_for`.

    Pings are numbered and sent without waiting for the last pong. Silence counts from the first
    ping that was not answered, so that a stall of the broker itself is not taken for the kernel's.

    Args:
        connection: Where the kernel's sockets are, by host paths.
        context: The ZeroMQ context to make the socket in.
        interval_s: Seconds between pings.
    """

    def __init__(
        self, connection: ConnectionInfo, context: zmq.asyncio.Context, interval_s: float = 1.0
    ) -> None:
        self._path = connection.socket_path("hb")
        self._context = context
        self._interval_s = interval_s
        self._sent = 0
        self._answered = 0
        self._waiting_since: float | None = None

    @property
    def beats(self) -> int:
        """Number of the newest ping that was answered, from 1."""
        return self._answered

    def silent_for(self, now: float) -> float:
        """Seconds since the first unanswered ping, 0 while every ping has its pong.

        Args:
            now: Monotonic seconds.
        """
        return 0.0 if self._waiting_since is None else max(0.0, now - self._waiting_since)

    async def run(self) -> None:
        """Ping until cancelled.

        Raises:
            KernelStartError: The kernel has no heartbeat socket.
            WireError: There is no socket in its place, or ZeroMQ refuses.
        """
        pinned = PinnedSocket(self._path)
        try:
            socket = self._context.socket(zmq.DEALER)
            try:
                socket.linger = 0
                socket.setsockopt(zmq.MAXMSGSIZE, MAX_PONG_BYTES)
                socket.setsockopt(zmq.RCVHWM, QUEUE_LENGTH)
                socket.setsockopt(zmq.SNDHWM, QUEUE_LENGTH)
                socket.connect(pinned.endpoint)
                while True:
                    await self._ping(socket)
            except zmq.ZMQError as error:
                raise WireError(f"The heartbeat socket failed: {error}.") from error
            finally:
                socket.close(linger=0)
        finally:
            pinned.close()

    async def _ping(self, socket: zmq.asyncio.Socket) -> None:
        """Send one ping and read pongs until the next is due."""
        due = time.monotonic() + self._interval_s
        self._sent += 1
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()
        raw: zmq.Socket[bytes] = zmq.Socket.shadow(socket.underlying)
        with suppress(zmq.Again):  # a queue full of unanswered pings: silence goes on counting
            raw.send(b"%d" % self._sent, zmq.DONTWAIT)
        while (left := due - time.monotonic()) > 0:
            if await socket.poll(max(1, round(left * 1000))):
                self._read_pongs(raw)
                await checkpoint()

    def _read_pongs(self, raw: zmq.Socket[bytes]) -> None:
        for _ in range(_PONGS_A_TURN):
            try:
                pong = raw.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            if pong.isdigit() and self._answered < int(pong) <= self._sent:
                self._answered = int(pong)
                self._waiting_since = None if self._answered == self._sent else time.monotonic()
