"""`FakeRuntime`: an engine in memory, with knobs for what goes wrong with real ones.

The same contract suite runs against it and `DockerRuntime`. Containers do nothing by themselves;
the hooks `on_start`, `on_signal` and `on_stop` let a test attach a kernel of its own.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.to_thread

from sagebroker.container.events import RESYNC, EventHub
from sagebroker.container.runtime import (
    ContainerEvent,
    ContainerStats,
    ContainerStatus,
    EngineInfo,
)
from sagebroker.container.spec import LABEL_GENERATION, ContainerSpec, check_sources
from sagebroker.errors import (
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    ImageNotFoundError,
    RuntimeUnavailableError,
)
from sagebroker.model import utcnow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

Operation = Literal[
    "ping", "image_digest", "create", "start", "signal", "inspect", "list", "stats", "logs", "remove", "rename"
]  # fmt: skip

DEFAULT_IMAGE = "sagebroker/fake:1"
"""The image every `FakeRuntime` has unless told otherwise."""
KILLED = 137
"""Exit code of a process ended by SIGKILL."""
ENDED = 0
"""Exit code of a keeper that was asked to end by SIGTERM."""


@dataclass(kw_only=True)
class FakeContainer:
    """A container in memory; tests may look at everything."""

    id: str
    spec: ContainerSpec
    name: str
    created_at: float
    state: str = "created"
    exit_code: int | None = None
    oom_killed: bool = False
    signals: list[str] = field(default_factory=list)
    """Every signal PID 1 was sent, in order."""
    output: str = ""
    """What `FakeRuntime.logs` returns the last lines of."""
    hidden: bool = False
    """`FakeRuntime.list` leaves it out, as an engine's incomplete answer does."""


@dataclass(kw_only=True)
class _Failure:
    error: ContainerError
    times: int
    lost_reply: bool


