"""A limit in time for what user's objects do."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from .wording import TooSlowError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Alarm:
    """Stops what takes too long, as far as it runs Python code now and then."""

    def __init__(self) -> None:
        self._armed = False
        signal.signal(signal.SIGALRM, self._ring)

    def _ring(self, number: int, frame: object) -> None:
        del number, frame
        if self._armed:
            raise TooSlowError

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raise `TooSlowError` in the block after so many seconds, and again while it goes on."""
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
