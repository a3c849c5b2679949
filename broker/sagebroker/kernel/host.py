"""`KernelHost`: where a kernel lives, and the few things that can be done to it from outside.

`ContainerHost` is a session's container with the keeper as PID 1. Tests that need no container use
`sagebroker.testing.LocalHost`, a kernel process on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import ContainerConflictError, ContainerNotFoundError
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.kernel.keeper import KeeperStatus, RestoreReport, read_restore, read_status


@dataclass(frozen=True, kw_only=True)
class HostState:
    """Whether the kernel's surroundings exist."""

    running: bool
    paused: bool = False
    oom_killed: bool = False
    detail: str = ""


class KernelHost(Protocol):
    """Surroundings of one session's kernel, through all its incarnations."""

    @property
    def connection(self) -> ConnectionInfo:
        """The host's view of the connection file."""
        ...

    @property
    def memory_limit_bytes(self) -> int:
        """What the kernel may use."""
        ...

    async def status(self) -> KeeperStatus | None:
        """The keeper's last word. Called several times a second by the kernel's watcher."""
        ...

    async def restored(self) -> RestoreReport | None:
        """What the newest kernel brought back. Called once for each incarnation that answers."""
        ...

    async def state(self) -> HostState:
        """Whether the surroundings exist. Raises `RuntimeUnavailableError`: then nothing is known."""
        ...

    async def interrupt(self) -> bool:
        """One SIGINT to the kernel; False where the surroundings are gone."""
        ...

    async def replace(self) -> bool:
        """Kill all processes but the keeper, which forks a new kernel; False where it is gone."""
        ...

    async def logs(self) -> str:
        """The last output of the keeper, for the message of a failed start."""
        ...


class ContainerHost:
    """A container whose PID 1 is the keeper."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        container: str,
        *,
        connection: ConnectionInfo,
        sockets: Path,
        memory_limit_bytes: int,
    ) -> None:
        self._runtime = runtime
        self._sockets = sockets
        self.container = container
        self.connection = connection
        self.memory_limit_bytes = memory_limit_bytes

    async def status(self) -> KeeperStatus | None:
        """See `KernelHost.status`."""
        return await anyio.to_thread.run_sync(read_status, self._sockets)

    async def restored(self) -> RestoreReport | None:
        """See `KernelHost.restored`."""
        return await anyio.to_thread.run_sync(read_restore, self._sockets)

    async def state(self) -> HostState:
        """See `KernelHost.state`."""
        try:
            found = await self._runtime.inspect(self.container)
        except ContainerNotFoundError:
            return HostState(running=False, detail="the container was removed")
        if found.is_running:
            return HostState(running=True, paused=found.state == "paused")
        detail = f"the container ended with exit code {found.exit_code}"
        return HostState(running=False, oom_killed=found.oom_killed, detail=detail)

    async def interrupt(self) -> bool:
        """See `KernelHost.interrupt`."""
        return await self._signal("SIGINT")

    async def replace(self) -> bool:
        """See `KernelHost.replace`."""
        return await self._signal("SIGUSR1")

    async def logs(self) -> str:
        """See `KernelHost.logs`."""
        return await self._runtime.logs(self.container, tail=20)

    async def _signal(self, name: str) -> bool:
        try:
            await self._runtime.signal(self.container, name)
        except (ContainerNotFoundError, ContainerConflictError):
            return False
        return True
