"""`DockerRuntime`: Docker Engine, or Podman's Docker-compatible socket, over the `docker` package.

How calls are bounded is in `docker_calls`, how errors are mapped in `docker_errors`. ``wait()`` and
the package's ``events()`` are never called: they have no timeout.
"""

from __future__ import annotations

import logging
import re
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import requests

from sagebroker.container import replies
from sagebroker.container.breaker import CircuitBreaker
from sagebroker.container.docker_calls import READ_ATTEMPTS, Deadlines, EngineCalls, check_name
from sagebroker.container.docker_errors import FOREIGN_ERRORS, mapped
from sagebroker.container.docker_events import open_events
from sagebroker.container.events import (
    IDLE_LIMIT_S,
    LONGEST_PAUSE_S,
    STALE_AFTER_S,
    EventHub,
    EventReader,
    EventSource,
)
from sagebroker.container.hardening import create_container, inspect_container, violations
from sagebroker.container.spec import LABEL_GENERATION, ContainerSpec, check_sources
from sagebroker.errors import (
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    RuntimeUnavailableError,
)
from sagebroker.logs import event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from docker import APIClient

    from sagebroker.container.runtime import (
        ContainerEvent,
        ContainerStats,
        ContainerStatus,
        EngineInfo,
    )

log = logging.getLogger(__name__)

GONE_POLL_S = 0.1
"""Pause between looks at a container that somebody else is removing."""
MAX_LOG_CHARS = 65_536
"""Text of a container's output handed out at most: it goes into one error message."""

_SIGNAL = re.compile(r"SIG[A-Z0-9]{2,8}\Z")


