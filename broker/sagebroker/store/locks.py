"""Advisory locks on files. They end with their process, however it ends. Every function blocks."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

POLL_S = 0.02

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def make_lock(path: Path) -> int:
    """Create the lock ``path`` and take it; returns the descriptor to keep. Raises `OSError`."""
    fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    # It waits where somebody looks at the lock at this very moment.
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def try_lock(path: Path) -> int | None:
    """Take the lock ``path``; returns the descriptor to keep, or None where somebody else has it.

    The file is never made here: in a folder that is being removed it would be in the way. Whoever
    opened it before its owner removed the folder would hold the lock of nothing.

    Raises:
        FileNotFoundError: It is gone.
        OSError: It cannot be used.
    """
    fd = os.open(path, _FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), path.lstat()):
            raise FileNotFoundError(f"{path} is another file now")
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def sign(fd: int, name: str) -> None:
    """Write ``name`` into a lock that is held, or nothing; for people, so a full disk is no reason to fail."""
    with contextlib.suppress(OSError):
        # An owner that was killed left its own, perhaps longer, name.
        os.ftruncate(fd, 0)
        os.pwrite(fd, name.encode(), 0)
