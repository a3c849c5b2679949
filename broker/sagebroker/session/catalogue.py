"""`Catalogue`: every session of this installation, whichever process serves it.

For the command line, which runs beside the brokers of MCP clients. It changes only sessions that no
process serves; to the others it can send signals, as the engine passes those to anybody's kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread

from sagebroker.container.runtime import ContainerRuntime, ContainerStatus
from sagebroker.errors import (
    ContainerConflictError,
    ContainerNotFoundError,
    KernelStartError,
    SessionGoneError,
    SessionInUseError,
    SessionNotFoundError,
)
from sagebroker.session.launch import Launcher, container_name
from sagebroker.store.folders import SessionFolder, SessionRecord, StateFolder

SWEEP_LIMIT_S = 30.0
"""Time another process may take to remove a session that nobody serves: its container, then its files."""


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One session as seen from outside."""

    record: SessionRecord
    folder: SessionFolder
    owner: int | None
    """The process that serves it."""
    container: ContainerStatus | None

    @property
    def state(self) -> str:
        """``served``, ``waiting`` (its kernel runs, nobody is connected) or ``no kernel``."""
        if self.owner is not None:
            return "served"
        return (
            "waiting" if self.container is not None and self.container.is_running else "no kernel"
        )


class Catalogue:
    """See the module."""

    def __init__(self, launcher: Launcher, state: StateFolder, runtime: ContainerRuntime) -> None:
        self._launcher = launcher
        self._state = state
        self._runtime = runtime

    async def list(self) -> list[CatalogueEntry]:
        """Every session, by name."""
        containers = {c.name: c for c in await self._launcher.containers()}
        entries = []
        for folder in await anyio.to_thread.run_sync(self._state.list):
            record = await anyio.to_thread.run_sync(folder.read)
            if record is not None:
                entries.append(
                    CatalogueEntry(
                        record=record,
                        folder=folder,
                        owner=await anyio.to_thread.run_sync(folder.owner),
                        container=containers.get(container_name(record.id)),
                    )
                )
        return sorted(entries, key=lambda e: (e.record.name, e.record.id))

    async def find(self, name: str) -> CatalogueEntry:
        """The session with this name or id.

        Raises:
            SessionNotFoundError: There is none, or several have the name and none the id.
        """
        entries = await self.list()
        by_id = [e for e in entries if e.record.id == name]
        by_name = [e for e in entries if e.record.name == name]
        kept = [e for e in by_name if e.record.keep]
        for choice in (by_id, kept, by_name):
            if len(choice) == 1:
                return choice[0]
        raise SessionNotFoundError(name, [f"{e.record.name} ({e.record.id})" for e in entries])

    async def interrupt(self, entry: CatalogueEntry) -> None:
        """One SIGINT to the session's kernel."""
        await self._signal(entry, "SIGINT")

    async def restart(self, entry: CatalogueEntry) -> None:
        """Have the keeper put a new kernel, without variables, in place of the session's."""
        folder = self._launcher.kernel_folder(entry.record.id)
        await anyio.to_thread.run_sync(partial(folder.ask_restore, "none"))
        await self._signal(entry, "SIGUSR1")

    async def close(self, entry: CatalogueEntry) -> None:
        """Remove a session with its container and files; harmless when that has been done meanwhile.

        Raises:
            SessionInUseError: A process serves it.
            BrokerError: It could not be removed, or not whole.
        """
        if entry.owner is not None:
            raise SessionInUseError(
                f"The session {entry.record.name!r} is served by process {entry.owner}.",
                hint="Close it there with sage_close, or end that process.",
            )
        try:
            await _lock(entry.folder)
            await self._launcher.discard(entry.record.id)
            await anyio.to_thread.run_sync(entry.folder.delete)
        except SessionGoneError:
            # Somebody's search for orphans was first, perhaps our own.
            return
        finally:
            entry.folder.unlock()

    async def _signal(self, entry: CatalogueEntry, signal: str) -> None:
        try:
            await self._runtime.signal(container_name(entry.record.id), signal)
        except (ContainerNotFoundError, ContainerConflictError) as error:
            raise KernelStartError(
                f"The session {entry.record.name!r} has no running kernel.",
                hint=f"sagebroker run -s {entry.record.name} starts one.",
            ) from error


async def _lock(folder: SessionFolder) -> None:
    """Take the lock of a session; who holds it without having signed it is removing the session."""
    with anyio.move_on_after(SWEEP_LIMIT_S):
        while True:
            try:
                await anyio.to_thread.run_sync(partial(folder.lock, sign=False))
            except SessionInUseError:
                if await anyio.to_thread.run_sync(folder.owner) is not None:
                    raise
            else:
                return
    await anyio.to_thread.run_sync(partial(folder.lock, sign=False))
