"""`SessionRow`, `CellRow`, `OutputRow` and `EventRow`: what the store keeps, as values.

A row says what is stored, not what is so: a session that is ``busy`` here may have lost its kernel
with its broker. Times are wall-clock seconds since 1970, because they outlive the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sagebroker.model import CellStatus

OnEnd = Literal["close", "hibernate", "stay"]
"""What happens to a session when its broker ends."""

Hibernate = Literal["auto", "never", "always"]
"""What happens to a session when it is idle."""

StoredState = Literal[
    "reserved", "starting", "ready", "busy", "stopping", "hibernated", "lost", "failed"
]
"""Where a session stood when its row was written."""


@dataclass(frozen=True, kw_only=True)
class SessionRow:
    """What is needed to find a session again, and to serve it as before."""

    id: str
    name: str
    """Unique among the sessions of one store."""
    on_end: OnEnd
    hibernate: Hibernate
    created: str
    """ISO 8601, UTC."""
    uid: int
    """User the container runs as."""
    wire_id: str
    """ZeroMQ identity; a successor with the same one receives what was meant for its predecessor."""
    kernelspec: str
    image: str
    memory_bytes: int
    state: StoredState
    revision: int = 0
    """Changes since it was added; who changes the row says which revision was read."""
    kernel_generation: int = 0
    """The last incarnation of its kernel that a broker served; 0 where none was."""
    notices: tuple[str, ...] = ()
    """Sentences that nobody has been told yet."""
    active_at: float = 0.0
    """When it was last used, wall-clock seconds."""
    note: str = ""
    """Why it is in its state, a sentence for people."""


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """One piece of code and what became of it; its outputs are rows of their own."""

    session: str
    """The session's id."""
    number: int
    """Counts from 1 in its session."""
    code: str
    author: str
    """Who sent it: ``mcp``, ``cli``."""
    request_id: str = ""
    """The client's own name for the request, by which a repeated one is recognised."""
    time_limit_s: float
    status: CellStatus
    msg_id: str = ""
    """Of the execute request; stored before it is sent, so a cell with one may have been executed."""
    kernel_generation: int = 0
    """The incarnation of the kernel it was sent to."""
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    execution_count: int | None = None
    """The kernel's own prompt number."""
    stop_reason: str = ""
    failure: dict[str, Any] | None = None
    """A `model.CellFailure`."""
    ladder: dict[str, Any] | None = None
    """A `model.LadderOutcome`."""
    exit: dict[str, Any] | None = None
    """A `model.ExitReport`."""
    notices: tuple[str, ...] = ()
    """Sentences its answer must carry."""
    payload_text: str = ""
    """What the kernel's pager would show."""
    reply_lost: bool = False
    output_lost: bool = False
    told: bool = False
    """A caller has been given its end."""
    output_count: int = 0
    """Outputs stored of it. The store counts; what a caller writes here is not stored."""
    output_bytes: int = 0
    """Size of those as JSON. The store counts here, too."""


@dataclass(frozen=True, kw_only=True)
class OutputRow:
    """One message of a cell on iopub."""

    seq: int
    """Its place among the cell's outputs, from 1."""
    msg_type: str
    """``stream``, ``display_data``, ``execute_result``, ``update_display_data``, ``clear_output``, ``error``."""
    content: dict[str, Any]
    """The message's content as Jupyter defines it."""


@dataclass(frozen=True, kw_only=True)
class EventRow:
    """Something that happened, for whoever asks later why."""

    at: float
    """Wall-clock seconds."""
    session: str
    """The session's id; empty where it is about none."""
    word: str
    """One of the event words."""
    detail: dict[str, Any]
