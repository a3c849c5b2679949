"""What brokers leave that were killed, and its removal whatever they were doing."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import docker

from sagebroker.container.spec import LABEL_INSTANCE


def mounts_below(folder: Path) -> list[str]:
    """What is mounted there, the newest first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return [mount for mount in reversed(mounts) if mount.startswith(f"{folder}/")]


def unmount(folder: Path) -> None:
    """Unmount everything below ``folder``."""
    for mount in mounts_below(folder):
        subprocess.run(["umount", "-l", mount], check=False)


def remove_all(place: Path) -> None:
    """Remove containers, mounts and folders of the brokers that had ``state`` and ``run`` in ``place``."""
    with contextlib.suppress(FileNotFoundError):
        instance = (place / "state" / "instance").read_text().strip()
        with contextlib.closing(docker.from_env(version="auto")) as engine:
            label = f"{LABEL_INSTANCE}={instance}"
            for container in engine.containers.list(all=True, filters={"label": label}):
                container.remove(force=True)
    unmount(place)
    shutil.rmtree(place, ignore_errors=True)