class DockerRuntime:
    """See `ContainerRuntime` for the operations.

    Connects with the first call. Close it with `aclose`, or use it as ``async with``.

    Args:
        url: The engine, such as ``unix:///var/run/docker.sock``.
        deadlines: Bounds of the calls.
        breaker: Opened by unanswered calls; refuses further ones, but never ping, signal, remove.
        event_idle_limit_s: Silence after which the event stream is opened anew, seconds.
        event_stale_after_s: Time without an event stream after which that is logged, seconds.
        event_longest_pause_s: Bound of the pause between attempts to open that stream, seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        deadlines: Deadlines | None = None,
        breaker: CircuitBreaker | None = None,
        event_idle_limit_s: float = IDLE_LIMIT_S,
        event_stale_after_s: float = STALE_AFTER_S,
        event_longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self.url = url
        self._calls = EngineCalls(url, deadlines or Deadlines(), breaker or CircuitBreaker())
        self._event_idle_limit_s = event_idle_limit_s
        self._event_stale_after_s = event_stale_after_s
        self._event_longest_pause_s = event_longest_pause_s
        self._engine: EngineInfo | None = None
        self._hub: EventHub | None = None
        self._reader: EventReader | None = None

    async def __aenter__(self) -> DockerRuntime:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def ping(self) -> EngineInfo:
        """See `ContainerRuntime.ping`. Tried even while the breaker is open; an answer closes it."""

        def ask(client: APIClient) -> EngineInfo:
            return replies.engine_info(client.version(), client.info())

        self._engine = await self._calls.urgent(ask, "ping", self.url, attempts=READ_ATTEMPTS)
        return self._engine

    async def image_digest(self, image: str) -> str:
        """See `ContainerRuntime.image_digest`."""

        def ask(client: APIClient) -> str:
            return str(client.inspect_image(image)["Id"])  # type: ignore[no-untyped-call]

        return await self._calls.read(ask, "look up", image)

    async def create(self, spec: ContainerSpec) -> str:
        """See `ContainerRuntime.create`.

        A create whose answer is lost is looked up by name: the container is taken over if its
        generation is the one of ``spec``. A container that is weaker than the table of
        `hardening` is removed again.

        Raises:
            ConfigError: A mounted folder is missing or must not be shown to a container.
            ContainerError: The engine made a container that is weaker than asked for.
        """
        await self._calls.in_thread(partial(check_sources, spec))
        # Before the rest: a refusal is not an answer that was lost.
        self._calls.refuse_while_open()
        engine = self._engine or await self.ping()

        def ask(client: APIClient) -> str:
            return create_container(client, spec, engine)

        try:
            container = await self._calls.change_regardless(ask, "create", spec.name)
        except (RuntimeUnavailableError, ContainerConflictError) as error:
            container = await self._find_created(spec, error)
        await self._refuse_weak(container, spec, engine)
        ids = event("container.created", container=container[:12], name=spec.name)
        log.info("A container was created.", extra=ids)
        return container

    async def start(self, container: str) -> None:
        """See `ContainerRuntime.start`."""
        name = check_name(container)
        await self._calls.change(lambda client: client.start(name), "start", name)

    async def signal(self, container: str, signal: str) -> None:
        """See `ContainerRuntime.signal`. Tried even while the breaker is open."""
        name = check_name(container)
        if not _SIGNAL.match(signal):
            raise ContainerError(f"{signal!r} is no signal.", hint="Use a name such as SIGINT.")
        await self._calls.urgent(
            lambda client: client.kill(name, signal), f"send {signal} to", name
        )

    async def inspect(self, container: str) -> ContainerStatus:
        """See `ContainerRuntime.inspect`."""
        return replies.status_from_inspect(await self._document(container))

    async def list(self, labels: dict[str, str]) -> list[ContainerStatus]:
        """See `ContainerRuntime.list`."""
        wanted = [f"{name}={value}" for name, value in labels.items()]

        def ask(client: APIClient) -> list[ContainerStatus]:
            entries = client.containers(all=True, filters={"label": wanted})
            found = [replies.status_from_summary(entry) for entry in entries]
            # Removals follow from this list: the engine's own filter is not relied upon.
            return [status for status in found if labels.items() <= status.labels.items()]

        return await self._calls.read(ask, "list", "containers")

    async def stats(self, container: str) -> ContainerStats:
        """See `ContainerRuntime.stats`."""
        name = check_name(container)

        def ask(client: APIClient) -> ContainerStats:
            try:
                document = client.stats(name, stream=False, one_shot=True)
            except requests.JSONDecodeError:
                # Of a container that does not run Podman says nothing at all.
                if replies.status_from_inspect(client.inspect_container(name)).is_running:
                    raise
                document = {}
            return replies.stats_from_json(document)

        return await self._calls.read(ask, "measure", name)

    async def logs(self, container: str, *, tail: int) -> str:
        """See `ContainerRuntime.logs`. At most `MAX_LOG_CHARS` characters, the last ones."""
        name = check_name(container)

        def ask(client: APIClient) -> str:
            raw = client.logs(name, stdout=True, stderr=True, tail=tail)
            return raw.decode("utf-8", errors="replace")[-MAX_LOG_CHARS:]

        return await self._calls.read(ask, "read the output of", name)

    async def remove(self, container: str) -> None:
        """See `ContainerRuntime.remove`. Tried even while the breaker is open."""
        name = check_name(container)
        try:
            await self._calls.change_regardless(
                lambda client: client.remove_container(name, v=True, force=True), "remove", name
            )
        except ContainerNotFoundError:
            return
        except ContainerConflictError as error:
            if "in progress" not in error.message:
                raise
            await self._wait_until_gone(name)
        log.info("A container was removed.", extra=event("container.removed", container=name[:12]))

    async def rename(self, container: str, name: str) -> None:
        """See `ContainerRuntime.rename`."""
        old, new = check_name(container), check_name(name)
        await self._calls.change(lambda client: client.rename(old, new), "rename", old)

    @asynccontextmanager
    async def events(self, labels: dict[str, str]) -> AsyncIterator[AsyncIterator[ContainerEvent]]:
        """See `ContainerRuntime.events`. The first subscriber starts the reading thread."""
        if self._hub is None:
            self._hub = EventHub()
            self._reader = EventReader(
                self._hub,
                self._open_events,
                stale_after_s=self._event_stale_after_s,
                longest_pause_s=self._event_longest_pause_s,
            )
        async with self._hub.subscribe(labels) as subscription:
            yield subscription

    async def aclose(self) -> None:
        """See `ContainerRuntime.aclose`. Ends the iterators of `events`."""
        reader, self._reader = self._reader, None
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.end()
        if reader is not None:
            await reader.aclose()
        self._calls.close()

    async def _document(self, container: str) -> dict[str, Any]:
        name = check_name(container)

        def ask(client: APIClient) -> dict[str, Any]:
            return cast("dict[str, Any]", client.inspect_container(name))

        return await self._calls.read(ask, "inspect", name)

    async def _find_created(self, spec: ContainerSpec, error: ContainerError) -> str:
        """The container that a create without a clear answer has made, if it has."""
        try:
            status = await self.inspect(spec.name)
        except (ContainerNotFoundError, RuntimeUnavailableError):
            raise error from error.__cause__
        generation = spec.labels.get(LABEL_GENERATION)
        ours = generation and status.labels.get(LABEL_GENERATION) == generation
        if ours and status.state == "created":
            log.info("A container whose creation was not answered was found and taken over.")
            return status.id
        raise ContainerConflictError(
            f"The container name {spec.name!r} is in use (state {status.state}).",
            hint="It is another session's, or an earlier incarnation that has to be removed first.",
        ) from error

    async def _refuse_weak(self, container: str, spec: ContainerSpec, engine: EngineInfo) -> None:
        document = await self._calls.read(
            lambda client: inspect_container(client, container, engine), "inspect", container
        )
        problems = violations(document, spec, engine)
        if not problems:
            return
        await self.remove(container)
        raise ContainerError(
            "The engine made a container that is weaker than asked for: "
            + "; ".join(problems[:5])
            + ".",
            hint="Sessions are not run unprotected. `sagebroker doctor` says what the engine lacks.",
        )

    async def _wait_until_gone(self, container: str) -> None:
        limit_s = self._calls.deadlines.change_s
        try:
            with anyio.fail_after(limit_s):
                while True:
                    await self._document(container)
                    await anyio.sleep(GONE_POLL_S)
        except ContainerNotFoundError:
            return
        except TimeoutError as error:
            raise RuntimeUnavailableError(
                f"The container {container!r} was still being removed after {limit_s:g} s."
            ) from error

    def _open_events(self, since_ns: int | None) -> EventSource:
        """In the thread of the events. Not counted by the breaker: its silence is told apart."""
        limit_s = self._calls.deadlines.urgent_s
        try:
            client = self._calls.client(limit_s)
        except FOREIGN_ERRORS as error:
            raise mapped(error, "read events of", self.url) from error
        return open_events(
            client, since_ns, open_limit_s=limit_s, idle_limit_s=self._event_idle_limit_s
        )
