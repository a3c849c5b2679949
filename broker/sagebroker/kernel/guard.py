"""`MemoryGuard`: ends connections that fill the broker's memory where no reader can see it.

A kernel that begins a multipart message and never ends it makes ZeroMQ hold all its frames: no
limit of ZeroMQ counts them and no message ever arrives (15 MB became 1.5 GB). What can be seen is
the broker's own resident memory growing by more than the messages it received explain.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator

GROWTH_LIMIT_BYTES: Final = 384 * 2**20
"""Unexplained growth within `WINDOW_S` that is taken for an attack. The broker itself has 100 MB;
its own largest work, a few 64 MiB messages in parsing, is explained by what was received."""
WINDOW_S: Final = 600.0
"""Seconds over which growth is added up: slower attacks than 0.6 MB/s end with the session."""
INTERVAL_S: Final = 0.1
"""Seconds between looks: a kernel fills at most 100 to 200 MB in that time."""
BYTES_HELD_PER_BYTE: Final = 4
"""Memory that one received byte explains: the frame, its text, the parsed value and what is kept."""
SETTLE_S: Final = 0.3
"""Seconds ZeroMQ's threads get to free what a severed connection held."""
_STATM_RESIDENT: Final = 1  # second field of /proc/self/statm, in pages


class UnexplainedGrowth:
    """Judges from samples whether memory grows for no visible reason; no clock.

    Args:
        limit_bytes: Growth within the window that is too much.
        window_s: Length of the window, in seconds.
    """

    def __init__(self, limit_bytes: int = GROWTH_LIMIT_BYTES, window_s: float = WINDOW_S) -> None:
        self._limit_bytes = limit_bytes
        self._window_s = window_s
        # Samples of the window that may still become its minimum, ascending.
        self._lows: deque[tuple[float, int]] = deque()

    def observe(self, resident_bytes: int, received_bytes: int, now: float) -> int:
        """Take a sample.

        Args:
            resident_bytes: The process's resident memory.
            received_bytes: Bytes read from all kernels so far.
            now: Monotonic seconds.

        Returns:
            The unexplained growth in bytes if it is over the limit, else 0.
        """
        rest = resident_bytes - BYTES_HELD_PER_BYTE * received_bytes
        while self._lows and self._lows[-1][1] >= rest:
            self._lows.pop()
        self._lows.append((now, rest))
        while self._lows[0][0] < now - self._window_s:
            self._lows.popleft()
        growth = rest - self._lows[0][1]
        return growth if growth > self._limit_bytes else 0

    def forget(self) -> None:
        """Begin anew, after something was done about the growth."""
        self._lows.clear()


class Watched(Protocol):
    """Connections that can be ended together."""

    @property
    def received_bytes(self) -> int:
        """What has come over them."""
        ...

    def sever(self, detail: str) -> None:
        """End them."""

    def accuse(self, detail: str) -> None:
        """It was they that filled the memory."""


class MemoryGuard:
    """Watches the process for all kernels. The owner starts `run` in a task group.

    When memory grows unexplained, connections are severed one after the other, those that have
    delivered least first, until the memory comes back; the last one severed is accused. The
    others get a ``severed`` event and are to be rebuilt.

    Args:
        growth: The judge.
    """

    def __init__(self, growth: UnexplainedGrowth | None = None) -> None:
        self._growth = growth or UnexplainedGrowth()
        self._watched: dict[Watched, int] = {}
        self._received_before = 0

    @contextmanager
    def watching(self, channels: Watched) -> Iterator[None]:
        """Count ``channels`` among those that may be severed."""
        self._watched[channels] = channels.received_bytes
        try:
            yield
        finally:
            del self._watched[channels]
            self._received_before += channels.received_bytes

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await anyio.sleep(INTERVAL_S)
            received = self._received_before + sum(c.received_bytes for c in self._watched)
            growth = self._growth.observe(resident_bytes(), received, time.monotonic())
            if growth:
                await self._sever_until_freed(growth)
                self._growth.forget()

    async def _sever_until_freed(self, growth: int) -> None:
        enough = resident_bytes() - growth // 2
        suspects = sorted(self._watched, key=lambda channels: channels.received_bytes)
        for channels in suspects:
            channels.sever("the broker's memory is filling")
            with anyio.move_on_after(SETTLE_S):
                while resident_bytes() > enough:  # noqa: ASYNC110 - memory has no event
                    await anyio.sleep(SETTLE_S / 10)
            if resident_bytes() <= enough:
                channels.accuse("it filled the broker's memory with a message that never ends")
                return


def resident_bytes() -> int:
    """Resident memory of this process, from ``/proc/self/statm``."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - read ten times a second
        return int(file.read().split()[_STATM_RESIDENT]) * os.sysconf("SC_PAGE_SIZE")
