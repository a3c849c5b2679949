"""`Broker`: the composition root. Builds what the layers need, and owns the task group.

::

    async with Broker(config) as broker:
        session, created = await broker.open_session("default")
        cell = session.submit("factor(2^64 + 1)")
        await cell.wait(60)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.to_thread
import zmq
import zmq.asyncio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from sagebroker.config import BrokerConfig, engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import find_engine
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import (
    BrokerError,
    SessionClosedError,
    SessionGoneError,
    SessionInUseError,
    SessionNotFoundError,
    TooManySessionsError,
)
from sagebroker.kernel.guard import MemoryGuard
from sagebroker.kernel.kernel import Wire
from sagebroker.logs import event
from sagebroker.session.catalogue import Catalogue
from sagebroker.session.launch import Launcher
from sagebroker.session.names import check_session_name
from sagebroker.session.orphans import remove_orphans
from sagebroker.session.session import Session
from sagebroker.store.folders import SessionFolder, StateFolder

LEASE_INTERVAL_S = 20.0
"""Time between signs of life to the keepers; thirty fit into the shortest sensible lease."""

SWEEP_INTERVAL_S = 60.0
"""Time between searches for containers and folders that nobody owns any more."""

MAX_SOCKETS = 1023
"""libzmq's limit of a context; a session takes thirteen (three for each monitored socket)."""

_log = logging.getLogger(__name__)


