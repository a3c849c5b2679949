"""What a dead broker left: its containers, sockets and folders, found and removed.

A session belongs to the process that holds the lock of its folder. Of one without an owner everything
goes if it was to go with its broker; of the others only a container that has ended, or that a
sleeping session does not need. The brakes: only containers with this installation's label, only those
older than `GRACE_S`, at most `most_removals` in a pass, and nothing at all when the engine or the
store errs. What the store does not know and is not empty is never removed: a store may be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Set
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.container.spec import LABEL_SESSION
from sagebroker.errors import BrokerError, SessionGoneError, SessionInUseError
from sagebroker.logs import event
from sagebroker.session.launch import container_name
from sagebroker.session.opener import remove

if TYPE_CHECKING:
    from sagebroker.container.runtime import ContainerStatus
    from sagebroker.session.launch import Launcher
    from sagebroker.store.folders import SessionFolder, StateFolder
    from sagebroker.store.records import SessionRow
    from sagebroker.store.store import Store

GRACE_S = 60.0
"""Age below which a container without a folder, or a folder that the store does not know, may be one
that is just being made."""

ENDED = frozenset({"exited", "created", "dead"})
"""States of containers that run nothing, and will not by themselves."""

_log = logging.getLogger(__name__)


def most_removals(total: int) -> int:
    """How many of ``total`` containers one pass may remove: a fault must not end everything."""
    return max(5, total // 5)


def choose_orphans(
    containers: list[ContainerStatus], known: Set[str], now: float
) -> list[ContainerStatus]:
    """Containers of unknown sessions that are old enough; ``now`` in wall-clock seconds."""
    found = [
        c
        for c in containers
        if _session(c) not in known
        and c.name == container_name(_session(c))
        and now - c.created_at > GRACE_S
    ]
    return found[: most_removals(len(containers))]


class Sweep:
    """Looks for orphans.

    Args:
        launcher: Removes containers.
        state: Where the sessions' folders are.
        store: What is known of them.
    """

    def __init__(self, launcher: Launcher, state: StateFolder, store: Store) -> None:
        self._launcher = launcher
        self._state = state
        self._store = store

    async def run(self, own: Set[str] = frozenset()) -> list[str]:
        """One pass; returns the ids of the sessions of which something was removed.

        Args:
            own: Ids of the sessions this process serves; they are let alone whatever the disk says.

        Raises:
            BrokerError: The engine does not answer or the sessions cannot be listed; nothing was
                removed. A session that cannot be removed is logged, and the pass goes on.
        """
        containers = await self._launcher.containers()
        folders = await anyio.to_thread.run_sync(self._state.list)
        rows = {row.id: row for row in await self._store.call(lambda db: db.sessions())}
        known = {f.id for f in folders} | set(rows) | own
        steps: list[tuple[str, Callable[[], Awaitable[bool]]]] = [
            (_session(orphan), partial(self._remove_container, _session(orphan)))
            for orphan in choose_orphans(containers, known, _wall_clock())
        ]
        by_session = {_session(c): c for c in containers}
        steps += [
            (f.id, partial(self._tidy, f, by_session.get(f.id))) for f in folders if f.id not in own
        ]
        steps += [
            (row.id, partial(self._forget, row))
            for row in rows.values()
            if row.on_end == "close" and row.id not in own | {f.id for f in folders}
        ]
        removed: list[str] = []
        failures = 0
        for session_id, step in steps:
            if max(len(removed), failures) >= most_removals(len(containers)):
                break
            try:
                if await step():
                    removed.append(session_id)
                    _log.warning(
                        "What session %s had left without an owner was removed",
                        session_id,
                        extra=event("orphan.removed", session=session_id),
                    )
            except (BrokerError, OSError) as error:
                failures += 1
                _log.warning("What is left of session %s is not removed yet: %s", session_id, error)
        return removed

    async def _remove_container(self, session_id: str) -> bool:
        await self._launcher.erase(session_id)
        return True

    async def _tidy(self, folder: SessionFolder, container: ContainerStatus | None) -> bool:
        """Remove what a session without an owner does not need; whether there was any."""
        try:
            if not await anyio.to_thread.run_sync(_take, folder):
                return False
            row = await self._store.call(lambda db: db.session(folder.id))
            is_blank = await anyio.to_thread.run_sync(_is_blank, folder, _wall_clock())
            if row is None:
                if not is_blank and (container is None or container.state not in ENDED):
                    return False
                await self._launcher.erase(folder.id)
                if is_blank:
                    await anyio.to_thread.run_sync(folder.delete)
                return True
            if row.on_end == "close" or (row.state == "reserved" and is_blank):
                # The latter: its maker was killed before anybody could use it.
                await remove(row, folder, self._launcher, self._store)
                return True
            return await self._remove_unneeded(row, container)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(folder.unlock)

    async def _forget(self, row: SessionRow) -> bool:
        """Forget a session whose removal was broken off after its folder had gone."""
        if await anyio.to_thread.run_sync(self._state.folder(row.id).path.exists):
            # It was made after the folders were listed.
            return False
        await self._launcher.erase(row.id)
        await self._store.call(lambda db: db.remove_session(row.id))
        return True

    async def _remove_unneeded(self, row: SessionRow, container: ContainerStatus | None) -> bool:
        """Remove the container of a session that can go on without it, or what is left of one."""
        if container is None:
            # The engine's answer to its removal was lost, perhaps: then its sockets are there still.
            sockets = anyio.Path(self._launcher.kernel_folder(row.id).path)
            if row.state != "hibernated" or not await sockets.exists():
                return False
        elif container.state not in ENDED and row.state != "hibernated":
            return False
        elif container not in await self._launcher.containers():
            # Somebody has served the session since they were listed, and left a new one.
            return False
        if any(c.msg_id for c in await self._store.call(lambda db: db.unfinished_cells(row.id))):
            # What became of its cell stands in its journal, whose key lies beside the sockets.
            return False
        await self._launcher.discard(row.id)
        return True


def _session(container: ContainerStatus) -> str:
    return container.labels.get(LABEL_SESSION, "")


def _take(folder: SessionFolder) -> bool:
    """Lock a session that nobody serves; False where somebody does, or it is gone."""
    if folder.owner() is not None:
        return False
    try:
        folder.lock(sign=False)
    except (SessionInUseError, SessionGoneError):
        return False
    return True


def _is_blank(folder: SessionFolder, now: float) -> bool:
    """Whether a process was killed while it made this folder, rather than is just making it."""
    blank_since = folder.blank_since()
    return blank_since is not None and now - blank_since > GRACE_S


def _wall_clock() -> float:
    return time.time()  # noqa: TID251 - compared with the engine's stamps
