"""`KernelFolder`: the host's side of a session's connection file and sockets.

::

    <runtime>/<id>/ctl/   read-only in the container at /run/kernel: connection.json, keeper.json, lease,
                          restore.json
    <runtime>/<id>/s/     read-write at /run/kernel/s: the sockets, and the keeper's status.json, the
                          kernel's restore.json
    <runtime>/<id>.jupyter/   not in the container: the sockets of the session's endpoint

Every function here blocks; callers run them in a thread.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import stat
from pathlib import Path
from typing import Any, Literal

from sagebroker.errors import ConfigError, StorageError
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.store.trees import remove_tree

CONTAINER_FOLDER = "/run/kernel"
CONTAINER_SOCKETS = "/run/kernel/s"
SOCKET_PREFIX = "k"
"""Sockets are ``k-1`` … ``k-5``; short, since a socket's path has at most 107 bytes."""

ENDPOINT_SUFFIX = ".jupyter"

SOCKETS_TMPFS_OPTIONS = "size=4m,nr_inodes=256,mode=0700"
"""Limits what a session can put beside its sockets; the limit of bind mounts is otherwise the disk."""

RestoreOrder = Literal["newest", "none"] | int
"""What a kernel restores: the newest checkpoint that can be used, none at all, or the one with that
number and no other."""

_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MNT_DETACH = 2

_log = logging.getLogger(__name__)


class KernelFolder:
    """The folder of one session's kernel."""

    def __init__(self, runtime_dir: Path, session_id: str) -> None:
        self.path = runtime_dir / session_id
        self.control = self.path / "ctl"
        self.sockets = self.path / "s"
        self.endpoint = runtime_dir / f"{session_id}{ENDPOINT_SUFFIX}"
        """Of the sockets for Jupyter clients, which outlive the kernel's."""

    @property
    def prefix(self) -> str:
        """Ipc prefix of the sockets on the host."""
        return str(self.sockets / SOCKET_PREFIX)

    def create(
        self, uid: int, gid: int, keeper: dict[str, Any], *, restore: RestoreOrder
    ) -> ConnectionInfo:
        """Make the folder with a new connection file; returns the host's view of it.

        Raises:
            ConfigError: It cannot be made, or its path is too long for a socket.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_parent()
            self.path.mkdir(mode=0o700)
            for folder in (self.control, self.control / "s", self.sockets):
                folder.mkdir(mode=0o700)
            if os.geteuid() == 0:
                _mount_tmpfs(self.sockets, uid, gid)
            connection = ConnectionInfo.new(self.prefix)
            inside = connection.with_prefix(f"{CONTAINER_SOCKETS}/{SOCKET_PREFIX}")
            inside.write(self.control / "connection.json", uid, gid)
            (self.control / "keeper.json").write_text(json.dumps(keeper), encoding="utf-8")
            (self.control / "lease").touch()
            self.ask_restore(restore)
            for path in (self.control / "keeper.json", self.control / "lease", self.control / "s"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            self.control.chmod(0o755)
            if os.geteuid() == 0:
                os.chown(self.sockets, uid, gid)
        except OSError as error:
            raise ConfigError(
                f"The runtime folder {self.path} cannot be made: {error}.",
                hint="Set SAGEBROKER_RUNTIME_DIR to a short path that you may write.",
            ) from error
        return connection

    def load(self) -> ConnectionInfo:
        """The host's view of the connection file that is there.

        Raises:
            ConfigError: It is not there, or is not one of ours.
        """
        self.check()
        return ConnectionInfo.load(self.control / "connection.json").with_prefix(self.prefix)

    def check(self) -> None:
        """Look whether the folder of all sockets is this user's alone; one that is gone harms nobody.

        Raises:
            ConfigError: Somebody else made it, or may write in it.
        """
        try:
            self._check_parent()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigError(
                f"The runtime folder {self.path.parent} cannot be used: {error}.",
                hint="Set SAGEBROKER_RUNTIME_DIR to a short path that you alone may write.",
            ) from error

    def touch_lease(self) -> None:
        """Tell the keeper that a broker is there. Done every some seconds: the next one may succeed."""
        try:
            self._check_parent()
            os.utime(self.control / "lease")
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("The lease of session %s is not renewed: %s", self.path.name, error)

    def ask_restore(self, order: RestoreOrder) -> None:
        """Say what kernels that are forked from now on restore.

        Harmless where the folder is gone: its successor is told when it is made.

        Raises:
            ValueError: No checkpoint has such a number.
            ConfigError: The folder of all sockets is not this user's alone.
            StorageError: The disk refuses.
        """
        content = _order(order)
        self.check()
        draft = self.control / "restore.new"
        try:
            draft.write_text(json.dumps(content), encoding="utf-8")
            draft.chmod(0o644)
            draft.replace(self.control / "restore.json")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(
                f"The kernel's folder {self.path} cannot be written: {error}."
            ) from error

    def delete(self) -> None:
        """Remove the folder; harmless when it is gone.

        Raises:
            ConfigError: The folder of all sockets is not this user's alone; nothing was changed.
            StorageError: Something is left.
        """
        self._delete(self.path, self.sockets)

    def delete_endpoint(self) -> None:
        """Remove what a process that was killed has left of the endpoint; harmless when it is gone.

        Raises:
            ConfigError: The folder of all sockets is not this user's alone; nothing was changed.
            StorageError: Something is left.
        """
        self._delete(self.endpoint)

    def _delete(self, folder: Path, *mounts: Path) -> None:
        self.check()
        try:
            for mount in mounts:
                while os.path.ismount(mount):
                    _unmount(mount)
            remove_tree(folder)
        except OSError as error:
            raise StorageError(
                f"The runtime folder {folder} cannot be removed: {error}.",
                hint="Remove it by hand, or end what still uses it.",
            ) from error

    def _check_parent(self) -> None:
        parent = self.path.parent
        found = parent.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            # In a shared place such as /tmp somebody else could have made it first.
            raise PermissionError(f"{parent} is not a folder of this user's alone")


def _order(order: RestoreOrder) -> dict[str, object]:
    if isinstance(order, str):
        return {"mode": order}
    # A truth value would pass for checkpoint 0 or 1.
    if isinstance(order, bool) or order < 1:
        raise ValueError(f"no checkpoint has the number {order}")
    return {"mode": "number", "number": order}


def _mount_tmpfs(path: Path, uid: int, gid: int) -> None:
    """Mount a small tmpfs where the process may; a plain folder serves where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"{SOCKETS_TMPFS_OPTIONS},uid={uid},gid={gid}".encode()
    libc.mount(b"sagebroker", os.fsencode(path), b"tmpfs", _MS_NOSUID_NODEV_NOEXEC, options)


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
