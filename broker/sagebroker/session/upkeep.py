"""`Upkeep`: what a broker does for its sessions, and for what others have left, while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.errors import BrokerError
from sagebroker.model import SessionState

if TYPE_CHECKING:
    from sagebroker.config import HibernationConfig
    from sagebroker.container.runtime import ContainerRuntime
    from sagebroker.session.launch import Launcher
    from sagebroker.session.orphans import Sweep
    from sagebroker.session.session import Session

LEASE_INTERVAL_S = 20.0
"""Time between signs of life to the keepers; thirty fit into the shortest sensible lease."""

SWEEP_INTERVAL_S = 60.0
"""Time between searches for containers and folders that nobody owns any more."""

IDLE_LOOKS = 10
"""Looks for idle sessions within the time after which they sleep."""

MAX_IDLE_LOOK_S = 30.0

EVENTS_OF_DEATH = frozenset({"die", "destroy", "oom", "stop", "resync"})

_log = logging.getLogger(__name__)


class Upkeep:
    """Each method runs until it is cancelled.

    Args:
        sessions: The sessions that this process serves.
    """

    def __init__(
        self, sessions: Callable[[], list[Session]], launcher: Launcher, sweep: Sweep
    ) -> None:
        self._sessions = sessions
        self._launcher = launcher
        self._sweep = sweep

    async def renew_leases(self) -> None:
        """Tell the keepers that a broker is there."""
        while True:
            for session in self._sessions():
                folder = self._launcher.kernel_folder(session.id)
                await anyio.to_thread.run_sync(folder.touch_lease)
            await anyio.sleep(LEASE_INTERVAL_S)

    async def remove_orphans(self) -> None:
        """Remove what dead processes of this installation left."""
        while True:
            try:
                await self._sweep.run({s.id for s in self._sessions()})
            except BrokerError as error:
                _log.warning("No search for orphans: %s", error)
            await anyio.sleep(SWEEP_INTERVAL_S)

    async def follow_events(self, runtime: ContainerRuntime) -> None:
        """Make sessions look at once when the engine tells of their containers."""
        async with runtime.events(self._launcher.own_labels) as events:
            async for happened in events:
                if happened.action not in EVENTS_OF_DEATH:
                    continue
                for session in self._sessions():
                    if happened.action == "resync" or session.container == happened.container_id:
                        session.suspect()

    async def let_sleep(self, limits: HibernationConfig) -> None:
        """Let sessions sleep that nobody has used for long.

        One that cannot be saved whole is asked again only after it was used.
        """
        refused: dict[str, float] = {}
        while True:
            await anyio.sleep(min(limits.idle_s / IDLE_LOOKS, MAX_IDLE_LOOK_S))
            for session in self._sessions():
                info = session.info()
                used_at = time.monotonic() - info.idle_s
                if (
                    info.hibernate == "never"
                    or info.state is not SessionState.READY
                    or info.idle_s < limits.idle_s
                    or abs(refused.get(session.id, -1.0) - used_at) < 1.0
                ):
                    continue
                hindrance = await session.hibernate(force=info.hibernate == "always")
                if not session.is_ending:
                    refused[session.id] = used_at
                    _log.info("Session %s stays awake: %s", session.name, hindrance)
