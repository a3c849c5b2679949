"""Fixtures of all tiers: the anyio backend, configurations in short folders, the Sage image."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import psutil
import pytest
from docker.constants import DEFAULT_UNIX_SOCKET
from hypothesis import HealthCheck, settings

from sagebroker.config import BrokerConfig, KernelConfig, SessionConfig
from sagebroker.container.spec import LABEL_INSTANCE

# Time says nothing on a loaded machine.
settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples every time: a failure there can be had again here.
settings.register_profile("ci", settings.get_profile("noisy"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "noisy")

PREFIX = f"sb{os.getpid()}-"
"""Beginning of the names of this run's folders; other runs on the machine are not ours to judge."""

RUN_FOLDER = re.compile(r"/tmp/sb\d+-")
"""The folders of any run."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """pyzmq knows asyncio only, so that is the backend everywhere."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After all tests: no thread, child process, mount, socket folder or container of theirs."""
    before = _traces()
    yield
    left = {kind: now - before[kind] for kind, now in _traces().items() if now - before[kind]}
    assert not left, f"the tests left something behind: {left}"


def _traces() -> dict[str, set[str]]:
    children = psutil.Process().children(recursive=True)
    return {
        "threads": {
            t.name for t in threading.enumerate() if t.daemon is False or "sagebroker" in t.name
        },
        "processes": {f"{p.pid} {p.name()}" for p in children if p.status() != "zombie"},
        "mounts": {
            line.split()[1]
            for line in Path("/proc/mounts").read_text().splitlines()
            if line.startswith("sagebroker ") and f"/{PREFIX}" in line
        },
        "folders": {str(p) for p in Path("/tmp").glob(PREFIX + "*")},
        "containers": _containers(),
    }


def _containers() -> set[str]:
    """Names of the containers with our labels, where an engine answers; not those of another run."""
    if not _is_there(os.environ.get("DOCKER_HOST") or DEFAULT_UNIX_SOCKET):
        return set()
    try:
        client = docker.from_env(version="auto", timeout=20)
    except docker.errors.DockerException:
        return set()
    try:
        listed = client.api.containers(all=True, filters={"label": LABEL_INSTANCE})
        return {str(c["Names"][0]) for c in listed if not _is_anothers(c["Mounts"])}
    finally:
        client.close()


def _is_anothers(mounts: list[dict[str, str]]) -> bool:
    """Whether a container's folders are those of another run of the tests."""
    places = [str(mount.get("Source", "")) for mount in mounts]
    return any(RUN_FOLDER.match(p) and not p.startswith(f"/tmp/{PREFIX}") for p in places)


def _is_there(url: str) -> bool:
    """Whether an engine's unix socket takes a connection: docker's client never closes the one it made
    where it does not, and the warning of that hits whichever test runs at the next collection."""
    path = url.partition("://")[2]
    if not url.startswith(("unix://", "http+unix://")):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder with a short path: pytest's own are too long for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    yield path
    remove_folder(path)


def remove_folder(path: Path) -> None:
    """Remove a folder of a test, also one that failed and has left mounts in it."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if (place := line.split()[1]).startswith(f"{path}/"):
            subprocess.run(["umount", "-l", place], check=False)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def config(short_dir: Path) -> BrokerConfig:
    """A broker's configuration with folders of its own."""
    return BrokerConfig(
        state_dir=short_dir / "state",
        runtime_dir=short_dir / "run",
        kernel=KernelConfig(),
        session=SessionConfig(),
    )


@pytest.fixture(scope="session")
def sage_image() -> str:
    """The image that the shipped kernelspec names; the engine must have it."""
    from sagebroker.kernel.kernelspec import KernelSpec

    return os.environ.get("SAGEBROKER_KERNEL__IMAGE") or KernelSpec.load("sagemath").broker.image
