"""The folder of a session's checkpoints: one numbered folder each, which appears at once and whole.

The folder is the user's code's as much as ours; what is read from it is trusted as far as that
code, in whose process it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

VERSION = 1
"""Of the files' format; another one is not read."""

MANIFEST = "manifest.json"
DATA = "data.pickle"
BUFFERS = "buffers.bin"
FAILED = "failed.json"
"""Tells of the last attempt, where that failed."""

RESTORING = "restoring.json"
"""What was learnt from restores that ended their kernel."""
PROGRESS = "restoring.name"
"""The name of the variable that is being restored."""

LABELS = "labels.json"
"""The labels of checkpoints by their numbers."""

LABELLED_LIMIT = 5
"""Most checkpoints that have a label, and are kept beside the newest ones for it."""

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
LABEL_RULE = (
    "a label has 1 to 40 letters, digits, dots, hyphens and underscores, and begins with a letter"
    " or a digit"
)

_NUMBER = re.compile(r"[1-9][0-9]{0,11}")
_PASSING = ".writing-"

CHECK_BYTES = 2**20
"""Read at once to check a file."""


class DamagedError(Exception):
    """A checkpoint is not what was written."""


class Shelf:
    """The checkpoints in a folder.

    Args:
        folder: Exists and can be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints, ascending; empty where there is no folder."""
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except OSError:
            return []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def place(self, number: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / str(number)

    def begin(self) -> Path:
        """A new folder to write in, of no number yet.

        Raises:
            OSError: It cannot be made.
        """
        place = self.folder / f"{_PASSING}{os.getpid()}-{os.urandom(4).hex()}"
        place.mkdir(mode=0o700)
        return place

    def publish(self, written: Path, number: int) -> None:
        """Give a written folder its number, lastingly.

        Raises:
            OSError: That failed.
        """
        if number in (labels := self._noted_labels()):
            # Of a checkpoint that somebody has removed.
            self._write_labels({n: label for n, label in labels.items() if n != number})
        _synchronise(written)
        written.rename(self.place(number))
        _synchronise(self.folder)

    def labels(self) -> dict[int, str]:
        """The labels of the checkpoints that have one, by their numbers, ascending."""
        noted = self._noted_labels()
        return {number: noted[number] for number in self.numbers() if number in noted}

    def label(self, number: int, label: str) -> str:
        """Give a checkpoint a label, lastingly; another one that has it loses it.

        Returns:
            The label of the checkpoint that had to lose its own, since only `LABELLED_LIMIT` may
            have one; empty if none had to.

        Raises:
            OSError: That failed.
        """
        labels = {n: other for n, other in self.labels().items() if other != label}
        labels.pop(number, None)
        lost = ""
        if len(labels) >= LABELLED_LIMIT:
            lost = labels.pop(min(labels))
        self._write_labels({**labels, number: label})
        return lost

    def _noted_labels(self) -> dict[int, str]:
        return {
            int(number): label
            for number, label in self.read_note(LABELS).items()
            if _NUMBER.fullmatch(number) and isinstance(label, str) and LABEL.fullmatch(label)
        }

    def _write_labels(self, labels: dict[int, str]) -> None:
        content = {str(number): label for number, label in labels.items()}
        write_json(self.folder / LABELS, content, lasting=True)
        _synchronise(self.folder)

    def prune(self, keep: int) -> None:
        """Remove old checkpoints, and what attempts have left behind.

        Args:
            keep: How many stay, the newest, besides those that have a label. The newest of all
                stays in any case.
        """
        numbers = self.numbers()
        labels = self.labels()
        ordinary = [number for number in numbers if number not in labels]
        old = ordinary[: max(0, len(ordinary) - keep)]
        for number in old:
            if number != numbers[-1]:
                shutil.rmtree(self.place(number), ignore_errors=True)
        self.sweep()

    def sweep(self) -> None:
        """Remove what attempts have left behind."""
        with contextlib.suppress(OSError):
            for entry in list(self.folder.iterdir()):
                if entry.name.startswith(_PASSING):
                    shutil.rmtree(entry, ignore_errors=True)

    def manifest(self, number: int) -> dict[str, Any]:
        """What a checkpoint says of itself.

        Raises:
            DamagedError: It says nothing that can be read.
        """
        try:
            found = json.loads((self.place(number) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DamagedError(f"{MANIFEST}: {error}") from error
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise DamagedError(f"{MANIFEST} is of another version")
        return found

    def verify(self, number: int) -> dict[str, Any]:
        """The manifest of a checkpoint all files of which are as they were written.

        Raises:
            DamagedError: One is not.
        """
        manifest = self.manifest(number)
        try:
            for name in (DATA, BUFFERS):
                length, code = checksum(self.place(number) / name)
                if {"bytes": length, "crc32": code} != manifest["files"][name]:
                    raise DamagedError(f"{name} is not as it was written")
            return {
                **manifest,
                "cell": int(manifest["cell"]),
                "saved_at": float(manifest["saved_at"]),
                "missing": [dict(entry) for entry in manifest["missing"]],
            }
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise DamagedError(f"{MANIFEST}: {type(error).__name__}: {error}") from error

    def read_note(self, name: str) -> dict[str, Any]:
        """A small JSON file beside the checkpoints; empty where there is none that can be read."""
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_note(self, name: str, content: dict[str, Any]) -> None:
        """Replace a small JSON file beside the checkpoints.

        Raises:
            OSError: That failed.
        """
        write_json(self.folder / name, content)

    def drop_note(self, name: str) -> None:
        """Remove a small file beside the checkpoints, if it is there."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()


def checksum(path: Path) -> tuple[int, int]:
    """Length in bytes and CRC-32 of a file.

    Raises:
        OSError: It cannot be read.
    """
    length = code = 0
    with path.open("rb") as file:
        while piece := file.read(CHECK_BYTES):
            code = zlib.crc32(piece, code)
            length += len(piece)
    return length, code


def write_json(path: Path, content: dict[str, Any], *, lasting: bool = False) -> None:
    """Replace a file by a JSON object, at once.

    Args:
        path: Of the file.
        content: Of the object.
        lasting: Whether it is brought to the disk first, so that a power cut cannot empty it.

    Raises:
        OSError: That failed.
    """
    passing = path.with_name(f".{path.name}-{os.urandom(4).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(passing, flags, 0o600), "wb") as file:
            file.write(json.dumps(content).encode("ascii"))
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        passing.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            passing.unlink()
        raise


def _synchronise(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
