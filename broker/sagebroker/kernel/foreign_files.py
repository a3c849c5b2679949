"""Files that somebody hostile may have put in the place of ours: bounded, never waited for."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No link leads elsewhere, and no FIFO makes the broker wait."""


def read_bounded(path: str | Path, limit_bytes: int, *, folder: int | None = None) -> bytes | None:
    """The content of a regular file; None where there is none, or a larger one. Never raises.

    Args:
        path: Of the file.
        limit_bytes: Size of the largest file that is read.
        folder: Descriptor of the folder that the path begins in; None for the working directory.
    """
    try:
        fd = os.open(path, FLAGS, dir_fd=folder)
    except (OSError, ValueError):
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit_bytes:
            return None
        return os.read(fd, limit_bytes)
    except OSError:
        return None
    finally:
        os.close(fd)


def parse_object(data: bytes | str | None) -> dict[str, Any] | None:
    """The JSON object that ``data`` holds; None where it holds something else. Never raises."""
    try:
        values = json.loads(data) if data is not None else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
