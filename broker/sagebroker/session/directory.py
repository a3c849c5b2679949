"""`Directory`: which session a name means, among those of this process and those of the store."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from sagebroker.errors import (
    QueueFullError,
    SessionBusyError,
    SessionInUseError,
    SessionNotFoundError,
)
from sagebroker.session.connecting import read_connection
from sagebroker.session.file_access import SessionFiles
from sagebroker.session.queue import RETRY_AFTER_S
from sagebroker.session.recall import list_cells, recall

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sagebroker.config import BrokerConfig
    from sagebroker.session.cell import Cell
    from sagebroker.session.found import Found
    from sagebroker.session.opener import Opener
    from sagebroker.session.session import Session
    from sagebroker.store.folders import StateFolder
    from sagebroker.store.records import CellRow, Hibernate, OnEnd, SessionRow
    from sagebroker.store.store import Store


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """What is stored about a session, beside its cells."""

    row: SessionRow
    kernels: tuple[str, ...]
    """Which kernels served it lately, each once: ``sage 10.8``."""
    cells: Mapping[int, CellRow]
    """What is stored of its cells, by number."""


class Directory:
    """See the module."""

    def __init__(
        self, config: BrokerConfig, opener: Opener, store: Store, state: StateFolder
    ) -> None:
        self._config = config
        self._state = state
        self._opener = opener
        self._store = store
        self._open: dict[str, Session] = {}
        self._beside: dict[str, str] = {}
        """Names that another process serves, and the sessions that serve for them here."""

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Session | None:
        """The open session that ``name`` means, or None."""
        return self._open.get(self.resolve(name))

    def resolve(self, name: str) -> str:
        """The session's own name, where ``name`` means one that serves for another."""
        return self._beside.get(name, name)

    def all(self) -> list[Session]:
        """Every open session, by name."""
        return [self._open[name] for name in sorted(self._open)]

    def check_room_for_cell(self) -> None:
        """Raise `QueueFullError` where as many cells run and wait as all sessions together may have."""
        infos = [session.info() for session in self._open.values()]
        cells = sum(info.queued + (info.running is not None) for info in infos)
        if cells >= self._config.session.max_cells:
            raise QueueFullError(
                f"{cells} cells run or wait in all your sessions, as many as are allowed.",
                hint="Wait for some with sage_wait, or stop some with sage_interrupt.",
                retry_after_s=RETRY_AFTER_S,
            )

    def add(self, session: Session, name: str | None) -> None:
        """A session is being opened; ``name`` means it, too."""
        self._open[session.name] = session
        if name is not None and session.name != name:
            self._beside[name] = session.name

    def forget(self, session: Session) -> None:
        """A session has ended."""
        if self._open.get(session.name) is session:
            del self._open[session.name]
        if session.is_removed:
            self.forget_aliases(session.name)

    def forget_aliases(self, real: str) -> None:
        """A session is gone: the names that meant it mean others' again."""
        self._beside = {n: r for n, r in self._beside.items() if r != real}

    async def stored(self) -> list[SessionRow]:
        """Every session there is, open, asleep or another process's, by name. Raises `StorageError`."""
        rows = await self._store.call(lambda db: db.sessions())
        return sorted(rows, key=lambda row: row.name)

    async def with_id(self, session_id: str) -> SessionRow | None:
        """The session with this id, open, asleep or another process's. Raises `StorageError`."""
        return await self._store.call(lambda db: db.session(session_id))

    async def check(self, name: str) -> None:
        """Raise `SessionNotFoundError` where there is no session ``name``, open or asleep."""
        if self.get(name) is None:
            rows = await self.stored()
            if not any(row.name == name for row in rows):
                raise SessionNotFoundError(name, [row.name for row in rows])

    async def check_idle(self, name: str) -> None:
        """Raise `SessionBusyError` where a cell runs in a session that nobody serves here."""
        row = await self._store.call(lambda db: db.session_named(name))
        if row is None or self.get(name) is not None:
            return
        sent = [
            c for c in await self._store.call(lambda db: db.unfinished_cells(row.id)) if c.msg_id
        ]
        if sent:
            raise SessionBusyError(
                f"Cell {sent[-1].number} runs in session {name!r}.",
                hint="Wait for its end with sage_wait, or stop it with: sagebroker sessions interrupt "
                f"{name}",
            )

    async def read_cell(self, name: str, number: int) -> Cell:
        """See `Broker.read_cell`."""
        name = self.resolve(name)
        found = self._open.get(name)
        if found is not None:
            return await found.recall(number)
        row = await self._row(name)
        limits = self._config.session
        return await self._store.call(lambda db: recall(db, row.id, name, number, limits))

    async def record(self, name: str) -> SessionRecord:
        """What is stored about a session itself. Raises `SessionNotFoundError`, `StorageError`."""
        row = await self._row(self.resolve(name))
        events = await self._store.call(lambda db: db.events(row.id))
        told = [e.detail.get("software") for e in events if e.word == "kernel.ready"]
        kernels = dict.fromkeys(kernel for kernel in told if isinstance(kernel, str) and kernel)
        cells = await self._store.call(lambda db: db.cells(row.id))
        return SessionRecord(row=row, kernels=tuple(kernels), cells={c.number: c for c in cells})

    async def connection(self, name: str, *, is_remote: bool = False) -> dict[str, Any]:
        """What the connection file of a session's endpoint says, whichever process serves it.

        Args:
            name: The session's.
            is_remote: For a client on another machine.

        Raises:
            SessionNotFoundError: There is no such session.
            NoEndpointError: It has no such endpoint.
        """
        row = await self._row(self.resolve(name))
        read = partial(read_connection, self._state.folder(row.id), is_remote=is_remote)
        return await anyio.to_thread.run_sync(read)

    async def list_cells(self, name: str, most: int) -> list[Cell]:
        """The newest ``most`` cells of a session, in order; raises as `Broker.read_cell` does.

        Nothing is woken for that. Outputs are missing in those that are only stored.
        """
        name = self.resolve(name)
        row, found = await self._row(name), self._open.get(name)
        live = {} if found is None else found.remembered()
        limits = self._config.session
        return await self._store.call(lambda db: list_cells(db, row.id, live, most, limits))

    async def _row(self, name: str) -> SessionRow:
        row = await self._store.call(lambda db: db.session_named(name))
        if row is None:
            raise SessionNotFoundError(name, [r.name for r in await self.stored()])
        return row

    async def files(self, name: str) -> SessionFiles:
        """The files of a session, open or asleep; nothing is woken for that. Raises `BrokerError`."""
        real = self.resolve(name)
        found = self._open.get(real)
        if found is not None:
            return found.files()
        row = await self._row(real)
        limit = self._config.container.files_bytes
        return SessionFiles(self._state.folder(row.id), row, limit)

    async def find_or_make(
        self, name: str, *, on_end: OnEnd, hibernate: Hibernate, beside: bool
    ) -> Found:
        """The session of this name that an earlier broker has left, or a new one.

        Args:
            name: Checked already.
            on_end: What happens to a new one at its broker's end.
            hibernate: What happens to a new one when it is idle.
            beside: Make a new one with a name like it if another process serves that one.

        Raises:
            SessionInUseError: Another process serves it.
            BrokerError: See `Opener`.
        """
        real = self.resolve(name)
        try:
            found = await self._opener.find(real)
            return found or await self._opener.make(real, on_end=on_end, hibernate=hibernate)
        except SessionInUseError:
            if not beside:
                raise
        other = await self._opener.free_name(name)
        found = await self._opener.make(other, on_end=on_end, hibernate=hibernate)
        sentence = f"Another client uses the session {name!r}: here that name means {other!r}."
        return replace(found, row=replace(found.row, notices=(sentence,)))

    async def make_private(self, name: str) -> Found:
        """A new session with a name like ``name``, that is closed when its broker ends."""
        name = await self._opener.free_name(name)
        return await self._opener.make(name, on_end="close", hibernate="never")
