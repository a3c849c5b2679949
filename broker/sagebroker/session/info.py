"""`SessionInfo`: what is told about a session."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sagebroker.model import SessionState
from sagebroker.store.records import Hibernate, OnEnd


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
