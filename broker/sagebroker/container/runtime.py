"""`ContainerRuntime`: what the broker needs of an engine.

Implementations: `DockerRuntime`, and `sagebroker.testing.FakeRuntime` for tests; one contract suite
runs against all. An error is never read as "gone": only `ContainerNotFoundError` (the engine's 404)
is gone. Every call has a deadline and raises `RuntimeUnavailableError` when it passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from sagebroker.container.spec import ContainerSpec


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself."""

    name: str
    """``docker`` or ``podman``."""
    version: str
    api_version: str
    rootless: bool
    cgroup_version: str
    security_options: tuple[str, ...] = ()
    operating_system: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ContainerStatus:
    """One container as the engine sees it now."""

    id: str
    name: str
    state: str
    """The engine's word: created, running, paused, restarting, removing, exited or dead."""
    labels: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    created_at: float = 0.0
    """Wall-clock seconds since the epoch."""
    pid: int = 0

    @property
    def is_running(self) -> bool:
        """Whether its PID 1 exists (a paused one's does)."""
        return self.state in ("running", "paused")


@dataclass(frozen=True, kw_only=True)
class ContainerStats:
    """Use of resources at one moment."""

    memory_bytes: int
    pids: int
    cpu_seconds: float


@dataclass(frozen=True, kw_only=True)
class ContainerEvent:
    """A change the engine told of; a hint, never the truth."""

    action: str
    """``start``, ``die``, ``oom``, ``kill``, ``destroy``, … and ``resync`` after a gap."""
    container_id: str = ""
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


class ContainerRuntime(Protocol):
    """The engine's operations. All raise `RuntimeUnavailableError` when it does not answer."""

    async def ping(self) -> EngineInfo:
        """Who is there. Called at start, by ``doctor``, and to close the circuit breaker."""
        ...

    async def image_digest(self, image: str) -> str:
        """The id of a local image.

        Raises:
            ImageNotFoundError: It is not there.
        """
        ...

    async def create(self, spec: ContainerSpec) -> str:
        """Create a container, not started; returns its id. Called once per session start.

        Repeating a create of the same generation returns the container already made, so that a
        caller who got no answer can ask again.

        Raises:
            ConfigError: A mounted folder is missing.
            ContainerConflictError: The name is taken by another generation.
            ImageNotFoundError: The image is not there.
        """
        ...

    async def start(self, container: str) -> None:
        """Start a created container; starting a running one does nothing."""
        ...

    async def signal(self, container: str, signal: str) -> None:
        """Send ``signal`` (such as ``SIGINT``) to PID 1. Called by the interrupt ladder.

        Raises:
            ContainerNotFoundError: There is no such container.
            ContainerConflictError: It does not run.
        """
        ...

    async def inspect(self, container: str) -> ContainerStatus:
        """The state of one container, by id or name. Raises `ContainerNotFoundError`."""
        ...

    async def list(self, labels: dict[str, str]) -> list[ContainerStatus]:
        """Every container, running or not, that carries all of ``labels``.

        Its entries have no ``oom_killed``, ``error`` and ``pid``; `inspect` has them.
        """
        ...

    async def stats(self, container: str) -> ContainerStats:
        """Memory, processes and processor time."""
        ...

    async def logs(self, container: str, *, tail: int) -> str:
        """The last ``tail`` lines of its output; called after a failed start."""
        ...

    async def remove(self, container: str) -> None:
        """Kill and remove; removing one that is gone does nothing."""
        ...

    async def rename(self, container: str, name: str) -> None:
        """Give a container another name; `ContainerConflictError` if that is taken."""
        ...

    def events(
        self, labels: dict[str, str]
    ) -> AbstractAsyncContextManager[AsyncIterator[ContainerEvent]]:
        """Subscribe to changes of containers with ``labels``.

        The stream is open when the body of ``async with`` begins, or ``resync`` comes as soon as it
        is. The iterator ends with `aclose` only: after a gap it yields ``resync`` and goes on.
        """
        ...

    async def aclose(self) -> None:
        """Release connections and threads."""
        ...
