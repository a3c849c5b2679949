"""`StateFolder` and `SessionFolder`: locks and files of sessions on disk.

``<state>/instance`` names this installation: containers carry it as a label, so that two
installations on one engine never touch each other's. ``<state>/store.sqlite`` holds what is to be
known of all sessions (see `database`). ``<state>/sessions/<id>/`` holds one session: ``lock`` (an advisory
lock held by the broker process that serves it), ``files/`` (mounted at ``/files``), ``checkpoints/``
(mounted at ``/checkpoint``) and ``outputs/`` (large outputs of its cells).
``<state>/sessions/.gone-<id>/`` is one that is being removed.

Every function here blocks; callers run them in a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from pathlib import Path

from sagebroker.errors import ConfigError, SessionGoneError, SessionInUseError, StorageError

from . import locks
from .trees import remove_tree

LOCK_LIMIT_S = 0.5
"""Others hold a lock for milliseconds to see whether anybody has it; an owner holds it for good."""

GONE_PREFIX = ".gone-"
"""Beginning of the names of folders that are being removed; a session's id begins with no dot."""

REMNANTS_LIMIT_S = 2.0
"""Time for what earlier removals left, at each opening of the state folder: nobody waits for more."""

_SPACE_HINT = "Free some disk, or set SAGEBROKER_STATE_DIR to a folder with space that is writable."

_log = logging.getLogger(__name__)


