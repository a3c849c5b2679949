"""`HeldChannels`: the channels to one incarnation of a kernel, rebuilt when they break.

ZeroMQ hangs up on a frame that is too large and never comes back. The identity stays, so that a pending
reply still arrives; output lost in between is noted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from sagebroker.errors import KernelDiedError, KernelError
from sagebroker.kernel.channels import ChannelEvent, ChannelSet, open_channels
from sagebroker.logs import event
from sagebroker.model import ExitCause

if TYPE_CHECKING:
    import zmq.asyncio
    from anyio.abc import TaskStatus

    from sagebroker.kernel.connection import ConnectionInfo
    from sagebroker.kernel.death import DeathWatch
    from sagebroker.kernel.guard import MemoryGuard
    from sagebroker.kernel.router import MessageHandler

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


class HeldChannels:
    """See the module. `run` in a task; `ready` gives the channels.

    Args:
        connection: Of the kernel.
        wire: The way to its sockets.
        wire_id: ZeroMQ identity.
        session: Id of the session, for the log.
        watch: Told what the channels say of the kernel, and asked whether it is dead.
        on_message: Called with each message.
    """

    def __init__(
        self,
        connection: ConnectionInfo,
        *,
        wire: Wire,
        wire_id: str,
        session: str,
        watch: DeathWatch,
        on_message: MessageHandler,
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._wire_id = wire_id
        self._session = session
        self._watch = watch
        self._on_message = on_message
        self.channels: ChannelSet
        """The newest set; of use once `run` has started."""
        self._broken = anyio.Event()
        self._usable = anyio.Event()
        self._was_severed = False
        self.gaps = 0
        """How often output may have been lost: channels were rebuilt, or overran their budget."""

    async def ready(self) -> ChannelSet:
        """The channels, once they can be used.

        Raises:
            KernelDiedError: The kernel has ended.
        """
        # What is sent at once must not be sent for a caller who has gone.
        await anyio.lowlevel.checkpoint_if_cancelled()
        if not self._usable.is_set():
            await self._watch.first(self._usable)
        if self._watch.dead.is_set():
            raise KernelDiedError("The kernel has ended.")
        return self.channels

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Hold the channels open, and rebuild them when they break."""
        is_first = True
        breaks: deque[float] = deque(maxlen=MAX_REBUILDS + 1)
        while not self._watch.dead.is_set():
            self._broken, self._was_severed = anyio.Event(), False
            try:
                async with open_channels(
                    self._connection,
                    context=self._wire.context,
                    wire_id=self._wire_id,
                    on_message=self._on_message,
                    on_event=self._on_event,
                ) as channels:
                    self.channels = channels
                    self._usable.set()
                    if is_first:
                        task_status.started()
                        is_first = False
                    with self._wire.guard.watching(channels):
                        await self._watch.first(self._broken)
            except KernelError as error:
                if is_first:
                    raise
                _log.info("The channels of session %s cannot be opened: %s", self._session, error)
            self._usable = anyio.Event()
            with anyio.move_on_after(VERDICT_LIMIT_S):
                await self._watch.dead.wait()
                return
            self.gaps += 1
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
            self.gaps += 1
        elif happened.kind == "hostile":
            _log.warning(
                "The kernel of session %s breaks the protocol: %s",
                self._session,
                happened.detail,
                extra=event("kernel.hostile", session=self._session),
            )
            self._watch.die(ExitCause.HOSTILE, happened.detail)
