"""`OutputFiles`: outputs too large for a row of the store, one file each.

They lie in their session's folder, in a place that its container does not see, so nothing but us and
the disk changes them. Every function blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from sagebroker.errors import StorageError

_log = logging.getLogger(__name__)


class OutputFiles:
    """The files of all sessions.

    Args:
        folder_of: The folder for a session's id. Itself is made when it is needed; the one above it
            is not, since it would bring back the folder of a session that was removed.
    """

    def __init__(self, folder_of: Callable[[str], Path]) -> None:
        self._folder_of = folder_of

    def path(self, session: str, cell: int, seq: int) -> Path:
        """Where an output lies."""
        return self._folder_of(session) / f"{cell}-{seq}.json"

    def write(self, session: str, cell: int, seq: int, content: bytes, *, durable: bool) -> None:
        """Store an output, whole or not at all.

        Args:
            session: Id of the session.
            cell: Number of the cell.
            seq: Place of the output.
            content: Its JSON text.
            durable: Also have it on disk before this returns.

        Raises:
            StorageError: The disk refuses; nothing is left.
        """
        path = self.path(session, cell, seq)
        draft = path.with_suffix(".new")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                _write(draft, content, durable=durable)
                draft.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    draft.unlink(missing_ok=True)
                raise
            if durable:
                _sync_folder(path.parent)
        except OSError as error:
            raise StorageError(
                f"An output of session {session} cannot be stored: {error}.",
                hint="What was stored before is still there. Free some disk and try again.",
            ) from error

    def read(self, session: str, cell: int, seq: int) -> bytes:
        """The JSON text of an output. Raises `OSError`."""
        return self.path(session, cell, seq).read_bytes()

    def remove(self, session: str, places: Iterable[tuple[int, int]]) -> None:
        """Delete outputs, named by cell and place; what stays is logged and goes with the folder."""
        for cell, seq in places:
            try:
                self.path(session, cell, seq).unlink(missing_ok=True)
            except OSError as error:
                _log.warning("An output that nothing refers to stays on disk: %s", error)


def _write(path: Path, content: bytes, *, durable: bool) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Have the names in a folder on disk, too: a row may refer to one from now on."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
