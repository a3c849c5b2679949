"""`DeathWatch`: decides when one incarnation of a kernel has ended, and why.

Death is a verdict of the keeper or of the engine. What the sockets, the heartbeat and the engine's
events tell are suspicions, which make the watch look at once instead of at its next turn.
"""

from __future__ import annotations

import logging
import time

import anyio

from sagebroker.errors import ContainerError
from sagebroker.kernel.heartbeat import Heartbeat
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.keeper import KeeperStatus
from sagebroker.logs import event
from sagebroker.model import ExitCause, ExitReport
from sagebroker.racing import first

LOOK_INTERVAL_S = 0.5
"""Time between looks at the keeper's status; a suspicion makes one at once."""

SUSPICIOUS_LOOK_INTERVAL_S = 0.02
"""Time between looks while the kernel's sockets are closed: the keeper's word comes within 0.3 s."""

ENGINE_LOOK_INTERVAL_S = 10.0
"""Time between looks at the container when nothing raises a suspicion."""

ENGINE_RETRY_S = 2.0
"""Time between looks while the heartbeat is silent: a paused container stays that for long."""

_log = logging.getLogger(__name__)


class DeathWatch:
    """See the module. The owner starts `run` in a task group."""

    def __init__(
        self, host: KernelHost, generation: int, *, session: str, heartbeat_suspect_s: float
    ) -> None:
        self.generation = generation
        self.exit: ExitReport | None = None
        self.dead = anyio.Event()
        self._host = host
        self._session = session
        self._heartbeat_suspect_s = heartbeat_suspect_s
        self._status: KeeperStatus | None = None
        self._look_now = anyio.Event()
        self._is_disconnected = False
        self._is_suspect = False
        self._engine_looked_at = time.monotonic()

    @property
    def interrupts_passed_on(self) -> int:
        """SIGINTs the keeper has passed on so far, as of the last look."""
        return self._status.interrupts if self._status else 0

    async def first(self, wanted: anyio.Event) -> None:
        """Wait for an event or for death."""
        await first(wanted.wait, self.dead.wait)

    def suspect(self) -> None:
        """Something hints at death: look at once, at the engine too."""
        self._is_suspect = True
        self._look_now.set()

    def disconnected(self) -> None:
        """The kernel's sockets are closed."""
        self._is_disconnected = True
        self.suspect()

    def connected(self) -> None:
        """They are open again."""
        self._is_disconnected = False

    def die(self, cause: ExitCause, detail: str) -> None:
        """Count it as dead for a reason that only the broker knows."""
        self._end(ExitReport(cause=cause, generation=self.generation, detail=detail))

    async def look(self) -> None:
        """Read the keeper's status and draw the conclusion."""
        status = await self._host.status()
        if status is None or self.dead.is_set():
            return
        if status.generation >= self.generation:
            self._status = status
        ended = status.generation > self.generation or (
            status.generation == self.generation and status.state in ("crash_loop", "ended")
        )
        if ended:
            self._end(status.exit_of(self.generation, self._host.memory_limit_bytes))

    async def run(self, heartbeat: Heartbeat) -> None:
        """Look at the keeper regularly, and at the engine when that is silent; until death."""
        while not self.dead.is_set():
            interval_s = SUSPICIOUS_LOOK_INTERVAL_S if self._is_disconnected else LOOK_INTERVAL_S
            with anyio.move_on_after(interval_s):
                await self._look_now.wait()
            self._look_now = anyio.Event()
            await self.look()
            silent_s = heartbeat.silent_for(time.monotonic())
            if not self.dead.is_set() and self._should_ask_engine(silent_s, time.monotonic()):
                await self._ask_engine()

    def _should_ask_engine(self, silent_s: float, now: float) -> bool:
        since_asked = now - self._engine_looked_at
        if self._is_suspect:
            return True
        if self._is_disconnected:
            return since_asked >= LOOK_INTERVAL_S
        if silent_s >= self._heartbeat_suspect_s:
            return since_asked >= ENGINE_RETRY_S
        return since_asked >= ENGINE_LOOK_INTERVAL_S

    async def _ask_engine(self) -> None:
        self._engine_looked_at = time.monotonic()
        self._is_suspect = False
        try:
            state = await self._host.state()
        except ContainerError as error:
            _log.debug("The engine gave no verdict on session %s: %s", self._session, error)
            return
        if not state.running:
            await self.look()
            self.die(ExitCause.CONTAINER_GONE, state.detail)

    def _end(self, report: ExitReport) -> None:
        if self.dead.is_set():
            return
        self.exit = report
        self.dead.set()
        _log.info(
            "The kernel of session %s %s",
            self._session,
            report.sentence(),
            extra=event("kernel.died", session=self._session, cause=report.cause.value),
        )
