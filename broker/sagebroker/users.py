"""`Users`: every user's broker, in one process.

A user's sessions live in a state folder of their own, so that no name, number or query can reach
another user's: there is no owner to compare, and what is not yours is not there. The brokers share
what the machine has once: the engine, the starts, the watch over the process's memory.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import anyio
import anyio.to_thread
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup, TaskStatus

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, UsersConfig
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import BrokerError, ConfigError, TooManyCallsError
from sagebroker.shared import Shared

LOCAL_USER: Final = ""
"""Who owns the state folder itself: whoever runs the command line, stdio, the unix socket."""

PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
"""Names that are folders as they stand, and those tokens are made for; an issuer's others are hashed."""

_log = logging.getLogger(__name__)


Listener = Callable[[str, str, Collection[int]], None]
"""Told a user, the name of a session of his in which something has changed, and the cells."""


class Users(Protocol):
    """Gives each user a broker."""

    def watching(self, listener: Listener) -> AbstractContextManager[None]:
        """Tell ``listener`` of every change, while the context is entered."""
        ...

    @property
    def ending(self) -> anyio.Event:
        """Set when the server ends: calls are answered with what there is."""
        ...

    async def broker_of(self, user: str) -> Broker:
        """The user's broker, entered. Raises `BrokerError` where it cannot be."""
        ...

    def count_call(self, user: str) -> None:
        """A user calls. Raises `TooManyCallsError` where that is too often."""
        ...


class SoleUser:
    """One broker for whoever asks: stdio has one user, and no need to hold him back."""

    def __init__(self, broker: Broker) -> None:
        self.ending = anyio.Event()
        self._broker = broker

    @contextmanager
    def watching(self, listener: Listener) -> Iterator[None]:
        """See `Users`."""
        mine = partial(listener, LOCAL_USER)
        self._broker.listeners.append(mine)
        try:
            yield
        finally:
            self._broker.listeners.remove(mine)

    async def broker_of(self, user: str) -> Broker:
        """The broker."""
        del user
        return self._broker

    def count_call(self, user: str) -> None:
        """Nothing is counted."""


class CallRate:
    """The calls of one user: a bucket of `burst_calls`, filled at `calls_per_minute`; no clock."""

    def __init__(self, limits: UsersConfig, now: float) -> None:
        self._limits = limits
        self._left = float(limits.burst_calls)
        self._at = now

    def count(self, now: float) -> float:
        """Count a call at ``now``, monotonic seconds; returns 0, or seconds to wait if it is too many."""
        per_s = self._limits.calls_per_minute / 60
        self._left = min(self._limits.burst_calls, self._left + (now - self._at) * per_s)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / per_s
        self._left -= 1
        return 0.0


