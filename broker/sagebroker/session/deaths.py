"""`DeathCount`: whether a session's kernels die too often; no I/O."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sagebroker.errors import KernelStartError
from sagebroker.model import ExitCause, ExitReport
from sagebroker.session import outcome

if TYPE_CHECKING:
    from sagebroker.config import SessionConfig


class DeathCount:
    """Deaths within a window of time."""

    def __init__(self, limits: SessionConfig) -> None:
        self._limits = limits
        self._deaths: deque[float] = deque(maxlen=limits.crash_limit)

    def add(self, report: ExitReport, now: float) -> None:
        """Count a death that nobody wished.

        Args:
            report: Of it.
            now: Monotonic second.

        Raises:
            KernelStartError: There were too many.
        """
        if report.cause is ExitCause.REPLACED:
            return
        self._deaths.append(now)
        window_s = self._limits.crash_window_s
        recent = [at for at in self._deaths if now - at <= window_s]
        if len(recent) >= self._limits.crash_limit:
            raise KernelStartError(outcome.crash_loop_sentence(len(recent), window_s, report))

    def clear(self) -> None:
        """Begin anew."""
        self._deaths.clear()
