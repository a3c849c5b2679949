"""A forked child that looks at the user's objects: whatever they do then stays in the child."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from .alarm import Alarm
from .confining import limit_memory, silence_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READ_BYTES = 65536


@contextlib.contextmanager
def child(look: Callable[[int, Alarm], None], memory_bytes: int) -> Iterator[int]:
    """A process that looks at something; what it writes is read from the descriptor given.

    Args:
        look: What it does, given a descriptor to write to.
        memory_bytes: What it may take beyond what it shares with the kernel.
    """
    pipe, told = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(look, told, memory_bytes)
    finally:
        os.close(told)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        yield pipe
    finally:
        os.close(pipe)
        for kill in (os.kill, os.killpg):  # its own children, too, if it has come as far as a group
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def pieces(pipe: int, stall_limit_s: float, deadline: float) -> Iterator[bytes]:
    """What a child writes, until it ends, stalls, or the time is over.

    Args:
        pipe: Where it is read.
        stall_limit_s: Seconds after which a child that has written nothing new is given up.
        deadline: Monotonic second.
    """
    while True:
        wait = min(stall_limit_s, deadline - time.monotonic())
        if wait <= 0 or not select.select([pipe], [], [], wait)[0]:
            return
        data = os.read(pipe, READ_BYTES)
        if not data:
            return
        yield data


def write_all(told: int, data: bytes) -> None:
    """Write everything; blocks until it is read."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(told, rest) :]


def _be_child(look: Callable[[int, Alarm], None], told: int, memory_bytes: int) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.setsid()
        silence_descriptors(keep=told)
        sys.stdout = sys.stderr = io.StringIO()
        limit_memory(memory_bytes)
        look(told, Alarm())
    finally:
        os._exit(0)
