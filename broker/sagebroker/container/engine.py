"""Finding the container engine of this machine, and what kind of user its containers need.

A place somebody named (a setting, ``DOCKER_HOST``) is the only one tried: computing on another engine
than the one named would be a surprise. Otherwise the usual sockets are tried in order.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio.to_thread

from sagebroker.container.docker import DockerRuntime
from sagebroker.container.docker_calls import Deadlines
from sagebroker.errors import ConfigError, ContainerError, RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sagebroker.container.runtime import EngineInfo

FIND_LIMIT_S = 5.0
"""Time one engine has to answer: a healthy one takes some 50 ms."""

_DESKTOP = "Docker Desktop"
"""What the engine of Docker Desktop says its operating system is."""
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_INSTALL = (
    "Install one and start it, on Debian or Ubuntu: `sudo apt install docker.io`, then "
    "`sudo systemctl start docker` (as root without systemd: `dockerd &`)."
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A place where an engine may be."""

    url: str
    named_by: str
    """Who says so: ``engine_url``, ``DOCKER_HOST``, or ``usual place``."""


@dataclass(frozen=True, kw_only=True)
class FoundEngine:
    """An engine that answered."""

    url: str
    info: EngineInfo


@dataclass(frozen=True, kw_only=True)
class ContainerUser:
    """Who a container runs as; fields of `ContainerSpec`."""

    uid: int
    gid: int
    userns_mode: str = ""
    rootless: bool = False


def candidates(explicit_url: str, environment: Mapping[str, str]) -> list[Candidate]:
    """Where to look, best first. Pure.

    Args:
        explicit_url: The setting ``engine_url``; empty if there is none.
        environment: `config.engine_environment`.
    """
    if explicit_url:
        return [Candidate(url=explicit_url, named_by="engine_url")]
    if host := environment.get("DOCKER_HOST"):
        return [Candidate(url=host, named_by="DOCKER_HOST")]
    paths = ["/var/run/docker.sock"]
    user_dir = environment.get("XDG_RUNTIME_DIR", "")
    if user_dir:
        paths.append(f"{user_dir}/docker.sock")
    paths.append("/run/podman/podman.sock")
    if user_dir:
        paths.append(f"{user_dir}/podman/podman.sock")
    return [Candidate(url=f"unix://{path}", named_by="usual place") for path in paths]


def container_user(info: EngineInfo, *, uid: int, gid: int) -> ContainerUser:
    """How a container's process must run so that it owns what uid and gid own outside. Pure.

    Args:
        info: The engine's.
        uid: Outside; on a rootless engine that must be the engine's own user.
        gid: Outside.
    """
    if not info.rootless:
        return ContainerUser(uid=uid, gid=gid)
    if info.name == "podman":
        return ContainerUser(uid=uid, gid=gid, userns_mode="keep-id")
    # Rootless Docker maps uid 0 of the container to its own user, and only that one.
    return ContainerUser(uid=0, gid=0, rootless=True)


async def find_engine(
    explicit_url: str, environment: Mapping[str, str], *, limit_s: float = FIND_LIMIT_S
) -> FoundEngine:
    """The first engine that answers and that sessions can run on.

    Args:
        explicit_url: The setting ``engine_url``; empty if there is none.
        environment: `config.engine_environment`.
        limit_s: Seconds each candidate has.

    Raises:
        ConfigError: The engine named is none that sessions can run on.
        RuntimeUnavailableError: None that sessions can run on answers; the text lists what was tried, and
            what to do.
    """
    tried: list[tuple[Candidate, str]] = []
    for candidate in candidates(explicit_url, environment):
        check_url(candidate)
        problem = await anyio.to_thread.run_sync(socket_problem, candidate.url)
        if problem is None:
            try:
                info = await _ping(candidate.url, limit_s)
                problem = machine_problem(info)
                if problem is None:
                    return FoundEngine(url=candidate.url, info=info)
            except ContainerError as error:
                problem = error.message
        tried.append((candidate, problem))
    raise RuntimeUnavailableError(_none_answers(tried), hint=advice([p for _, p in tried]))


def check_url(candidate: Candidate) -> None:
    """Refuse engines elsewhere: sessions share folders and sockets with this machine.

    Raises:
        ConfigError: ``candidate`` is no unix socket and no port of this machine.
    """
    parts = urlsplit(candidate.url)
    local = parts.scheme in ("tcp", "http") and parts.hostname in _LOCAL_HOSTS
    if local or (parts.scheme == "unix" and parts.path.startswith("/")):
        return
    raise ConfigError(
        f"The container engine {candidate.url!r} ({candidate.named_by}) cannot be used: sessions need an "
        "engine on this machine.",
        hint="Name a socket, such as unix:///var/run/docker.sock.",
    )


def machine_problem(info: EngineInfo) -> str | None:
    """Why sessions cannot run on an engine that answers; None if they can. Pure."""
    if not info.operating_system.startswith(_DESKTOP):
        return None
    # It shares folders with its machine, but a unix socket in one has its listener on one side only.
    return (
        f"{_DESKTOP}, whose containers run in a virtual machine: "
        "the sockets of kernels cannot be reached there"
    )


def socket_problem(url: str) -> str | None:
    """Why nobody can be reached at ``url``, as far as the file system tells; None if it may do.

    Reads the file system, so call it in a worker thread.
    """
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return None
    path = Path(parts.path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "absent"
    except PermissionError:
        return "permission denied"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if not stat.S_ISSOCK(mode):
        return "no socket"
    if not os.access(path, os.R_OK | os.W_OK):
        return "permission denied"
    return None


def advice(problems: list[str]) -> str:
    """What to do about engines that did not answer. Pure."""
    if any(_DESKTOP in problem for problem in problems):
        return (
            f"Use Docker Engine natively on Linux instead of {_DESKTOP}, and name its socket if it is not found: "
            "DOCKER_HOST=unix:///var/run/docker.sock. " + _INSTALL
        )
    if any("permission denied" in problem for problem in problems):
        return (
            "Add your user to the group that owns the socket: `sudo usermod -aG docker $USER`, then log in "
            "anew (or run as root)."
        )
    if all(problem == "absent" for problem in problems):
        return "There seems to be no container engine. " + _INSTALL
    return "Start or restart the engine: `sudo systemctl restart docker` (without systemd: `dockerd &` as root)."


def _none_answers(tried: list[tuple[Candidate, str]]) -> str:
    lines = "; ".join(f"{candidate.url} ({candidate.named_by}): {why}" for candidate, why in tried)
    return f"No container engine answers. Tried {lines.rstrip('.')}."


async def _ping(url: str, limit_s: float) -> EngineInfo:
    async with DockerRuntime(url, deadlines=Deadlines(urgent_s=limit_s)) as runtime:
        return await runtime.ping()
