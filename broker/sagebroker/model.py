"""Identifiers, states and records shared by all layers; no I/O."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

SESSION_ID_LENGTH = 10
"""Characters of a session id: short because it stands in socket paths, 50 bits against guessing."""

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def utcnow() -> datetime:
    """Now, as an aware UTC stamp."""
    return datetime.now(UTC)


def wall_clock(monotonic_s: float | None) -> float | None:
    """Wall-clock seconds of a monotonic second of this process."""
    if monotonic_s is None:
        return None
    return utcnow().timestamp() - (time.monotonic() - monotonic_s)


def monotonic(wall_clock_s: float | None) -> float | None:
    """This process's monotonic second of a wall-clock second."""
    if wall_clock_s is None:
        return None
    return time.monotonic() - (utcnow().timestamp() - wall_clock_s)


def new_session_id() -> str:
    """A fresh random session id, `SESSION_ID_LENGTH` characters of ``[a-z2-7]``."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(SESSION_ID_LENGTH))


class SessionState(StrEnum):
    """Where a session stands."""

    STARTING = "starting"  # container or kernel on its way
    READY = "ready"  # a kernel waits for cells
    BUSY = "busy"  # a cell runs
    HIBERNATED = "hibernated"  # saved, without a container; its next cell wakes it
    FAILED = "failed"  # its kernel could not be brought back; sage_restart tries again
    CLOSED = "closed"  # gone for good


class CellStatus(StrEnum):
    """Where a cell stands."""

    QUEUED = "queued"  # waits for earlier cells of its session
    RUNNING = "running"  # sent to the kernel
    OK = "ok"  # ended well
    ERROR = "error"  # raised an exception
    INTERRUPTED = "interrupted"  # stopped on request, by its time limit or before it ran
    DIED = "died"  # the kernel ended under it

    @property
    def is_final(self) -> bool:
        """Whether the cell will not change any more."""
        return self not in (CellStatus.QUEUED, CellStatus.RUNNING)


class ExitCause(StrEnum):
    """Why a kernel ended."""

    OUT_OF_MEMORY = "out_of_memory"  # the container's memory limit
    SIGNAL = "signal"  # a signal, such as SIGSEGV or SIGKILL
    EXIT = "exit"  # the process ended by itself with an exit code
    REPLACED = "replaced"  # killed by the keeper on request: the ladder or a restart
    CONTAINER_GONE = "container_gone"  # removed or stopped behind the broker's back
    HOSTILE = "hostile"  # it broke the protocol or flooded the broker and was ended
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """How one incarnation of a kernel ended."""

    cause: ExitCause
    generation: int
    """Which incarnation of the session's kernel, from 1."""
    signal: int | None = None
    code: int | None = None
    memory_limit_bytes: int | None = None
    detail: str = ""

    def sentence(self) -> str:
        """The cause as an English clause, for instance ``ran out of memory (limit 2.0 GiB)``."""
        from signal import Signals

        if self.cause is ExitCause.OUT_OF_MEMORY:
            limit = self.memory_limit_bytes
            tail = f" (limit {limit / 2**30:.3g} GiB)" if limit else ""
            return f"ran out of memory{tail}"
        if self.cause is ExitCause.SIGNAL:
            try:
                name = Signals(self.signal or 0).name
            except ValueError:
                name = f"signal {self.signal}"
            return f"was ended by {name}"
        if self.cause is ExitCause.EXIT:
            return f"exited by itself with code {self.code}"
        if self.cause is ExitCause.REPLACED:
            return "was replaced on request"
        if self.cause is ExitCause.CONTAINER_GONE:
            return "disappeared with its container" + (f" ({self.detail})" if self.detail else "")
        if self.cause is ExitCause.HOSTILE:
            return f"broke the protocol and was ended ({self.detail})"
        return "ended for an unknown reason" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, kw_only=True)
class CellFailure:
    """An exception of the user's code, as the kernel reported it."""

    ename: str
    evalue: str
    traceback: tuple[str, ...] = ()
    """Frames as the kernel formatted them; may contain ANSI colours."""


@dataclass(frozen=True, kw_only=True)
class InputRequest:
    """What a cell asks of whoever runs it (``input()``)."""

    prompt: str
    is_password: bool
    """It must not be shown, nor kept."""


@dataclass(kw_only=True)
class RichOutput:
    """One displayed object or result."""

    data: dict[str, Any]
    """MIME type to content: text as ``str``, images as base64 text, JSON types as parsed."""
    metadata: dict[str, Any] = field(default_factory=dict)
    is_result: bool = False
    """The cell's value (``execute_result``) rather than something shown on the way."""
    display_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class LadderOutcome:
    """What an interrupt did."""

    rung: str
    """``sigint``, ``new_kernel``, ``new_container`` or ``undelivered``."""
    elapsed_ms: float
    variables_kept: bool