class Broker(AsyncContextManagerMixin):
    """Sessions of one process. An async context manager: leaving it ends every session but the kept.

    Args:
        config: The whole configuration.
        runtime: An engine to use in place of the one that would be found; not closed here.
    """

    def __init__(self, config: BrokerConfig, runtime: ContainerRuntime | None = None) -> None:
        self.config = config
        self._runtime = runtime
        self._own_runtime: ContainerRuntime | None = None
        self._connecting = anyio.Lock()
        self._is_connected = False
        self._opening: dict[str, anyio.Lock] = {}
        self._sessions: dict[str, Session] = {}
        self._reserved = 0
        """Sessions that are being made and count already."""
        self._state = StateFolder(config.state_dir)
        self._starts = anyio.Semaphore(config.kernel.concurrent_starts)
        self._tg: TaskGroup
        self._launcher: Launcher
        self._wire: Wire

    def __repr__(self) -> str:
        return f"<Broker [{len(self._sessions)} sessions]>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Broker]:
        instance = await anyio.to_thread.run_sync(self._state.open)
        self._launcher = Launcher(self.config, self._state, instance, self.runtime)
        context = zmq.asyncio.Context()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        self._wire = Wire(context=context, guard=MemoryGuard())
        try:
            async with anyio.create_task_group() as self._tg:
                self._tg.start_soon(self._renew_leases)
                self._tg.start_soon(self._wire.guard.run)
                _log.info("The broker runs", extra=event("broker.started", instance=instance))
                try:
                    yield self
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._close_all()
                    self._tg.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The task group is not the caller's business: one error arrives as itself.
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from group.exceptions[0].__cause__
        finally:
            context.destroy(linger=0)
            if self._own_runtime is not None:
                with anyio.CancelScope(shield=True):
                    await self._own_runtime.aclose()

    @property
    def own_labels(self) -> dict[str, str]:
        """What every container of this installation carries."""
        return self._launcher.own_labels

    async def runtime(self) -> ContainerRuntime:
        """The engine, connected when first asked for.

        Raises:
            RuntimeUnavailableError: There is none; says what was tried and what to do.
        """
        async with self._connecting:
            if self._runtime is None:
                found = await find_engine(self.config.engine_url, engine_environment())
                self._runtime = self._own_runtime = DockerRuntime(found.url)
            if not self._is_connected:
                self._is_connected = True
                self._tg.start_soon(self._sweep)
                self._tg.start_soon(self._follow_events, self._runtime)
            return self._runtime

    async def open_session(
        self, name: str, *, keep: bool = False, private: bool = False
    ) -> tuple[Session, bool]:
        """The session ``name``, opened if need be; and whether that was needed.

        A kept session that an earlier broker left is found again, with its variables.

        Args:
            name: 1 to 40 letters, digits, ``_``, ``.`` and ``-``.
            keep: Whether a new one outlives this broker.
            private: Look for no kept session of this name.

        Raises:
            SessionNameError: The name is not one.
            TooManySessionsError: ``max_sessions`` are open.
            SessionInUseError: Another process serves the kept session of this name.
            BrokerError: No kernel came up; says why.
        """
        check_session_name(name)
        async with self._opening.setdefault(name, anyio.Lock()):
            found = self._sessions.get(name)
            if found is not None:
                return found, False
            if len(self._sessions) + self._reserved >= self.config.session.max_sessions:
                raise TooManySessionsError(
                    f"{len(self._sessions)} sessions are open, as many as are allowed.",
                    hint="Close one with sage_close, or use an open one.",
                    retry_after_s=30.0,
                )
            self._reserved += 1
            try:
                session = await self._make(name, keep=keep, private=private)
                self._sessions[name] = session
            finally:
                self._reserved -= 1
            try:
                await self._tg.start(self._run, session)
            except BaseException:
                self._sessions.pop(name, None)
                raise
            _log.info("Session %s opened", name, extra=event("session.opened", session=session.id))
            return session, True

    def session(self, name: str) -> Session:
        """The open session ``name``. Raises `SessionNotFoundError`, which tells the open ones."""
        found = self._sessions.get(name)
        if found is None:
            raise SessionNotFoundError(name, sorted(self._sessions))
        return found

    def sessions(self) -> list[Session]:
        """Every open session, by name."""
        return [self._sessions[name] for name in sorted(self._sessions)]

    async def close_session(self, name: str) -> str:
        """End a session, kept or not; returns a sentence about what is gone."""
        session = self.session(name)
        await session.aclose()
        if session.is_removed:
            return f"Session {name!r} is closed; its variables and files are gone."
        return (
            f"Session {name!r} is closed. Its container could not be removed now; that is done as soon as "
            "the container engine answers again."
        )

    async def catalogue(self) -> Catalogue:
        """Every session of this installation, also those other processes serve."""
        return Catalogue(self._launcher, self._state, await self.runtime())

    async def _make(self, name: str, *, keep: bool, private: bool) -> Session:
        if not private:
            kept = await anyio.to_thread.run_sync(self._state.find_kept, name)
            if kept is not None:
                with suppress(SessionGoneError):
                    return await self._find(kept)
        return await self._new(name, keep=keep)

    async def _new(self, name: str, *, keep: bool) -> Session:
        folder, record = await self._launcher.reserve(name, keep=keep)
        return Session(
            record,
            folder,
            config=self.config,
            launcher=self._launcher,
            wire=self._wire,
            starts=self._starts,
        )

    async def _find(self, folder: SessionFolder) -> Session:
        """A kept session that an earlier broker left; its kernel too, where that still runs."""
        await anyio.to_thread.run_sync(folder.lock)
        record = await anyio.to_thread.run_sync(folder.read)
        if record is None:
            folder.unlock()
            raise SessionInUseError(
                f"The record of session {folder.id} cannot be read.",
                hint=f"Look at {folder.path}; nothing there was changed.",
            )
        try:
            adopted = await self._launcher.adopt(record)
            if adopted is None:
                await self._launcher.discard(record.id)
        except BaseException:
            folder.unlock()
            raise
        _log.info(
            "Session %s found", record.name, extra=event("session.adopted", session=record.id)
        )
        return Session(
            record,
            folder,
            config=self.config,
            launcher=self._launcher,
            wire=self._wire,
            starts=self._starts,
            is_new=False,
            adopted=adopted,
        )

    async def _run(
        self, session: Session, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """A session's life. What it does not foresee ends it, and nothing else."""
        ready = _Ready(task_status)
        try:
            await session.run(task_status=ready)
            if not ready.is_set:
                raise SessionClosedError(
                    f"The session {session.name!r} was closed while it started."
                )
        except Exception as error:
            if not ready.is_set:
                raise
            _log.exception(
                "Session %s ended by a fault of the broker: %s",
                session.id,
                error,
                extra=event("session.failed", session=session.id),
            )
        finally:
            if self._sessions.get(session.name) is session:
                del self._sessions[session.name]
            _log.info(
                "Session %s closed",
                session.name,
                extra=event("session.closed", session=session.id),
            )

    async def _close_all(self) -> None:
        _log.info("The broker stops", extra=event("broker.stopping", sessions=len(self._sessions)))
        async with anyio.create_task_group() as tg:
            for session in list(self._sessions.values()):

                async def close(one: Session = session) -> None:
                    await one.aclose(detach=one.keep)

                tg.start_soon(close)

    async def _renew_leases(self) -> None:
        while True:
            for session in list(self._sessions.values()):
                folder = self._launcher.kernel_folder(session.id)
                await anyio.to_thread.run_sync(folder.touch_lease)
            await anyio.sleep(LEASE_INTERVAL_S)

    async def _sweep(self) -> None:
        """Remove what dead processes of this installation left."""
        while True:
            try:
                await remove_orphans(
                    self._launcher, self._state, {s.id for s in self._sessions.values()}
                )
            except BrokerError as error:
                _log.warning("No search for orphans: %s", error)
            await anyio.sleep(SWEEP_INTERVAL_S)

    async def _follow_events(self, runtime: ContainerRuntime) -> None:
        """Make sessions look at once when the engine tells of their containers."""
        async with runtime.events(self._launcher.own_labels) as events:
            async for happened in events:
                if happened.action in _EVENTS_OF_DEATH:
                    for session in list(self._sessions.values()):
                        if (
                            happened.action == "resync"
                            or session.container == happened.container_id
                        ):
                            session.suspect()


_EVENTS_OF_DEATH = frozenset({"die", "destroy", "oom", "stop", "resync"})


class _Ready:
    """A task status that remembers whether it was used."""

    def __init__(self, status: TaskStatus[None]) -> None:
        self._status = status
        self.is_set = False

    def started(self, value: None = None) -> None:
        self.is_set = True
        self._status.started(value)
