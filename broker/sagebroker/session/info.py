"""`SessionInfo`: what is told about a session."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from sagebroker.errors import BrokerError
from sagebroker.model import SessionState
from sagebroker.store.records import Hibernate, OnEnd

if TYPE_CHECKING:
    from sagebroker.container.runtime import ContainerRuntime
    from sagebroker.session.desk import Desk
    from sagebroker.store.records import SessionRow


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """A session at one moment."""

    name: str
    id: str
    state: SessionState
    on_end: OnEnd
    """What happens to it when its broker ends."""
    hibernate: Hibernate
    """What happens to it when it is idle."""
    cells: int
    """Cells numbered so far."""
    running: int | None
    """Number of the running cell."""
    running_s: float
    is_asking: bool
    """Whether the running cell waits for input."""
    queued: int
    idle_s: float
    """Seconds since the last cell or wish; 0 while a cell runs."""
    memory_bytes: int | None
    """What its container uses, where that was measured."""
    memory_limit_bytes: int
    created: datetime
    kernel_generation: int
    """Which incarnation of the container's kernel serves, from 1; 0 where none does."""
    kernelspec: str
    note: str
    """Why it has no kernel, where it has none."""

    @property
    def keep(self) -> bool:
        """Whether its kernel goes on when its broker ends."""
        return self.on_end == "stay"


def info_of(row: SessionRow, desk: Desk) -> SessionInfo:
    """What there is to know of a session without asking anybody."""
    running = desk.current
    return SessionInfo(
        name=row.name,
        id=row.id,
        state=desk.state,
        on_end=row.on_end,
        hibernate=row.hibernate,
        cells=desk.queue.next_number - 1,
        running=running.number if running else None,
        running_s=running.elapsed_s if running else 0.0,
        is_asking=running is not None and running.asks is not None,
        queued=len(desk.queue),
        idle_s=0.0 if running else time.monotonic() - desk.active_at,
        memory_bytes=None,
        memory_limit_bytes=row.memory_bytes,
        created=datetime.fromisoformat(row.created),
        kernel_generation=desk.kernel.generation if desk.kernel else 0,
        kernelspec=row.kernelspec,
        note=desk.note,
    )


async def measured(
    info: SessionInfo, container: str | None, runtime: ContainerRuntime
) -> SessionInfo:
    """``info`` with the memory in use, where the engine tells it."""
    if container is None:
        return info
    try:
        stats = await runtime.stats(container)
    except BrokerError:
        return info
    return replace(info, memory_bytes=stats.memory_bytes)
