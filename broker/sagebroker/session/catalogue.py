"""`Catalogue`: every session of this installation, whichever process serves it.

For the command line, which runs beside the brokers of MCP clients. It changes only sessions that no
process serves; to the others it can send signals, as the engine passes those to anybody's kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.errors import (
    ContainerConflictError,
    ContainerNotFoundError,
    KernelStartError,
    SessionGoneError,
    SessionInUseError,
    SessionNotFoundError,
    StorageError,
)
from sagebroker.kernel.checkpoints import CheckpointInfo, read_checkpoints
from sagebroker.session.launch import container_name
from sagebroker.session.opener import remove, take_lock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagebroker.container.runtime import ContainerRuntime, ContainerStatus
    from sagebroker.session.launch import Launcher
    from sagebroker.store.folders import SessionFolder, StateFolder
    from sagebroker.store.records import EventRow, SessionRow
    from sagebroker.store.store import Store


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One session as seen from outside."""

    row: SessionRow
    folder: SessionFolder
    owner: int | None
    """The process that serves it."""
    container: ContainerStatus | None

    @property
    def state(self) -> str:
        """``served``, ``waiting`` (its kernel runs, nobody is connected), ``asleep`` or ``no kernel``."""
        if self.owner is not None:
            return "served"
        if self.row.state == "hibernated":
            return "asleep"
        return (
            "waiting" if self.container is not None and self.container.is_running else "no kernel"
        )


class Catalogue:
    """See the module."""

    def __init__(
        self, launcher: Launcher, state: StateFolder, store: Store, runtime: ContainerRuntime
    ) -> None:
        self._launcher = launcher
        self._state = state
        self._store = store
        self._runtime = runtime

    async def list(self) -> list[CatalogueEntry]:
        """Every session, by name."""
        containers = {c.name: c for c in await self._launcher.containers()}
        entries = []
        for row in await self._store.call(lambda db: db.sessions()):
            folder = self._state.folder(row.id)
            entries.append(
                CatalogueEntry(
                    row=row,
                    folder=folder,
                    owner=await anyio.to_thread.run_sync(_owner, folder),
                    container=containers.get(container_name(row.id)),
                )
            )
        return sorted(entries, key=lambda e: e.row.name)

    async def find(self, name: str) -> CatalogueEntry:
        """The session with this name or id. Raises `SessionNotFoundError`."""
        entries = await self.list()
        for entry in entries:
            if name in (entry.row.id, entry.row.name):
                return entry
        raise SessionNotFoundError(name, [entry.row.name for entry in entries])

    async def interrupt(self, entry: CatalogueEntry) -> None:
        """One SIGINT to the session's kernel."""
        await self._signal(entry, "SIGINT")

    async def restart(self, entry: CatalogueEntry) -> None:
        """Have the keeper put a new kernel, without variables, in place of the session's."""
        folder = self._launcher.kernel_folder(entry.row.id)
        await anyio.to_thread.run_sync(partial(folder.ask_restore, "none"))
        await self._signal(entry, "SIGUSR1")

    async def checkpoints(self, entry: CatalogueEntry) -> Sequence[CheckpointInfo]:
        """The session's saved namespaces, the newest last."""
        return await anyio.to_thread.run_sync(partial(read_checkpoints, entry.folder.checkpoints))

    async def events(self, entry: CatalogueEntry) -> Sequence[EventRow]:
        """What has happened to the session, the newest last."""
        return await self._store.call(lambda db: db.events(entry.row.id))

    async def close(self, entry: CatalogueEntry) -> None:
        """Remove a session with its container and files; harmless when that has been done meanwhile.

        Raises:
            SessionInUseError: A process serves it.
            BrokerError: It could not be removed, or not whole.
        """
        if entry.owner is not None:
            raise SessionInUseError(
                f"The session {entry.row.name!r} is served by process {entry.owner}.",
                hint="Close it there with sage_close, or end that process.",
            )
        try:
            await take_lock(entry.folder, sign=False)
        except SessionGoneError:
            # Somebody's search for orphans was first, perhaps our own; or its folder was lost.
            await self._launcher.discard(entry.row.id)
            await self._store.call(lambda db: db.remove_session(entry.row.id))
            return
        try:
            await remove(entry.row, entry.folder, self._launcher, self._store)
        finally:
            # Cancelled, too: else nobody could use what is left while this process runs.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(entry.folder.unlock)

    async def _signal(self, entry: CatalogueEntry, signal: str) -> None:
        try:
            await self._runtime.signal(container_name(entry.row.id), signal)
        except (ContainerNotFoundError, ContainerConflictError) as error:
            raise KernelStartError(
                f"The session {entry.row.name!r} has no running kernel.",
                hint=f"sagebroker run -s {entry.row.name} starts one.",
            ) from error


def _owner(folder: SessionFolder) -> int | None:
    """The process that serves a session. Blocks."""
    try:
        return folder.owner()
    except StorageError:
        # One damaged lock hides no other session; who wants to use this one is told.
        return None
