"""`Broker`: the composition root. Builds what the layers need, and owns the task group.

::

    async with Broker(config) as broker:
        session, created = await broker.open_session("default")
        cell = session.submit("factor(2^64 + 1)")
        await cell.wait(60)
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import anyio
import anyio.lowlevel
import anyio.to_thread
import zmq
import zmq.asyncio
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from sagebroker.config import BrokerConfig
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import (
    SessionClosedError,
    SessionNotFoundError,
    TooManySessionsError,
    alone,
)
from sagebroker.kernel.held import Wire
from sagebroker.logs import event
from sagebroker.session.adoption import adopt_left
from sagebroker.session.catalogue import Catalogue
from sagebroker.session.cell import Cell
from sagebroker.session.directory import Directory
from sagebroker.session.entrance import Entrances
from sagebroker.session.found import Found
from sagebroker.session.launch import Launcher
from sagebroker.session.names import check_session_name
from sagebroker.session.opener import Opener
from sagebroker.session.orphans import Sweep
from sagebroker.session.ready import Ready
from sagebroker.session.session import Session
from sagebroker.session.upkeep import Upkeep
from sagebroker.shared import RETRY_AFTER_S, Shared
from sagebroker.store.folders import StateFolder
from sagebroker.store.records import Hibernate, OnEnd, SessionRow
from sagebroker.store.store import Store

MAX_SOCKETS = 8192
"""Of the ZeroMQ context. A session takes eighteen: thirteen to its kernel (three for each monitored socket), and
five for its Jupyter clients."""

_log = logging.getLogger(__name__)


class Broker(AsyncContextManagerMixin):
    """Sessions of one process. An async context manager: leaving it leaves each as its owner wants it.

    Args:
        config: The whole configuration.
        runtime: An engine to use in place of the one that would be found; not closed here.
        adopt: Take over, without being asked, what brokers that were killed have left running.
        shared: What this broker has together with others, entered by whoever owns it; without, it has
            all of that alone.
        outlives_clients: Whether the broker goes on when the client that opened a session is gone.
    """

    def __init__(
        self,
        config: BrokerConfig,
        runtime: ContainerRuntime | None = None,
        *,
        adopt: bool = False,
        shared: Shared | None = None,
        outlives_clients: bool = False,
    ) -> None:
        self.config = config
        self.outlives_clients = outlives_clients
        self._adopt = adopt
        self._lent = shared
        self._shared = shared or Shared(config, runtime)
        self._is_connected = False
        self.listeners: list[Callable[[str, Collection[int]], None]] = []
        """Told the name of a session in which something has changed, and the numbers of its cells."""
        self._opening: dict[str, anyio.Lock] = {}
        self._is_leaving = False
        self._reserved = 0
        """Sessions that are being made and count already."""
        self._state = StateFolder(config.state_dir)
        self._tg: TaskGroup
        self._launcher: Launcher
        self.directory: Directory
        """What sessions there are, open and stored; of use while the broker is entered."""
        self._upkeep: Upkeep
        self._store: Store
        self._wire: Wire
        self._entrances: Entrances

    def __repr__(self) -> str:
        return f"<Broker [{len(self.directory)} sessions]>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Broker]:
        instance = await anyio.to_thread.run_sync(self._state.open)
        self._launcher = Launcher(self.config, instance, self.runtime)
        context = zmq.asyncio.Context()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        self._wire = Wire(context=context, guard=self._shared.guard)
        self._entrances = Entrances(self.config, self._state, self._wire, self.awake)
        try:
            async with (
                self._shared if self._lent is None else nullcontext(),
                Store.open(
                    self._state.database, lambda session_id: self._state.folder(session_id).outputs
                ) as self._store,
            ):
                opener = Opener(self.config, self._launcher, self._state, self._store)
                self.directory = Directory(self.config, opener, self._store, self._state)
                sweep = Sweep(self._launcher, self._state, self._store)
                self._upkeep = Upkeep(self.sessions, self._launcher, sweep)
                with self._shared.counting(lambda: len(self.directory) + self._reserved):
                    async with self._running(instance):
                        yield self
        finally:
            context.destroy(linger=0)

    @asynccontextmanager
    async def _running(self, instance: str) -> AsyncIterator[None]:
        with alone():
            async with anyio.create_task_group() as self._tg:
                await self._tg.start(self._entrances.run)
                self._tg.start_soon(self._upkeep.renew_leases)
                self._tg.start_soon(self._upkeep.let_sleep, self.config.hibernation)
                adopting = anyio.CancelScope()
                if self._adopt:
                    self._tg.start_soon(
                        partial(
                            adopt_left,
                            self.directory,
                            self._launcher,
                            self._state,
                            open_session=self.open_session,
                            most=self.config.session.max_sessions,
                            scope=adopting,
                        )
                    )
                _log.info("The broker runs", extra=event("broker.started", instance=instance))
                try:
                    yield
                finally:
                    adopting.cancel()
                    with anyio.CancelScope(shield=True):
                        await self._leave_all()
                    self._tg.cancel_scope.cancel()

    @property
    def own_labels(self) -> dict[str, str]:
        """What every container of this installation carries."""
        return self._launcher.own_labels

    async def runtime(self) -> ContainerRuntime:
        """The engine, connected when first asked for.

        Raises:
            RuntimeUnavailableError: There is none; says what was tried and what to do.
        """
        runtime = await self._shared.runtime()
        if not self._is_connected:
            self._is_connected = True
            self._tg.start_soon(self._upkeep.remove_orphans)
            self._tg.start_soon(self._upkeep.follow_events, runtime)
        return runtime

    async def open_session(
        self,
        name: str,
        *,
        keep: bool = False,
        hibernate: Hibernate = "auto",
        private: bool = False,
        beside: bool = False,
    ) -> tuple[Session, bool]:
        """The session ``name``, opened if need be; and whether that was needed.

        A session that an earlier broker left is found again, with its variables, be it asleep, running
        or dead.

        Args:
            name: 1 to 40 letters, digits, ``_``, ``.`` and ``-``.
            keep: Whether the kernel of a new one goes on when this broker ends. Otherwise it sleeps
                then, if ``hibernation.at_end`` is set, and else is closed.
            hibernate: What happens to a new one when it is idle.
            private: Look for no session of this name: make one with a name like it, that is closed
                when this broker ends.
            beside: If another process serves the session of this name, open one with a name like it,
                and know that by ``name``, too, from now on.

        Raises:
            SessionNameError: The name is not one.
            TooManySessionsError: ``max_sessions`` are open.
            SessionInUseError: Another process serves the session of this name.
            BrokerError: No kernel came up; says why.
        """
        check_session_name(name)
        async with self._being_opened(name):
            found = self.directory.get(name)
            if found is not None and found.is_ending:
                await found.wait_ended()
                found = None
            if found is not None and not private:
                return found, False
            if self._is_leaving:
                raise SessionClosedError("The broker ends; no session is opened any more.")
            if len(self.directory) + self._reserved >= self.config.session.max_sessions:
                raise TooManySessionsError(
                    f"{len(self.directory)} sessions are open, as many as are allowed.",
                    hint="Close one with sage_close, or use an open one.",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._shared.check_room()
            session = await self._prepare(
                name, keep=keep, hibernate=hibernate, private=private, beside=beside
            )
            try:
                await self._tg.start(self._run, session)
            except BaseException:
                self.directory.forget(session)
                raise
            self._tell(session.name, ())
            _log.info("Session %s opened", name, extra=event("session.opened", session=session.id))
            return session, True

    @asynccontextmanager
    async def _being_opened(self, name: str) -> AsyncIterator[None]:
        """Nobody else here opens the session that ``name`` means, under any of its names."""
        while True:
            real = self.directory.resolve(name)
            async with self._opening.setdefault(real, anyio.Lock()):
                if self.directory.resolve(name) == real:
                    yield
                    return

    async def _prepare(
        self, name: str, *, keep: bool, hibernate: Hibernate, private: bool, beside: bool
    ) -> Session:
        """The session, found or made, that is to live now."""
        self._reserved += 1
        try:
            if private:
                found = await self.directory.make_private(name)
            else:
                at_end: OnEnd = "hibernate" if self.config.hibernation.at_end else "close"
                on_end: OnEnd = "stay" if keep else at_end
                found = await self.directory.find_or_make(
                    name, on_end=on_end, hibernate=hibernate, beside=beside
                )
            session = self._session(found)
            self.directory.add(session, None if private else name)
        finally:
            self._reserved -= 1
        return session

    async def awake(self, name: str) -> Session:
        """The session ``name``, woken or found again where it is not open.

        Raises:
            SessionNotFoundError: There is none; tells the ones there are.
            BrokerError: See `open_session`.
        """
        found = self.directory.get(name)
        if found is not None and not found.is_ending:
            return found
        await self.directory.check(name)
        return (await self.open_session(name))[0]

    def session(self, name: str) -> Session:
        """The open session ``name``. Raises `SessionNotFoundError`, which tells the open ones."""
        found = self.open_one(name)
        if found is None:
            raise SessionNotFoundError(name, [session.name for session in self.sessions()])
        return found

    def open_one(self, name: str) -> Session | None:
        """The open session ``name``, or None."""
        return self.directory.get(name)

    def sessions(self) -> list[Session]:
        """Every open session, by name."""
        return self.directory.all()

    async def stored_sessions(self) -> list[SessionRow]:
        """Every session there is, open, asleep or another process's, by name. Raises `StorageError`."""
        return await self.directory.stored()

    async def read_cell(self, name: str, number: int) -> Cell:
        """A cell of a session, of which nothing is woken for that.

        Raises:
            SessionNotFoundError: There is no such session.
            CellNotFoundError: It has no such cell.
            StorageError: The store cannot be read.
        """
        return await self.directory.read_cell(name, number)

    async def close_session(self, name: str) -> str:
        """End a session, open or asleep; returns a sentence about what is gone.

        Raises:
            SessionNotFoundError: There is none.
            SessionInUseError: Another process serves it.
            BrokerError: It could not be removed.
        """
        found, real = self.directory.get(name), self.directory.resolve(name)
        if found is not None:
            await found.aclose()
        if found is None or (not found.is_removed and await self._is_asleep(real)):
            catalogue = await self.catalogue()
            await catalogue.close(await catalogue.find(real))
            self.directory.forget_aliases(real)
            found = None
        if found is None or found.is_removed:
            return f"Session {name!r} is closed; its variables and files are gone."
        return (
            f"Session {name!r} is closed. Its container could not be removed now; that is done as soon as "
            "the container engine answers again."
        )

    async def _is_asleep(self, name: str) -> bool:
        """Whether the session sleeps: it did so when it was to be closed."""
        return any(
            row.name == name and row.state == "hibernated" for row in await self.stored_sessions()
        )

    async def catalogue(self) -> Catalogue:
        """Every session of this installation, also those other processes serve."""
        return Catalogue(self._launcher, self._state, self._store, await self.runtime())

    def _session(self, found: Found) -> Session:
        return Session(
            found,
            config=self.config,
            launcher=self._launcher,
            wire=self._wire,
            store=self._store,
            starts=self._shared.starts,
            on_change=self._tell,
        )

    def _tell(self, session: str, cells: Collection[int]) -> None:
        for listener in self.listeners:
            listener(session, cells)

    async def _run(
        self, session: Session, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """A session's life. What it does not foresee ends it, and nothing else."""
        scope = anyio.CancelScope()
        ready = Ready(task_status, scope)
        try:
            with scope:
                async with self._entrances.leading_to(session):
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
            self.directory.forget(session)
            self._tell(session.name, ())
            _log.info(
                "Session %s closed",
                session.name,
                extra=event("session.closed", session=session.id),
            )

    async def _leave_all(self) -> None:
        _log.info("The broker stops", extra=event("broker.stopping", sessions=len(self.directory)))
        self._is_leaving = True
        while sessions := self.sessions():
            async with anyio.create_task_group() as tg:
                for session in sessions:
                    tg.start_soon(session.leave)
            # They are forgotten by their own tasks.
            await anyio.lowlevel.checkpoint()
