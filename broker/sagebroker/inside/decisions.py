"""What the keeper decides, apart from what it does: no clock, no process, no file in here."""

from __future__ import annotations

import enum
import signal
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

OOM_MEMORY_S = 10.0
"""How long a rise of the out-of-memory counter explains a SIGKILL: a process of many GB takes
seconds to be torn down after the kernel has chosen it."""

LONGEST_TICK_S = 5.0
"""The keeper looks at its lease at least this often."""

SHORTEST_TICK_S = 0.05
"""And at most this often, whatever the limits say."""

TICKS_PER_LEASE = 4
"""Looks within one lease limit, so that an expiry is noticed at most a quarter late."""


class Order(enum.Enum):
    """What the signals that have arrived ask for."""

    END = enum.auto()
    REPLACE = enum.auto()
    INTERRUPT = enum.auto()


def order_of(arrived: Collection[int]) -> Order | None:
    """The strongest of the orders among the signals, for the weaker ones have no object then."""
    if signal.SIGTERM in arrived:
        return Order.END
    if signal.SIGUSR1 in arrived:
        return Order.REPLACE
    if signal.SIGINT in arrived:
        return Order.INTERRUPT
    return None


class Exit(NamedTuple):
    """How a process ended."""

    signal: int | None
    code: int | None


def tick_s(lease_limit_s: float) -> float:
    """Seconds between two looks at a lease of that limit (0: none)."""
    if not lease_limit_s:
        return LONGEST_TICK_S
    return min(LONGEST_TICK_S, max(SHORTEST_TICK_S, lease_limit_s / TICKS_PER_LEASE))


class CrashWindow:
    """Tells when a kernel dies too often to be forked once more."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._deaths: deque[float] = deque()

    def died(self, now: float) -> bool:
        """Note a death nobody asked for; whether it is one too many."""
        self._deaths.append(now)
        while self._deaths[0] < now - self._window_s:
            self._deaths.popleft()
        return len(self._deaths) >= self._limit

    def forget(self) -> None:
        """Begin anew, as after an order to replace the kernel."""
        self._deaths.clear()


class LeaseWatch:
    """Adds up for how long the lease file has not been touched.

    The file's stamp is compared with itself only, never with a clock, and a gap between two looks
    counts for at most two ticks: neither a clock that was set nor a machine that slept, with the
    broker asleep too, ends a session.
    """

    def __init__(self, limit_s: float, tick: float) -> None:
        self._limit_s = limit_s
        self._longest_step_s = 2 * tick
        self._stamp: int | None = None
        self._looked_at: float | None = None
        self._silence_s = 0.0

    def expired(self, stamp: int | None, now: float) -> bool:
        """Note the file's modification stamp (None: no file) at a monotonic time in seconds."""
        if not self._limit_s:
            return False
        step = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        if stamp is not None and stamp != self._stamp:
            self._stamp = stamp
            self._silence_s = 0.0
        else:
            self._silence_s += min(step, self._longest_step_s)
        return self._silence_s >= self._limit_s


class OomWatch:
    """Tells whether a SIGKILL came from the container's memory limit."""

    def __init__(self, kills: int) -> None:
        self.kills = kills
        self._rose_at: float | None = None

    def observe(self, kills: int, now: float) -> None:
        """Note the cgroup's counter of out-of-memory kills."""
        if kills > self.kills:
            self._rose_at = now
        self.kills = kills

    def explains(self, end: Exit, now: float) -> bool:
        """Whether a process that ended like this, now, was killed for memory."""
        if end.signal != signal.SIGKILL or self._rose_at is None:
            return False
        return now - self._rose_at <= OOM_MEMORY_S

    def forget(self) -> None:
        """A new kernel: earlier rises do not concern it."""
        self._rose_at = None


def oom_kills(texts: Mapping[str, str]) -> int:
    """The ``oom_kill`` count of a cgroup.

    Args:
        texts: Contents of the files that exist among ``memory.events`` (cgroup v2) and
            ``memory.oom_control`` (v1, kernels from 4.13), by name.
    """
    for text in texts.values():
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill" and value.strip().isdigit():
                return int(value)
    return 0
