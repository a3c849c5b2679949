"""`WireClient`: the least that runs cells over the wire layer; for tests and benchmarks."""

from __future__ import annotations

import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import zmq.asyncio

from sagebroker.kernel.channels import ChannelEvent, ChannelSet, open_channels
from sagebroker.kernel.router import MessageRouter
from sagebroker.protocol.execution import Execution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sagebroker.kernel.connection import ConnectionInfo
    from sagebroker.kernel.intake import WireLimits
    from sagebroker.protocol.messages import Message


class WireClient:
    """Runs cells and remembers what came; `open_wire` makes one."""

    def __init__(self) -> None:
        self.events: list[ChannelEvent] = []
        self.foreign: list[Message] = []
        """Messages nobody waited for."""
        self.router = MessageRouter(self.foreign.append)
        self.channels: ChannelSet
        self._changed = anyio.Event()

    def take(self, message: Message) -> None:
        """Handler of every message."""
        self.router.deliver(message)
        self._changed.set()

    def note(self, event: ChannelEvent) -> None:
        """Handler of every event."""
        self.events.append(event)
        self._changed.set()

    async def execute(
        self,
        code: str,
        *,
        limit_s: float = 30.0,
        execution: Execution | None = None,
        store_history: bool = False,
        expressions: dict[str, str] | None = None,
    ) -> Execution:
        """Run one cell to its end.

        Args:
            code: The cell.
            limit_s: Seconds it may take.
            execution: Followed in place of a fresh one.
            store_history: Whether it counts as a user's cell.
            expressions: To be evaluated by a silent request; answered in its ``user_expressions``.

        Raises:
            TimeoutError: It has not ended within ``limit_s``.
        """
        execution = execution or Execution(self.channels.new_msg_id())
        changed = anyio.Event()

        def feed(message: Message) -> None:
            execution.feed(message, time.monotonic())
            changed.set()

        with self.router.expect(execution.msg_id, feed), anyio.fail_after(limit_s):
            await self.channels.send(
                "shell",
                "execute_request",
                {
                    "code": code,
                    "silent": expressions is not None,
                    "store_history": store_history,
                    "user_expressions": expressions or {},
                    "allow_stdin": False,
                    "stop_on_error": False,
                },
                msg_id=execution.msg_id,
            )
            while not execution.ended(now := time.monotonic()):
                due = execution.next_check(now)
                with anyio.move_on_after(math.inf if due is None else due - now):
                    await changed.wait()
                changed = anyio.Event()
        return execution

    async def until(self, condition: Callable[[], bool], *, limit_s: float = 10.0) -> None:
        """Wait until ``condition`` holds, looking at it after every message and event.

        Raises:
            TimeoutError: It does not hold within ``limit_s``.
        """
        with anyio.fail_after(limit_s):
            while not condition():
                self._changed = anyio.Event()
                # Counters change without a message or an event.
                with anyio.move_on_after(0.02):
                    await self._changed.wait()


@asynccontextmanager
async def open_wire(
    connection: ConnectionInfo, *, wire_id: str = "test-1", limits: WireLimits | None = None
) -> AsyncIterator[WireClient]:
    """A client whose channels are connected; on entry the kernel has its subscription."""
    client = WireClient()
    with zmq.asyncio.Context() as context:
        async with open_channels(
            connection,
            context=context,
            wire_id=wire_id,
            on_message=client.take,
            on_event=client.note,
            limits=limits,
        ) as channels:
            client.channels = channels
            yield client
