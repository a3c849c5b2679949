"""Forks off the kernel what writes a checkpoint, and keeps hold of it."""

from __future__ import annotations

import os
import signal
import time
import warnings
from dataclasses import dataclass

from .recording import Snapshot
from .writer import detach


@dataclass
class Writing:
    """A checkpoint that is being written.

    Attributes:
        group: Process group of all that write it.
        parting: Child that has yet to be reaped; 0 when it has been.
        report: Descriptor that ends when they have ended.
        began: Monotonic time.
        snapshot: What is being saved.
        begun: How many cells had begun when it was taken.
    """

    group: int
    parting: int
    report: int
    began: float
    snapshot: Snapshot
    begun: int


def fork(snapshot: Snapshot, begun: int) -> Writing:
    """Fork what writes the snapshot.

    Raises:
        OSError: The system allows no further process or descriptor.
    """
    report, told = os.pipe()
    os.set_blocking(report, False)
    try:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                # The threads of the kernel are not needed in the child.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                detach(snapshot, told)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    except OSError:
        os.close(report)
        raise
    finally:
        os.close(told)
    return Writing(pid, pid, report, time.monotonic(), snapshot, begun)