class FakeRuntime:
    """See the module, and `ContainerRuntime` for the operations.

    Args:
        images: Image name to digest; `DEFAULT_IMAGE` alone by default.
        on_start: Awaited before a container counts as running.
        on_signal: Awaited with the container and the signal, before the signal's own effect.
        on_stop: Awaited after a container has stopped, however that came.
    """

    def __init__(
        self,
        *,
        images: dict[str, str] | None = None,
        on_start: Callable[[FakeContainer], Awaitable[None]] | None = None,
        on_signal: Callable[[FakeContainer, str], Awaitable[None]] | None = None,
        on_stop: Callable[[FakeContainer], Awaitable[None]] | None = None,
    ) -> None:
        self.images = {DEFAULT_IMAGE: "sha256:" + "0" * 64} if images is None else images
        self.containers: dict[str, FakeContainer] = {}
        self.calls: list[tuple[str, str]] = []
        """Every call: operation and the container or image it was about."""
        self.is_down = False
        """The daemon does not answer: every call fails, containers go on."""
        self._on_start = on_start
        self._on_signal = on_signal
        self._on_stop = on_stop
        self._failures: dict[str, list[_Failure]] = {}
        self._delays_s: dict[str, float] = {}
        self._hub = EventHub()
        self._hub.stream_opened(after_gap=False)
        self._lost_events = 0
        self._repeated_events = 0

    # Knobs.

    def fail(
        self,
        operation: Operation,
        *,
        times: int = 1,
        error: ContainerError | None = None,
        lost_reply: bool = False,
    ) -> None:
        """Let the next ``times`` calls of ``operation`` raise ``error`` (unavailable by default).

        With ``lost_reply`` the engine does what it was asked to do, and then the call raises.
        """
        error = error or RuntimeUnavailableError(f"The fake engine did not answer {operation}.")
        failure = _Failure(error=error, times=times, lost_reply=lost_reply)
        self._failures.setdefault(operation, []).append(failure)

    def delay(self, operation: Operation, seconds: float) -> None:
        """Let every further call of ``operation`` take ``seconds``; 0 ends that."""
        self._delays_s[operation] = seconds

    async def die(self, container: str, *, exit_code: int = 1, oom: bool = False) -> None:
        """PID 1 of ``container`` ends by itself, or for want of memory."""
        found = self.find(container)
        if oom:
            self._tell("oom", found)
            found.oom_killed = True
        await self._stop(found, KILLED if oom else exit_code)

    async def vanish(self, container: str) -> None:
        """Somebody else removes ``container``."""
        await self._remove(self.find(container))

    def lose_events(self, count: int) -> None:
        """Do not tell the next ``count`` events, and tell nobody that they are missing."""
        self._lost_events = count

    def repeat_events(self, count: int) -> None:
        """Tell the next ``count`` events twice."""
        self._repeated_events = count

    def break_events(self) -> None:
        """The stream breaks and is there again: subscribers hear ``resync``."""
        self._hub.publish([RESYNC])

    def find(self, container: str) -> FakeContainer:
        """The container with this id or name.

        Raises:
            ContainerNotFoundError: There is none.
        """
        for found in self.containers.values():
            if container in (found.id, found.name):
                return found
        raise ContainerNotFoundError(f"There is no container {container!r}.")

    # ContainerRuntime.

    async def ping(self) -> EngineInfo:
        """See `ContainerRuntime.ping`."""
        async with self._call("ping", ""):
            return EngineInfo(
                name="docker",
                version="0.0-fake",
                api_version="1.41",
                rootless=False,
                cgroup_version="2",
            )

    async def image_digest(self, image: str) -> str:
        """See `ContainerRuntime.image_digest`."""
        async with self._call("image_digest", image):
            return self._digest(image)

    async def create(self, spec: ContainerSpec) -> str:
        """See `ContainerRuntime.create`."""
        await anyio.to_thread.run_sync(partial(check_sources, spec))
        try:
            async with self._call("create", spec.name):
                return self._create(spec).id
        except (RuntimeUnavailableError, ContainerConflictError) as error:
            return await self._find_created(spec, error)

    async def start(self, container: str) -> None:
        """See `ContainerRuntime.start`."""
        async with self._call("start", container):
            found = self.find(container)
            if found.state == "running":
                return
            if self._on_start is not None:
                await self._on_start(found)
            found.state, found.exit_code = "running", None
            self._tell("start", found)

    async def signal(self, container: str, signal: str) -> None:
        """See `ContainerRuntime.signal`. PID 1 behaves as a keeper: it ends by SIGKILL and SIGTERM."""
        async with self._call("signal", container):
            found = self.find(container)
            if not signal.isalnum() or not signal.startswith("SIG"):
                raise ContainerError(f"{signal!r} is no signal.")
            if found.state != "running":
                raise ContainerConflictError(f"The container {container!r} is not running.")
            found.signals.append(signal)
            self._tell("kill", found)
            if self._on_signal is not None:
                await self._on_signal(found, signal)
            if signal in ("SIGKILL", "SIGTERM"):
                await self._stop(found, KILLED if signal == "SIGKILL" else ENDED)

    async def inspect(self, container: str) -> ContainerStatus:
        """See `ContainerRuntime.inspect`."""
        async with self._call("inspect", container):
            return self._status(self.find(container))

    async def list(self, labels: dict[str, str]) -> list[ContainerStatus]:
        """See `ContainerRuntime.list`."""
        async with self._call("list", ""):
            return [
                # As engines do: their list has no such detail.
                replace(self._status(found), oom_killed=False, pid=0)
                for found in self.containers.values()
                if not found.hidden and labels.items() <= found.spec.labels.items()
            ]

    async def stats(self, container: str) -> ContainerStats:
        """See `ContainerRuntime.stats`."""
        async with self._call("stats", container):
            runs = self.find(container).state == "running"
            return ContainerStats(
                memory_bytes=2**20 if runs else 0, pids=int(runs), cpu_seconds=0.0
            )

    async def logs(self, container: str, *, tail: int) -> str:
        """See `ContainerRuntime.logs`."""
        async with self._call("logs", container):
            return "".join(self.find(container).output.splitlines(keepends=True)[-tail:])

    async def remove(self, container: str) -> None:
        """See `ContainerRuntime.remove`."""
        async with self._call("remove", container):
            try:
                found = self.find(container)
            except ContainerNotFoundError:
                return
            await self._remove(found)

    async def rename(self, container: str, name: str) -> None:
        """See `ContainerRuntime.rename`."""
        async with self._call("rename", container):
            found = self.find(container)
            self._refuse_taken(name)
            found.name = name
            self._tell("rename", found)

    @asynccontextmanager
    async def events(self, labels: dict[str, str]) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        """See `ContainerRuntime.events`."""
        async with self._hub.subscribe(labels) as subscription:
            yield subscription

    async def aclose(self) -> None:
        """See `ContainerRuntime.aclose`."""
        await anyio.lowlevel.checkpoint()
        self._hub.end()

    # How it works.

    @asynccontextmanager
    async def _call(self, operation: Operation, subject: str) -> AsyncIterator[None]:
        self.calls.append((operation, subject))
        await anyio.sleep(self._delays_s.get(operation, 0.0))
        if self.is_down:
            raise RuntimeUnavailableError("The fake engine is down.")
        failure = self._next_failure(operation)
        if failure is not None and not failure.lost_reply:
            raise failure.error
        yield
        if failure is not None:
            raise failure.error

    def _next_failure(self, operation: str) -> _Failure | None:
        planned = self._failures.get(operation, [])
        if not planned:
            return None
        planned[0].times -= 1
        return planned.pop(0) if planned[0].times <= 0 else planned[0]

    def _digest(self, image: str) -> str:
        if image not in self.images:
            raise ImageNotFoundError(
                f"The engine has no image {image!r}.", hint="Make it with `sagebroker image build`."
            )
        return self.images[image]

    def _refuse_taken(self, name: str) -> None:
        if any(found.name == name for found in self.containers.values()):
            raise ContainerConflictError(f"The container name {name!r} is in use.")

    def _create(self, spec: ContainerSpec) -> FakeContainer:
        self._digest(spec.image)
        self._refuse_taken(spec.name)
        found = FakeContainer(
            id=secrets.token_hex(32), spec=spec, name=spec.name, created_at=utcnow().timestamp()
        )
        self.containers[found.id] = found
        self._tell("create", found)
        return found

    async def _find_created(self, spec: ContainerSpec, error: ContainerError) -> str:
        try:
            status = await self.inspect(spec.name)
        except (ContainerNotFoundError, RuntimeUnavailableError):
            raise error from None
        generation = spec.labels.get(LABEL_GENERATION)
        if (
            generation
            and status.labels.get(LABEL_GENERATION) == generation
            and status.state == "created"
        ):
            return status.id
        raise ContainerConflictError(f"The container name {spec.name!r} is in use.") from error

    async def _stop(self, found: FakeContainer, exit_code: int) -> None:
        if found.state != "running":
            return
        found.state, found.exit_code = "exited", exit_code
        self._tell("die", found)
        if self._on_stop is not None:
            await self._on_stop(found)

    async def _remove(self, found: FakeContainer) -> None:
        await self._stop(found, KILLED)
        if self.containers.pop(found.id, None) is not None:
            self._tell("destroy", found)

    def _status(self, found: FakeContainer) -> ContainerStatus:
        return ContainerStatus(
            id=found.id,
            name=found.name,
            state=found.state,
            labels=dict(found.spec.labels),
            exit_code=found.exit_code,
            oom_killed=found.oom_killed,
            created_at=found.created_at,
            pid=1 if found.state == "running" else 0,
        )

    def _tell(self, action: str, found: FakeContainer) -> None:
        if self._lost_events:
            self._lost_events -= 1
            return
        told = ContainerEvent(
            action=action,
            container_id=found.id,
            name=found.name,
            labels=dict(found.spec.labels),
            exit_code=found.exit_code if action == "die" else None,
        )
        copies = 2 if self._repeated_events else 1
        self._repeated_events = max(0, self._repeated_events - 1)
        self._hub.publish([told] * copies)
