"""How much a session's files take. The walk is bounded and follows no link."""

from __future__ import annotations

import os
from pathlib import Path

from sagebroker.store.trees import open_up

MAX_ENTRIES = 100_000
"""Entries after which a folder counts as over any limit: a million empty files are no less harm."""


def used_bytes(folder: Path, *, enough: int) -> int:
    """Bytes on disk below ``folder``; stops counting once ``enough`` is exceeded. Blocks.

    A folder that nobody may look into is opened up where it is ours. Where it is not, and where a
    path is too long, the answer is ``enough + 1``: what cannot be counted must not be a way out.
    """
    total = entries = 0
    pending = [folder]
    while pending:
        found = _look(folder, pending.pop(), most=MAX_ENTRIES - entries)
        if found is None:
            return enough + 1
        entries += found.entries
        total += found.bytes
        if entries > MAX_ENTRIES or total > enough:
            return max(total, enough + 1)
        pending += found.folders
    return total


class _Found:
    """What lies in one folder."""

    def __init__(self) -> None:
        self.entries = 0
        self.bytes = 0
        self.folders: list[Path] = []


def _look(root: Path, folder: Path, *, most: int) -> _Found | None:
    """What lies in ``folder``, itself opened up if need be; None where that cannot be seen."""
    try:
        try:
            return _count(folder, most)
        except PermissionError:
            open_up(root, folder)
            return _count(folder, most)
    except (FileNotFoundError, NotADirectoryError):
        # The session removed it, or put something else in its place, while it was counted.
        return _Found()
    except OSError:
        return None


def _count(folder: Path, most: int) -> _Found:
    found = _Found()
    with os.scandir(folder) as entries:
        for entry in entries:
            found.entries += 1
            if found.entries > most:
                break
            try:
                found.bytes += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    found.folders.append(Path(entry.path))
            except FileNotFoundError:
                # Removed while it was counted: the rest of the folder counts all the same.
                continue
    return found
