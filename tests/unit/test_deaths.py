"""When a session's kernels die too often."""

from __future__ import annotations

import pytest

from sagebroker.config import SessionConfig
from sagebroker.errors import KernelStartError
from sagebroker.model import ExitCause, ExitReport
from sagebroker.session.deaths import DeathCount

CRASHED = ExitReport(cause=ExitCause.SIGNAL, generation=1, signal=11)
REPLACED = ExitReport(cause=ExitCause.REPLACED, generation=1)


@pytest.fixture
def deaths() -> DeathCount:
    return DeathCount(SessionConfig(crash_limit=3, crash_window_s=60))


def test_too_many_within_the_window_are_told_with_the_last_cause(deaths: DeathCount) -> None:
    deaths.add(CRASHED, 0.0)
    deaths.add(CRASHED, 30.0)
    with pytest.raises(KernelStartError, match=r"3 times within 60 s.*SIGSEGV"):
        deaths.add(CRASHED, 60.0)


def test_those_before_the_window_do_not_count(deaths: DeathCount) -> None:
    for now in (0.0, 31.0, 62.0, 93.0):
        deaths.add(CRASHED, now)
    with pytest.raises(KernelStartError):
        deaths.add(CRASHED, 94.0)


def test_those_that_were_wished_do_not_count(deaths: DeathCount) -> None:
    for now in range(10):
        deaths.add(REPLACED, float(now))


def test_after_a_restart_they_are_counted_anew(deaths: DeathCount) -> None:
    for _ in range(2):
        deaths.add(CRASHED, 0.0)
    deaths.clear()
    for _ in range(2):
        deaths.add(CRASHED, 1.0)
    with pytest.raises(KernelStartError):
        deaths.add(CRASHED, 2.0)
