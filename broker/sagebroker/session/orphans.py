"""What a dead broker left: its containers, sockets and folders, found and removed.

A session belongs to the process that holds the lock of its folder. What has no owner is removed,
except kept sessions. The brakes: only containers with this installation's label, only those older
than `GRACE_S`, at most `most_removals` in a pass, and nothing at all when the engine errs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Set
from functools import partial

import anyio.to_thread

from sagebroker.container.runtime import ContainerStatus
from sagebroker.container.spec import LABEL_SESSION
from sagebroker.errors import BrokerError, SessionGoneError, SessionInUseError
from sagebroker.logs import event
from sagebroker.session.launch import Launcher, container_name
from sagebroker.store.folders import SessionFolder, StateFolder

GRACE_S = 60.0
"""Age below which a container without a folder, or a folder without a record, may be one that is just
being made."""

_log = logging.getLogger(__name__)


def most_removals(total: int) -> int:
    """How many of ``total`` containers one pass may remove: a fault must not end everything."""
    return max(5, total // 5)


def choose_orphans(
    containers: list[ContainerStatus], folders: Set[str], now: float
) -> list[ContainerStatus]:
    """Containers of sessions without a folder that are old enough; ``now`` in wall-clock seconds."""
    found = [
        c
        for c in containers
        if _session(c) not in folders
        and c.name == container_name(_session(c))
        and now - c.created_at > GRACE_S
    ]
    return found[: most_removals(len(containers))]


async def remove_orphans(
    launcher: Launcher, state: StateFolder, own: Set[str] = frozenset()
) -> list[str]:
    """One pass; returns the ids of the sessions that were removed.

    Args:
        launcher: Removes containers.
        state: Where the sessions are.
        own: Ids of the sessions this process serves; they are let alone whatever the disk says.

    Raises:
        BrokerError: The engine does not answer or the sessions cannot be listed; nothing was removed.
            A session that cannot be removed is logged, and the pass goes on with the others.
    """
    containers = await launcher.containers()
    folders = await anyio.to_thread.run_sync(state.list)
    spared = {f.id for f in folders} | own
    steps: list[tuple[str, Callable[[], Awaitable[bool]]]] = [
        (_session(orphan), partial(_remove_container, launcher, orphan))
        for orphan in choose_orphans(containers, spared, _wall_clock())
    ]
    steps += [(f.id, partial(_remove_session, launcher, f)) for f in folders if f.id not in own]
    removed: list[str] = []
    failures = 0
    for session_id, step in steps:
        if max(len(removed), failures) >= most_removals(len(containers)):
            break
        try:
            if await step():
                removed.append(session_id)
                _log.warning(
                    "Session %s had no owner any more and was removed",
                    session_id,
                    extra=event("orphan.removed", session=session_id),
                )
        except (BrokerError, OSError) as error:
            failures += 1
            _log.warning("What is left of session %s is not removed yet: %s", session_id, error)
    return removed


def _session(container: ContainerStatus) -> str:
    return container.labels.get(LABEL_SESSION, "")


async def _remove_container(launcher: Launcher, orphan: ContainerStatus) -> bool:
    await launcher.discard(_session(orphan))
    return True


async def _remove_session(launcher: Launcher, folder: SessionFolder) -> bool:
    """Remove an unlocked session that was not to stay; whether it was one."""
    try:
        if not await anyio.to_thread.run_sync(_take, folder, _wall_clock()):
            return False
        await launcher.discard(folder.id)
        await anyio.to_thread.run_sync(folder.delete)
        return True
    finally:
        folder.unlock()


def _take(folder: SessionFolder, now: float) -> bool:
    """Lock a session that nobody serves and nobody wants; False where it is not one."""
    if not _is_unwanted(folder, now) or folder.owner() is not None:
        return False
    try:
        folder.lock(sign=False)
    except (SessionInUseError, SessionGoneError):
        return False
    # Its owner may have written and left between the two looks.
    return _is_unwanted(folder, now)


def _is_unwanted(folder: SessionFolder, now: float) -> bool:
    """Whether a session may go that has no owner.

    A record that cannot be read is somebody's to look at. One that was never written, with nothing in
    the folder, is a process that was killed over it.
    """
    record = folder.read()
    if record is not None:
        return not record.keep
    blank_since = folder.blank_since()
    return blank_since is not None and now - blank_since > GRACE_S


def _wall_clock() -> float:
    return time.time()  # noqa: TID251 - compared with the engine's stamps
