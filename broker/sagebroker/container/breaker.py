"""`CircuitBreaker`: stop asking an engine that does not answer. Pure: the clock is handed in.

Closed, calls pass. After `threshold` failures in a row it is open and calls are refused at once,
instead of each waiting for its deadline and holding a thread. After a pause one call may try; if
that fails the pause doubles, if it succeeds the breaker is closed.
"""

from __future__ import annotations

FAILURES_TO_OPEN = 5
"""Failures in a row: fewer happen in a restart of the engine, which retries ride out."""
FIRST_PAUSE_S = 5.0
"""Seconds before the first trial: about a restart of the engine."""
LONGEST_PAUSE_S = 30.0
"""Seconds between trials at most, so that a healed engine is noticed soon."""


class CircuitBreaker:
    """Counts failures in a row; see the module.

    Args:
        threshold: Failures in a row after which it opens.
        first_pause_s: Seconds from opening to the first trial.
        longest_pause_s: Bound of the doubling pause, seconds.
    """

    def __init__(
        self,
        *,
        threshold: int = FAILURES_TO_OPEN,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self._threshold = threshold
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._pause_s = first_pause_s
        self._failures = 0
        self._next_trial: float | None = None
        self._trial_runs = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, trials apart."""
        return self._next_trial is not None

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    def retry_after_s(self, now: float) -> float:
        """Seconds until the next trial; 0 when a call may be made now."""
        return 0.0 if self._next_trial is None else max(0.0, self._next_trial - now)

    def allows(self, now: float) -> bool:
        """Whether a call may be made at ``now`` (monotonic seconds).

        While open, one caller in each pause is let through as the trial. A trial that never tells
        its result (its task was cancelled) is replaced after a further pause.
        """
        if self._next_trial is None:
            return True
        if now < self._next_trial:
            return False
        self._next_trial = now + self._pause_s
        self._trial_runs = True
        return True

    def succeeded(self) -> None:
        """The engine answered, be it with an error of its own."""
        self._failures = 0
        self._pause_s = self._first_pause_s
        self._next_trial = None
        self._trial_runs = False

    def failed(self, now: float) -> bool:
        """The engine did not answer.

        Returns:
            Whether this failure opened the breaker.
        """
        self._failures += 1
        if self._next_trial is not None:
            if not self._trial_runs:
                return False  # a call from before it opened, or one that is made regardless
            self._trial_runs = False
            self._pause_s = min(self._longest_pause_s, self._pause_s * 2)
            self._next_trial = now + self._pause_s
            return False
        if self._failures < self._threshold:
            return False
        self._next_trial = now + self._pause_s
        return True
