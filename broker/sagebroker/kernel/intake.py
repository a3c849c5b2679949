"""`Intake`: how much of what a kernel sends is looked at at all; no clock, no socket.

A reader always drains its socket, because a reader that waits makes the kernel's end drop
messages, ``idle`` among them. What bounds the work is decided here, before anything is parsed:
the frames and bytes of one message, and a budget of bytes and messages over time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from sagebroker.protocol.messages import MAX_FRAMES

MIB: Final = 2**20
_ENVELOPE_FRAMES: Final = 6  # delimiter, signature, header, parent header, metadata, content

MAX_REASONS: Final = 20
"""Reasons counted apart: they hold numbers the kernel chooses."""

FrameT = TypeVar("FrameT", bound=Sized)


@dataclass(frozen=True, kw_only=True)
class WireLimits:
    """Limits of each channel of one kernel.

    The container's own side cuts streams to 64 KiB a message and 20 MB a cell, so an honest cell
    stays far below all of them; they are for a kernel whose code was replaced.
    """

    max_frame_bytes: int = 64 * MIB
    """A larger frame makes ZeroMQ end the connection (event ``disconnected``). The largest honest
    one is a 3D scene or an animation of 10 to 30 MB."""
    max_message_bytes: int = 64 * MIB
    """All frames of a message; a larger message is read and dropped."""
    burst_bytes: int = 128 * MIB
    """Bytes taken at once before the rate applies."""
    bytes_per_s: float = 16 * MIB
    """Lasting rate of bytes; parsing and folding 16 MiB in 64 KiB streams takes 52 ms."""
    burst_messages: int = 60_000
    """Messages taken at once before the rate applies; 20,000 displays of one cell fit."""
    messages_per_s: float = 4_000.0
    """Lasting rate of messages: what an ipykernel makes at most (20,000 displays in 5 s). Parsing
    and folding as many takes 75 ms."""
    max_invalid: int = 50
    """Messages that do not parse after which the kernel counts as hostile; honest ones send none."""
    queue_messages: int = 10_000
    """Messages ZeroMQ queues for a channel while the broker is busy. Of 20,000 displays of an
    ipykernel none is lost when the broker stalls for 1 s, and 1,600 when it stalls for 2.5 s; with
    ZeroMQ's own limit of 1,000 already 1,450 are lost at 0.6 s."""
    send_limit_s: float = 5.0
    """Seconds a message may wait for room in the queue to the kernel."""


@dataclass(kw_only=True)
class IntakeCounts:
    """What has come through one channel."""

    messages: int = 0
    """Complete messages, dropped ones included."""
    bytes: int = 0
    """Bytes of all frames, dropped ones included."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Messages not looked at, by reason: ``frames``, ``size``, ``budget``, ``hostile``."""
    invalid: Counter[str] = field(default_factory=Counter)
    """Messages that did not parse, by what was wrong; rare reasons beyond `MAX_REASONS` as
    ``other``."""


class Intake(Generic[FrameT]):
    """Puts frames together to messages and drops what exceeds the limits.

    Args:
        limits: The limits.
        now: Monotonic seconds at the start.
    """

    def __init__(self, limits: WireLimits, now: float) -> None:
        self.counts = IntakeCounts()
        self._limits = limits
        self._frames: list[FrameT] = []
        self._frame_count = 0
        self._bytes = 0
        self._fault = ""
        self._byte_budget = float(limits.burst_bytes)
        self._message_budget = float(limits.burst_messages)
        self._budget_at = now
        self._is_flooded = False
        self._wrong = 0

    @property
    def is_over(self) -> bool:
        """Whether so many messages were wrong that the kernel counts as hostile."""
        return self._wrong >= self._limits.max_invalid

    @property
    def is_flooded(self) -> bool:
        """Whether messages are being dropped for the budget; until half of it is back."""
        return self._is_flooded

    def take(self, frame: FrameT, now: float, *, more: bool) -> list[FrameT] | None:
        """Add one frame.

        Args:
            frame: The frame.
            now: Monotonic seconds.
            more: Whether the message goes on after it.

        Returns:
            All frames of a message when it is complete and within the limits, else None.
        """
        size = len(frame)
        self._bytes += size
        self._frame_count += 1
        self.counts.bytes += size
        if not self._fault:
            self._frames.append(frame)
            if self._frame_count > 2 * MAX_FRAMES + _ENVELOPE_FRAMES:
                self._reject("frames")
            elif self._bytes > self._limits.max_message_bytes:
                self._reject("size")
        return None if more else self._complete(now)

    def refuse(self, reason: str) -> None:
        """Count a complete message that turned out to be invalid."""
        self._wrong += 1
        known = reason in self.counts.invalid or len(self.counts.invalid) < MAX_REASONS
        self.counts.invalid[reason if known else "other"] += 1

    def _reject(self, fault: str) -> None:
        self._fault = fault
        self._frames = []

    def _complete(self, now: float) -> list[FrameT] | None:
        frames, fault, size = self._frames, self._fault, self._bytes
        self._frames, self._fault, self._bytes, self._frame_count = [], "", 0, 0
        self.counts.messages += 1
        if fault:
            self._wrong += 1
        elif self.is_over:
            fault = "hostile"
        elif not self._spend(size, now):
            fault = "budget"
        if fault:
            self.counts.dropped[fault] += 1
            return None
        return frames

    def _spend(self, size: int, now: float) -> bool:
        """Whether the budget had room; what has no room is not charged."""
        limits = self._limits
        passed = max(0.0, now - self._budget_at)
        self._budget_at = now
        self._byte_budget = min(limits.burst_bytes, self._byte_budget + passed * limits.bytes_per_s)
        self._message_budget = min(
            limits.burst_messages, self._message_budget + passed * limits.messages_per_s
        )
        if self._byte_budget < size or self._message_budget < 1:
            self._is_flooded = True
            return False
        self._byte_budget -= size
        self._message_budget -= 1
        if (
            self._byte_budget > limits.burst_bytes / 2
            and self._message_budget > limits.burst_messages / 2
        ):
            self._is_flooded = False
        return True
