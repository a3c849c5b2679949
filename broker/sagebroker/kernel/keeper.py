"""What is said inside the container: the keeper's status and the kernel's restore, as hostile input.

User code in the container can write these files; what it forges can only mislead its own session.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagebroker.kernel.foreign_files import parse_object, read_bounded
from sagebroker.model import ExitCause, ExitReport

STATUS_FILE = "status.json"
RESTORE_FILE = "restore.json"
REPORT_LIMIT_BYTES = 65_536
"""A status has about 400 bytes, a restore's report 100 for each missing variable."""
MISSING_LIMIT = 50
"""Missing variables told by name; a report of more is cut."""

GENERATION_LIMIT = 2**53
"""No keeper counts so far; the store holds no number beyond 64 bits."""

_SIGKILL = 9


@dataclass(frozen=True, kw_only=True)
class KeeperStatus:
    """The keeper's last word; see `sagebroker.inside.keeper`."""

    state: str
    generation: int
    interrupts: int
    replacements: int
    oom_kills: int
    last_exit: dict[str, Any] | None
    note: str

    def exit_of(self, generation: int, memory_limit_bytes: int) -> ExitReport:
        """How the kernel's incarnation ``generation`` ended, as far as is known."""
        if self.state == "ended":
            # Its life or its lease is over, or somebody stopped it: there is no next kernel.
            return ExitReport(
                cause=ExitCause.CONTAINER_GONE, generation=generation, detail=self.note
            )
        last = self.last_exit or {}
        if last.get("generation") != generation:
            return ExitReport(cause=ExitCause.UNKNOWN, generation=generation, detail=self.note)
        signal, code = _integer(last.get("signal")), _integer(last.get("code"))
        if last.get("requested"):
            cause = ExitCause.REPLACED
        elif last.get("oom"):
            cause = ExitCause.OUT_OF_MEMORY
        elif signal is not None:
            cause = ExitCause.SIGNAL
        elif code is not None:
            cause = ExitCause.EXIT
        else:
            cause = ExitCause.UNKNOWN
        return ExitReport(
            cause=cause,
            generation=generation,
            signal=signal,
            code=code,
            memory_limit_bytes=memory_limit_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class RestoreReport:
    """What a new kernel brought back of its session's variables."""

    generation: int
    number: int | None
    """The checkpoint's number; None where none could be used."""
    cell: int
    """The kernel's prompt number after which it was saved."""
    age_s: float
    """Seconds between the saving and the restoring."""
    names: int
    """Variables that are back."""
    missing: tuple[tuple[str, str], ...]
    """Name and reason of each variable that could not be saved or restored."""
    error: str


def read_restore(folder: Path) -> RestoreReport | None:
    """The last restore's report in ``folder``, or None where there is none that can be read."""
    values = _read_json(folder / RESTORE_FILE)
    try:
        if values is None:
            return None
        missing = [(str(m["name"])[:80], str(m["reason"])[:200]) for m in values["missing"]]
        number = _integer(values.get("number"))
        return RestoreReport(
            generation=int(values["generation"]),
            number=number,
            cell=int(values.get("cell") or 0),
            age_s=max(0.0, float(values.get("age_s") or 0.0)),
            names=int(values["names"]),
            missing=tuple(missing[:MISSING_LIMIT]),
            error=str(values.get("error") or "")[:500],
        )
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_status(folder: Path) -> KeeperStatus | None:
    """The status in ``folder``, or None where there is none that can be read. Blocks briefly."""
    values = _read_json(folder / STATUS_FILE)
    try:
        if values is None:
            return None
        last_exit = values.get("last_exit")
        return KeeperStatus(
            state=str(values["state"]),
            generation=_generation(values["generation"]),
            interrupts=int(values["interrupts"]),
            replacements=int(values["replacements"]),
            oom_kills=int(values.get("oom_kills") or 0),
            last_exit=last_exit if isinstance(last_exit, dict) else None,
            note=str(values.get("note") or "")[:500],
        )
    except (ArithmeticError, ValueError, TypeError, KeyError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    return parse_object(read_bounded(path, REPORT_LIMIT_BYTES))


def _generation(value: Any) -> int:
    generation = int(value)
    if not 0 <= generation < GENERATION_LIMIT:
        raise ValueError("no number that a keeper counts to")
    return generation


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
