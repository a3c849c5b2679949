"""Session-like containers for tests of real and fake engines."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sagebroker.container.spec import (
    LABEL_GENERATION,
    LABEL_INSTANCE,
    ContainerSpec,
    Limits,
    Mount,
    Tmpfs,
)

if TYPE_CHECKING:
    from sagebroker.container.engine import ContainerUser

MIB = 2**20
SESSION_UID = 200_001
"""A session's uid where the tests run as root; otherwise containers run as the tests' own user."""

SMALL = Limits(
    memory_bytes=256 * MIB,
    cpus=1.0,
    pids=64,
    open_files=512,
    file_bytes=16 * MIB,
    shm_bytes=8 * MIB,
)
"""Limits that a test reaches quickly."""


@dataclass(frozen=True, kw_only=True)
class SessionFolders:
    """The host's side of one session, laid out as the broker does."""

    root: Path

    @property
    def ctl(self) -> Path:
        """Shown at /run/kernel, read-only."""
        return self.root / "ctl"

    @property
    def sockets(self) -> Path:
        """Shown at /run/kernel/s."""
        return self.root / "s"

    @property
    def files(self) -> Path:
        """Shown at /files."""
        return self.root / "files"

    @property
    def code(self) -> Path:
        """Shown at /opt/sagebroker, read-only."""
        return self.root / "code"


def outside_ids() -> tuple[int, int]:
    """Uid and gid that own a session's folders outside, as the broker chooses them."""
    return (SESSION_UID, SESSION_UID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def make_folders(root: Path) -> SessionFolders:
    """Make a session's folders below ``root``, owned by `outside_ids`."""
    folders = SessionFolders(root=root)
    for folder in (folders.ctl / "s", folders.sockets, folders.files, folders.code):
        folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        for folder in (folders.sockets, folders.files):
            os.chown(folder, *outside_ids())
    for folder in (folders.sockets, folders.files):
        folder.chmod(0o700)
    return folders


def session_spec(
    *,
    image: str,
    folders: SessionFolders,
    user: ContainerUser,
    instance: str,
    command: tuple[str, ...] = ("sleep", "600"),
    limits: Limits = SMALL,
    generation: str | None = None,
    name: str | None = None,
) -> ContainerSpec:
    """A specification as the broker makes them, with every kind of mount.

    Args:
        image: Its image.
        folders: From `make_folders`.
        user: From `container_user`.
        instance: Value of the instance label, by which the test finds and removes its containers.
        command: What PID 1 is.
        limits: `SMALL` unless the test is about them.
        generation: Value of the generation label; random by default.
        name: Random by default.
    """
    return ContainerSpec(
        name=name or f"sagebroker-test-{secrets.token_hex(4)}",
        image=image,
        command=command,
        uid=user.uid,
        gid=user.gid,
        userns_mode=user.userns_mode,
        rootless=user.rootless,
        limits=limits,
        mounts=(
            Mount(source=folders.ctl, target="/run/kernel", read_only=True),
            Mount(source=folders.sockets, target="/run/kernel/s", read_only=False),
            Mount(source=folders.files, target="/files", read_only=False),
            Mount(source=folders.code, target="/opt/sagebroker", read_only=True),
        ),
        tmpfs=(
            Tmpfs(target="/tmp", size_bytes=8 * MIB),
            Tmpfs(target="/home/sage", size_bytes=8 * MIB, mode=0o700),
        ),
        environment={"HOME": "/home/sage"},
        labels={LABEL_INSTANCE: instance, LABEL_GENERATION: generation or secrets.token_hex(4)},
    )
