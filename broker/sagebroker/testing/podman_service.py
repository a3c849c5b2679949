"""A Podman engine for tests: its service on a socket of its own, ended with the block that started it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

START_LIMIT_S = 20.0
"""The service listens after 0.3 s; a loaded small machine takes many times that."""
STOP_LIMIT_S = 10.0
"""After SIGTERM it ends at once, unless a request is under way."""
POLL_S = 0.05

_SOCKET = "podman.sock"
_LOG = "podman.log"
_BOTH_CGROUPS = Path("/sys/fs/cgroup/unified/cgroup.controllers")


def podman_problem(image: str) -> str:
    """Why tests cannot run sessions on Podman here; empty if they can.

    Args:
        image: The image they need.
    """
    if os.geteuid() != 0:
        return "sessions are tested on rootful Podman only"
    if shutil.which("podman") is None:
        return "podman is not installed"
    if subprocess.run(["podman", "image", "exists", image], check=False).returncode != 0:
        return f"Podman has no image {image}: docker save {image} | podman load"
    return ""


@contextmanager
def podman_service() -> Iterator[str]:
    """Run Podman's service while the block lasts; yields its URL.

    Raises:
        RuntimeError: It did not come up.
    """
    with tempfile.TemporaryDirectory(prefix="sb-podman-", dir="/tmp") as name:
        folder = Path(name)
        service = _start(folder)
        try:
            _wait_until_it_listens(service, folder)
            yield f"unix://{folder}/{_SOCKET}"
        finally:
            service.terminate()
            try:
                service.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    url = f"unix://{folder}/{_SOCKET}"
    with (folder / _LOG).open("wb") as log:
        return subprocess.Popen(
            ["podman", *_runtime_option(), "system", "service", "--time=0", url],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its conmon leaves a file where it stands when a container runs out of memory.
            cwd=folder,
        )


def _runtime_option() -> list[str]:
    # crun, Podman's usual one, refuses machines that use both versions of cgroups at once.
    both = _BOTH_CGROUPS.exists() and _BOTH_CGROUPS.read_text().strip()
    return ["--runtime", "runc"] if both and shutil.which("runc") else []


def _wait_until_it_listens(service: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and service.poll() is None:
        with socket.socket(socket.AF_UNIX) as door, suppress(OSError):
            door.connect(str(folder / _SOCKET))
            return
        time.sleep(POLL_S)
    log = (folder / _LOG).read_text(errors="replace")
    raise RuntimeError(f"Podman's service did not come up: {log[-500:]}")
