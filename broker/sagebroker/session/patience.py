"""`Patience`: how long a session waits for an engine that makes it no container; no I/O."""

from __future__ import annotations

from typing import Final

from sagebroker.errors import BrokerError, ContainerError, ImageError

LIMIT_S: Final = 60.0
"""A container engine that is restarted is back within seconds; after a minute somebody has to look."""

RETRY_S: Final = 1.0
"""Time between attempts."""


class Patience:
    """Between the first refusal of the engine and the next kernel."""

    def __init__(self) -> None:
        self._began: float | None = None

    def lasts(self, error: BrokerError, now: float) -> bool:
        """Whether to try again after ``error``, at monotonic second ``now``."""
        if not isinstance(error, ContainerError) or isinstance(error, ImageError):
            return False
        if self._began is None:
            self._began = now
        return now - self._began < LIMIT_S

    def renew(self) -> None:
        """There is a kernel again."""
        self._began = None