class SessionFolder:
    """One session's folder. `lock` before changing anything in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self._lock_fd: int | None = None

    @property
    def files(self) -> Path:
        """The session's files, its kernel's working directory."""
        return self.path / "files"

    @property
    def checkpoints(self) -> Path:
        """The session's saved namespaces, mounted at ``/checkpoint``; written inside only."""
        return self.path / "checkpoints"

    @property
    def outputs(self) -> Path:
        """Large outputs of its cells; the container does not see them."""
        return self.path / "outputs"

    @property
    def is_locked_by_us(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock_fd is not None

    def lock(self, *, sign: bool = True) -> None:
        """Take the advisory lock.

        Args:
            sign: Write down that this process serves the session. Who takes it only to remove the
                session does not.

        Raises:
            SessionInUseError: Another process holds it.
            SessionGoneError: The session has been removed; also a `FileNotFoundError`.
            StorageError: The disk refuses.
        """
        deadline = time.monotonic() + LOCK_LIMIT_S
        while (fd := self._try_lock()) is None:
            if time.monotonic() > deadline:
                raise SessionInUseError(
                    f"The session {self.id} is served by another sagebroker process "
                    f"(pid {self._written_owner() or 'unknown'}).",
                    hint="Use that client, or end it first.",
                )
            time.sleep(locks.POLL_S)
        locks.sign(fd, str(os.getpid()) if sign else "")
        self._lock_fd = fd

    def make_lock(self) -> None:
        """Create the lock of a new session, and take it. Raises `OSError`."""
        self._lock_fd = locks.make_lock(self.path / "lock")
        locks.sign(self._lock_fd, str(os.getpid()))

    def unsign(self) -> None:
        """Say that this process only tidies up from now on; the lock stays. Harmless without it."""
        if self._lock_fd is not None:
            locks.sign(self._lock_fd, "")

    def unlock(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._lock_fd is not None:
            fd, self._lock_fd = self._lock_fd, None
            locks.sign(fd, "")
            os.close(fd)

    def owner(self) -> int | None:
        """The process id that serves the session, or None."""
        if self._lock_fd is not None:
            return os.getpid()
        try:
            fd = self._try_lock()
        except SessionGoneError:
            return None
        if fd is None:
            # Held, perhaps for a moment by somebody who asks the same: only an owner signs it.
            return self._written_owner()
        os.close(fd)
        return None

    def _try_lock(self) -> int | None:
        path = self.path / "lock"
        try:
            return locks.try_lock(path)
        except FileNotFoundError as error:
            raise SessionGoneError(
                f"The session {self.id} has been closed meanwhile.", hint="Open it anew."
            ) from error
        except OSError as error:
            raise StorageError(
                f"The lock of session {self.id} cannot be used: {error}.", hint=f"Look at {path}."
            ) from error

    def _written_owner(self) -> int | None:
        try:
            pid = int((self.path / "lock").read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            return None
        return pid if pid and Path(f"/proc/{pid}").exists() else None

    def blank_since(self) -> float | None:
        """Wall-clock seconds since when it is as it was made; for one that the store does not know.

        Somebody is just making it, or was killed over it. None where anything at all is in it.
        """
        try:
            for folder in (self.files, self.checkpoints, self.outputs):
                if folder.exists() and any(folder.iterdir()):
                    return None
            return self.path.stat().st_mtime
        except OSError:
            # Gone meanwhile, or nothing that can be judged.
            return None

    def delete(self) -> None:
        """Remove the folder with everything in it, and give the lock back; harmless when it is gone.

        It is renamed first: nobody finds half a session.

        Raises:
            StorageError: Something is left; the next `StateFolder.open` tries again.
        """
        gone = self.path.with_name(f"{GONE_PREFIX}{self.id}")
        try:
            remove_tree(gone)
            with contextlib.suppress(FileNotFoundError):
                self.path.rename(gone)
            remove_tree(gone)
        except OSError as error:
            left = gone if gone.exists() else self.path
            raise StorageError(
                f"The folder of session {self.id} cannot be removed: {error}.",
                hint=f"What is left lies in {left}; the next sagebroker process tries again.",
            ) from error
        finally:
            self.unlock()


class StateFolder:
    """The folder of one installation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions = path / "sessions"
        self.database = path / "store.sqlite"
        self._marker = path / "instance"

    def folder(self, session_id: str) -> SessionFolder:
        """The folder of a session, which need not be there."""
        return SessionFolder(self.sessions / session_id)

    def instance(self) -> str | None:
        """The installation's id; None where the folder was never opened, or cannot be read."""
        try:
            return self._marker.read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def open(self) -> str:
        """Create what is missing; returns the installation's id.

        Raises:
            ConfigError: The folder cannot be written.
        """
        try:
            self.sessions.mkdir(mode=0o700, parents=True, exist_ok=True)
            marker = self._marker
            if not marker.exists():
                draft = marker.with_suffix(f".{secrets.token_hex(4)}")
                draft.write_text(secrets.token_hex(8), encoding="ascii")
                try:
                    # link() does not overwrite: of two processes that start at once, one wins.
                    os.link(draft, marker)
                except FileExistsError:
                    pass
                finally:
                    draft.unlink()
            instance = marker.read_text(encoding="ascii").strip()
            self._remove_remnants()
        except OSError as error:
            raise ConfigError(
                f"The state folder {self.path} cannot be used: {error.strerror}.",
                hint="Make it writable, or set SAGEBROKER_STATE_DIR to another folder.",
            ) from error
        return instance

    def create(self, session_id: str) -> SessionFolder:
        """A new, locked folder for a session.

        Raises:
            StorageError: The disk refuses; nothing is left.
        """
        folder = self.folder(session_id)
        try:
            folder.path.mkdir(mode=0o700)
            try:
                folder.make_lock()
                folder.files.mkdir(mode=0o700)
                folder.checkpoints.mkdir(mode=0o700)
            except OSError:
                folder.delete()
                raise
        except OSError as error:
            raise StorageError(
                f"The folder of a session cannot be made: {error}.", hint=_SPACE_HINT
            ) from error
        return folder

    def list(self) -> list[SessionFolder]:
        """Every session's folder but those that are being removed.

        Raises:
            StorageError: The folder cannot be read.
        """
        try:
            found = sorted(p for p in self.sessions.iterdir() if not p.name.startswith("."))
        except OSError as error:
            raise StorageError(
                f"The sessions in {self.sessions} cannot be listed: {error}.",
                hint="Make that folder readable, or end and start sagebroker.",
            ) from error
        return [SessionFolder(p) for p in found if p.is_dir()]

    def _remove_remnants(self) -> None:
        """Go on with removals that were broken off; bounded, and no reason not to start."""
        until = time.monotonic() + REMNANTS_LIMIT_S
        for path in sorted(self.sessions.glob(f"{GONE_PREFIX}*")):
            if time.monotonic() > until:
                return
            try:
                remove_tree(path, limit_s=until - time.monotonic())
            except OSError as error:
                _log.warning("What is left of a closed session in %s stays: %s", path, error)