class ServedUsers(AsyncContextManagerMixin):
    """The users of a server. An async context manager: leaving it closes every broker.

    Args:
        config: The server's configuration; each user's broker has it but for the state folder.
        runtime: An engine to use in place of the one that would be found; not closed here.
    """

    def __init__(self, config: BrokerConfig, runtime: ContainerRuntime | None = None) -> None:
        self.config = config
        self.ending = anyio.Event()
        self._shared = Shared(config, runtime, most_sessions=config.users.total_sessions)
        self._brokers: dict[str, Broker] = {}
        self._starting: dict[str, anyio.Lock] = {}
        self._rates: dict[str, CallRate] = {}
        self._listeners: list[Listener] = []
        self._tg: TaskGroup

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[ServedUsers]:
        async with self._shared, anyio.create_task_group() as self._tg:
            self._tg.start_soon(self._adopt)
            try:
                yield self
            finally:
                self.ending.set()
                # Each broker's own exit is shielded and bounded.
                self._tg.cancel_scope.cancel()

    @contextmanager
    def watching(self, listener: Listener) -> Iterator[None]:
        """See `Users`."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def _tell(self, user: str, session: str, cells: Collection[int]) -> None:
        for listener in self._listeners:
            listener(user, session, cells)

    def brokers(self) -> dict[str, Broker]:
        """The brokers that run, by user."""
        return dict(self._brokers)

    async def runtime(self) -> ContainerRuntime:
        """The engine. Raises `RuntimeUnavailableError`."""
        return await self._shared.runtime()

    def count_call(self, user: str) -> None:
        """A user calls. Raises `TooManyCallsError` where that is too often."""
        now = time.monotonic()
        rate = self._rates.setdefault(user, CallRate(self.config.users, now))
        wait_s = rate.count(now)
        if wait_s:
            raise TooManyCallsError(
                f"You have made more calls than the {self.config.users.calls_per_minute:g} a minute that "
                "are allowed. Nothing was done.",
                hint="Wait, then call again; sage_wait with a longer wait_s needs fewer calls.",
                retry_after_s=wait_s,
            )

    async def broker_of(self, user: str) -> Broker:
        """The user's broker, started if need be. Raises `BrokerError` where it cannot be."""
        async with self._starting.setdefault(user, anyio.Lock()):
            if user not in self._brokers:
                await self._tg.start(self._serve, user)
            return self._brokers[user]

    async def _serve(
        self, user: str, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """A broker's life. What it does not foresee ends it, and no other's."""
        is_up = False
        try:
            broker = await self._make(user)
            broker.listeners.append(partial(self._tell, user))
            async with broker:
                is_up = True
                # Here, where it is taken out again: one that ends at once must not stay there.
                self._brokers[user] = broker
                task_status.started()
                await anyio.sleep_forever()
        except Exception:
            if not is_up:
                raise
            _log.exception("The broker of a user ended by a fault; the next call starts it anew")
        finally:
            self._brokers.pop(user, None)

    async def _make(self, user: str) -> Broker:
        config, limits = self.config, self.config.users
        if user == LOCAL_USER:
            return Broker(config, adopt=True, shared=self._shared, outlives_clients=True)
        folder = user_folder(config.state_dir, user)
        await anyio.to_thread.run_sync(partial(_sign, folder, user))
        own = config.session.model_copy(
            update={
                "max_sessions": min(limits.max_sessions, config.session.max_sessions),
                "max_stored_sessions": limits.max_stored_sessions,
                "max_cells": limits.max_cells,
            }
        )
        return Broker(
            config.model_copy(update={"state_dir": folder, "session": own}),
            adopt=True,
            shared=self._shared,
            outlives_clients=True,
        )

    async def _adopt(self) -> None:
        """Start the brokers of users whom an earlier server left sessions, before they call."""
        for user in await anyio.to_thread.run_sync(users_with_sessions, self.config.state_dir):
            try:
                await self.broker_of(user)
            except BrokerError as error:
                _log.warning("The sessions of a user were not taken over: %s", error)


def user_folder(state_dir: Path, user: str) -> Path:
    """The state folder of a user other than `LOCAL_USER`."""
    plain = PLAIN_NAME.fullmatch(user) is not None
    name = user if plain else "+" + hashlib.sha256(user.encode()).hexdigest()[:40]
    return state_dir / "users" / name


def users_with_sessions(state_dir: Path) -> list[str]:
    """Users, the local one among them, of whom there are sessions on disk. Blocks."""
    found = [LOCAL_USER] if any(_entries(state_dir / "sessions")) else []
    for folder in sorted(_entries(state_dir / "users")):
        try:
            if any(_entries(folder / "sessions")):
                found.append((folder / "user").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("The folder of a user, %s, cannot be read: %s", folder, error)
    return found


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _sign(folder: Path, user: str) -> None:
    """Write the user's name into the folder, which need not be there. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "user").write_text(user, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The folder of a user cannot be made: {error}.",
            hint="Make the state folder writable, or set SAGEBROKER_STATE_DIR to another one.",
        ) from error
