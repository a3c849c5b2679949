"""`Entrances`: where Jupyter clients come in to the sessions of a broker.

An entrance is there from a session's beginning to its end. When the session falls asleep while clients are connected it stays,
and the next cell of one of them wakes the session.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from sagebroker.errors import BrokerError, ConfigError
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.kernel.endpoint import IpcEndpoint
from sagebroker.kernel.folders import SOCKET_PREFIX, KernelFolder
from sagebroker.kernel.tcp_endpoint import TcpEndpoint, TcpPlace
from sagebroker.logs import event
from sagebroker.session.connecting import (
    CONNECTION_FILE,
    TCP_CONNECTION_FILE,
    place_of,
    write_connection,
)
from sagebroker.session.desk import Listener
from sagebroker.session.doors import Doors
from sagebroker.session.guests import Guests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from anyio.abc import TaskGroup, TaskStatus

    from sagebroker.config import BrokerConfig
    from sagebroker.kernel.endpoint import Endpoint
    from sagebroker.kernel.held import Wire
    from sagebroker.session.session import Session
    from sagebroker.store.folders import StateFolder


_log = logging.getLogger(__name__)


class Entrance:
    """Of one session, open or asleep; a `guests.House`."""

    def __init__(self, session: Session, wake: Callable[[str], Awaitable[Session]]) -> None:
        self.session: Session | None = session
        self._name = session.name
        self._wake = wake
        self.doors: Doors
        self.guests: Guests
        self.scope = anyio.CancelScope()

    async def awake(self) -> Session:
        """The session, woken where it sleeps. Raises `BrokerError`."""
        if self.session is None or self.session.is_ending:
            return await self._wake(self._name)
        return self.session

    def ended(self, *, is_removed: bool) -> None:
        """Close the entrance, unless the session sleeps and somebody may want to wake it."""
        self.session = None
        if is_removed or not self.doors.subscribers:
            self.doors.hide()
            self.scope.cancel()


class Entrances:
    """See the module. `run` in a task.

    Args:
        config: The broker's.
        state: Where connection files lie.
        wire: Where sockets are made.
        wake: Opens the session of a name, and returns it.
    """

    def __init__(
        self,
        config: BrokerConfig,
        state: StateFolder,
        wire: Wire,
        wake: Callable[[str], Awaitable[Session]],
    ) -> None:
        self._config = config
        self._state = state
        self._wire = wire
        self._wake = wake
        self._open: dict[str, Entrance] = {}
        self._tg: TaskGroup

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve all of them until cancelled."""
        async with anyio.create_task_group() as self._tg:
            task_status.started()
            await anyio.sleep_forever()

    @asynccontextmanager
    async def leading_to(self, session: Session) -> AsyncIterator[None]:
        """Let Jupyter clients in to ``session``; without an entrance it serves all others."""
        entrance = self._open.get(session.id)
        if entrance is None or entrance.scope.cancel_called:
            # Whoever is cancelled here has yet to give back what the session holds.
            with anyio.CancelScope(shield=True):
                entrance = await self._make(session)
        if entrance is None:
            yield
            return
        entrance.session = session
        session.listen(entrance.guests)
        try:
            yield
        finally:
            session.listen(Listener())

    async def _make(self, session: Session) -> Entrance | None:
        entrance = Entrance(session, self._wake)
        try:
            folder = self._state.folder(session.id).path
            connection, place = await anyio.to_thread.run_sync(self._places, session.id, folder)
            entrance.doors = self._doors(connection, place, entrance)
            entrance.doors.bind()
            told = {CONNECTION_FILE: connection.to_values()}
            if place is not None:
                told[TCP_CONNECTION_FILE] = place.to_values()
            try:
                for file, values in told.items():
                    write = partial(write_connection, folder / file, values)
                    await anyio.to_thread.run_sync(write, session.name, session.id)
            except BrokerError:
                entrance.doors.close()
                raise
        except BrokerError as error:
            _log.warning(
                "Jupyter clients cannot connect to session %s: %s",
                session.name,
                error,
                extra=event("endpoint.failed", session=session.id),
            )
            return None
        entrance.guests = Guests(
            entrance,
            entrance.doors,
            time_limit_s=self._config.session.max_time_limit_s,
            may_interrupt_all=self._config.jupyter.may_interrupt_all,
        )
        self._open[session.id] = entrance
        await self._tg.start(self._serve, session.id, entrance)
        return entrance

    async def _serve(
        self, session_id: str, entrance: Entrance, *, task_status: TaskStatus[None]
    ) -> None:
        try:
            with entrance.scope:
                await entrance.guests.run(entrance.doors.serve, task_status=task_status)
        except Exception:  # noqa: BLE001 - a fault here ends the entrance, and nothing else
            _log.exception(
                "The endpoint of session %s has ended by a fault",
                session_id,
                extra=event("endpoint.failed", session=session_id),
            )
        finally:
            if self._open.get(session_id) is entrance:
                del self._open[session_id]
            entrance.doors.close()

    def _places(self, session_id: str, folder: Path) -> tuple[ConnectionInfo, TcpPlace | None]:
        """Where endpoints shall be, with the keys that clients know of earlier ones. Blocks."""
        folder_of_sockets = KernelFolder(self._config.runtime_dir, session_id).endpoint
        prefix = str(folder_of_sockets / SOCKET_PREFIX)
        try:
            connection = ConnectionInfo.load(folder / CONNECTION_FILE).with_prefix(prefix)
        except ConfigError:
            connection = ConnectionInfo.new(prefix)
        host = self._config.jupyter.tcp_host
        if not host:
            return connection, None
        address = self._config.jupyter.tcp_address or host
        return connection, place_of(folder, host=host, address=address, key=connection.key)

    def _doors(
        self, connection: ConnectionInfo, place: TcpPlace | None, entrance: Entrance
    ) -> Doors:
        options: dict[str, Any] = {
            "context": self._wire.context,
            "guard": self._wire.guard,
            "on_request": lambda *said: entrance.guests.take(*said),
        }
        doors: list[Endpoint] = [IpcEndpoint(connection, **options)]
        if place is not None:
            doors.append(TcpEndpoint(place, **options))
        return Doors(doors)
