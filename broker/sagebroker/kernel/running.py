"""`RunningCell`: an execution in flight, with somebody waiting for it.

`Follower` feeds one that an earlier broker has started.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from sagebroker.errors import KernelError
from sagebroker.kernel.journal import JournalReader
from sagebroker.protocol.execution import GRACE_S, Execution
from sagebroker.protocol.messages import Message

FOLLOW_INTERVAL_S = 0.05
"""Time between looks at a journal: nothing tells when it grows."""

MessageTaker = Callable[[Message], None]


class Incarnation(Protocol):
    """What is to be known here of the kernel that runs a cell."""

    @property
    def is_dead(self) -> bool:
        """Whether it has ended."""
        ...

    @property
    def gaps(self) -> int:
        """How often output may have been lost."""
        ...

    async def first(self, wanted: anyio.Event) -> None:
        """Wait for an event or for death."""
        ...


class RunningCell:
    """See the module.

    Args:
        on_message: Called with each of its messages, after they were taken here.
        settle: Awaited at the end, for what has yet to be read.
    """

    def __init__(
        self,
        execution: Execution,
        kernel: Incarnation,
        on_message: MessageTaker,
        settle: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.execution = execution
        self._kernel = kernel
        self._on_message = on_message
        self._settle = settle
        self._gaps_before = kernel.gaps
        self._changed = anyio.Event()
        self._lost_track = False
        self._lost_output = False

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._kernel.is_dead or self._lost_track or self.execution.ended(time.monotonic())

    @property
    def output_lost(self) -> bool:
        """Whether some of its output may be missing."""
        return (
            self._lost_track
            or self._lost_output
            or self.execution.idle_lost
            or self._kernel.gaps > self._gaps_before
        )

    def feed(self, message: Message) -> None:
        """Take a message; called by the router."""
        now = time.monotonic()
        before = self.execution.next_check(now)
        self.execution.feed(message, now)
        self._on_message(message)
        if self.execution.ended(now) or self.execution.next_check(now) != before:
            self._wake()

    def lose_track(self) -> None:
        """Nothing more can be learnt of it."""
        self._lost_track = True
        self._wake()

    def lose_output(self) -> None:
        """Some of its output is missing."""
        self._lost_output = True

    async def wait_ended(self) -> None:
        """Return when the execution has ended, or its kernel is dead."""
        while not self.has_ended:
            now = time.monotonic()
            check_at = self.execution.next_check(now)
            with anyio.move_on_after(None if check_at is None else max(0.0, check_at - now)):
                await self._kernel.first(self._changed)
        if self._settle is not None:
            await self._settle()

    def _wake(self) -> None:
        # Several wait for the end at times: each holds the event it found, so a new one is made here,
        # not by a waiter.
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


class Follower:
    """Feeds a running cell from its journal, while that grows.

    Live messages only tell how a cell ends whose journal has become unusable: the journal has
    everything from the cell's beginning, so outputs come from there alone, once each.

    Args:
        path: Of the journal.
        key: With which its messages are signed.
        kernel: That runs the cell.
        execution: Of the cell.
        on_message: See `RunningCell`.
        wait_answering: Returns when the kernel has answered a request, as it does after the cell.
    """

    def __init__(
        self,
        path: Path,
        key: bytes,
        kernel: Incarnation,
        execution: Execution,
        *,
        on_message: MessageTaker,
        wait_answering: Callable[[], Awaitable[None]],
    ) -> None:
        self._journal = JournalReader(path, key)
        self.running = RunningCell(execution, kernel, on_message, self.read)
        self._wait_answering = wait_answering
        self._live: list[Message] = []
        self._reading = anyio.Lock()

    def heard(self, message: Message) -> None:
        """Take a live message."""
        if message.msg_type in ("execute_reply", "status"):
            self._live.append(message)

    async def run(self) -> None:
        """Feed until the cell has ended; to be cancelled when its kernel is dead."""
        while not self.running.execution.ended(time.monotonic()):
            await self.read()
            if self._journal.is_broken:
                await self._wait_blindly()
                return
            await anyio.sleep(FOLLOW_INTERVAL_S)

    async def _wait_blindly(self) -> None:
        """Wait for the cell's end without its journal; it may have ended before anybody listened."""
        try:
            await self._wait_answering()
        except KernelError:
            pass
        else:
            await anyio.sleep(GRACE_S)
        for message in self._live:
            self.running.feed(message)
        if not self.running.execution.ended(time.monotonic()):
            self.running.lose_track()

    async def read(self) -> None:
        """Feed all that the journal holds by now."""
        async with self._reading:
            while True:
                messages = await anyio.to_thread.run_sync(self._journal.read_new)
                if self._journal.msg_id != self.running.execution.msg_id:
                    self.running.lose_track()
                    return
                for message in messages:
                    self.running.feed(message)
                if self._journal.is_broken or self._journal.is_truncated:
                    self.running.lose_output()
                if self._journal.is_replaced:
                    self.running.lose_track()
                if self._journal.is_at_end or not messages:
                    return
