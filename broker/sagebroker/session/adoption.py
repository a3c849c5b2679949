"""Taking over, unasked, what brokers that were killed have left running."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.errors import BrokerError, StorageError
from sagebroker.session.launch import container_name

if TYPE_CHECKING:
    from sagebroker.session.directory import Directory
    from sagebroker.session.launch import Launcher
    from sagebroker.store.folders import StateFolder
    from sagebroker.store.records import SessionRow

_log = logging.getLogger(__name__)


async def adopt_left(
    directory: Directory,
    launcher: Launcher,
    state: StateFolder,
    *,
    open_session: Callable[[str], Awaitable[object]],
    most: int,
    scope: anyio.CancelScope,
) -> None:
    """Open every session that a killed broker has left awake.

    Those that are to stay wait for whoever wants them, and one place is left for the client's own.

    Args:
        directory: The sessions there are.
        launcher: Knows their containers.
        state: Knows who serves them.
        open_session: Opens one by its name.
        most: Sessions that may be open at once.
        scope: To end it by.
    """
    with scope:
        try:
            names = await _left_awake(directory, launcher, state)
        except BrokerError as error:
            _log.warning("No search for sessions that were left: %s", error)
            return
        for name in names:
            if len(directory) + 1 >= most:
                return
            try:
                await open_session(name)
            except Exception as error:  # noqa: BLE001 - one that is damaged must not end the others
                _log.warning("Session %s is not taken over yet: %s", name, error)


async def _left_awake(directory: Directory, launcher: Launcher, state: StateFolder) -> list[str]:
    """Names of the sessions whose kernels run, that nobody serves, and that are not to wait."""
    left = [row for row in await directory.stored() if row.on_end == "hibernate"]
    awake = [row for row in left if row.state != "hibernated"]
    containers = await launcher.containers() if awake else []
    running = {c.name for c in containers if c.is_running}
    return [
        row.name
        for row in awake
        if container_name(row.id) in running and not await _is_served(row, state)
    ]


async def _is_served(row: SessionRow, state: StateFolder) -> bool:
    """Whether somebody serves a session, or nobody can because of its lock."""
    try:
        return await anyio.to_thread.run_sync(state.folder(row.id).owner) is not None
    except StorageError as error:
        _log.warning("Session %s is not taken over: %s", row.name, error)
        return True
