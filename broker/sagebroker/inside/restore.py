"""Reads a checkpoint, mostly the newest, into a kernel that starts.

A restore never keeps a kernel from starting: what cannot be read is named and left out. One that
ends the process is noted before it can, so that the next start leaves out the variable, and in the
end the checkpoint, that did it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import pickle
import signal
import sys
import time
import types
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import reviving, settling, surroundings
from .alarm import Alarm
from .experience import DEADLY, Experience
from .recording import PART, VARIABLE
from .shelf import BUFFERS, DATA, PROGRESS, RESTORING, DamagedError, Shelf, write_json
from .unpickling import read_around, read_strictly
from .wording import TooSlowError, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .settings import CheckpointConfig
    from .unpickling import Record

Order = Literal["newest", "none"] | int
"""The newest checkpoint that can be used, none at all, or the one with that number and no other."""

VARIABLE_SHARE = 0.25
"""Of the time limit, for one variable."""

MISSING_LIMIT = 100
"""Most variables named in the report: the broker reads 64 KiB of it."""


@dataclass
class Report:
    """What came of a restore; the fields are those of the report file.

    Attributes:
        generation: Which incarnation of the kernel it was.
        number: Of the checkpoint; None where none was restored.
        cell: Count of the last cell whose effect is in it.
        saved_at: Wall time at which it was saved, in seconds.
        age_s: Seconds between the saving and the restoring.
        names: How many variables are there again.
        missing: What is not, each with name, type and reason; at most `MISSING_LIMIT` of them.
        missing_total: How many there are.
        seconds: What it took.
        error: Why not the one that was wanted; empty if there was no trouble.
        newest: Number of the newest checkpoint, wanted or not; None where there was none.
    """

    generation: int
    number: int | None = None
    cell: int | None = None
    saved_at: float | None = None
    age_s: float = 0.0
    names: int = 0
    missing: list[dict[str, str]] = field(default_factory=list)
    missing_total: int = 0
    seconds: float = 0.0
    error: str = ""
    newest: int | None = None

    @property
    def leaves_newest(self) -> bool:
        """Whether the kernel begins with another state than that of the newest checkpoint."""
        return self.newest is not None and self.number != self.newest


def wanted(path: Path) -> Order:
    """Which checkpoint the broker wants; no file, or one without a meaning, means none."""
    try:
        order = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "none"
    if not isinstance(order, dict):
        return "none"
    number = order.get("number")
    if order.get("mode") == "number" and type(number) is int and number > 0:
        return number
    return "newest" if order.get("mode") == "newest" else "none"


class Progress:
    """Keeps the name of the variable that is being restored in a file, for the next start.

    Args:
        path: Of the file.
        alarm: Ends what takes too long.
        limit_s: Seconds for one variable.
    """

    def __init__(self, path: Path, alarm: Alarm, limit_s: float) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._alarm = alarm
        self._limit_s = limit_s
        self._running = contextlib.ExitStack()
        self.name = ""

    def enter(self, name: str) -> None:
        """A variable is about to be restored."""
        self.name = name
        data = name.encode("utf-8", "surrogatepass")
        os.pwrite(self._file, data, 0)
        os.ftruncate(self._file, len(data))
        self._running.enter_context(self._alarm.within(self._limit_s))

    def leave(self) -> None:
        """It has been restored, or could not be."""
        self._running.close()

    def close(self) -> None:
        """No variable is being restored any more."""
        os.ftruncate(self._file, 0)
        os.close(self._file)


class Restorer:
    """Restores into one namespace.

    Args:
        namespace: The user's global variables, as a new kernel has them.
        config: Place and limits of the checkpoints.
        generation: Which incarnation of the kernel this is.
    """

    def __init__(
        self, namespace: dict[str, Any], config: CheckpointConfig, generation: int
    ) -> None:
        self._namespace = namespace
        self._baseline = reviving.baseline()
        self._config = config
        self._shelf = Shelf(config.folder)
        self._report = Report(generation)

    def run(self, order: Order) -> Report:
        """Restore what is wanted, if that can be; what came of it."""
        began = time.monotonic()
        numbers = self._shelf.numbers()
        self._report.newest = max(numbers, default=None)
        candidates = _candidates(numbers, order)
        if not candidates:
            return self._report
        try:
            with _quietly(), _watchdog(self._config.restore_limit_s):
                self._restore_first(candidates, numbers)
        except Exception as error:  # noqa: BLE001 - the kernel starts in any case; the report tells
            self._clear()
            self._report.error = reason_of(error)
        self._report.seconds = round(time.monotonic() - began, 3)
        return self._report

    def _restore_first(self, candidates: list[int], numbers: list[int]) -> None:
        """Restore the first that can be used."""
        experience = Experience(self._shelf.read_note(RESTORING), self._read_progress())
        troubles = []
        for number in candidates:
            try:
                if number not in numbers:
                    raise DamagedError("it is not there")
                if experience.given_up(number):
                    raise DamagedError(DEADLY)
                manifest = self._shelf.verify(number)
                # Before anything of it is read: the next process must know.
                self._shelf.write_note(RESTORING, experience.note(number, numbers))
                self._restore(number, manifest, experience.skip(number))
            except DamagedError as error:
                self._clear()
                troubles.append(f"checkpoint {number} cannot be used: {error}")
            else:
                break
        self._shelf.write_note(RESTORING, experience.note(None, numbers))
        self._report.error = "; ".join(troubles)

    def _read_progress(self) -> str:
        try:
            data = (self._shelf.folder / PROGRESS).read_bytes()
        except OSError:
            return ""
        return data.decode("utf-8", "replace")

    def _restore(self, number: int, manifest: dict[str, Any], skip: dict[str, str]) -> None:
        with (
            _own_alarm() as alarm,
            _live_symbolic_functions(self._namespace),
            contextlib.closing(
                Progress(
                    self._shelf.folder / PROGRESS,
                    alarm,
                    self._config.restore_limit_s * VARIABLE_SHARE,
                )
            ) as progress,
        ):
            lost = self._read(number, progress, skip)
        self._report.number = number
        self._report.cell = manifest["cell"]
        self._report.saved_at = manifest["saved_at"]
        self._report.age_s = max(0.0, round(time.time() - manifest["saved_at"], 1))
        missing = [*manifest["missing"], *lost]
        self._report.missing = missing[:MISSING_LIMIT]
        self._report.missing_total = len(missing)

    def _read(self, number: int, progress: Progress, skip: dict[str, str]) -> list[dict[str, str]]:
        """Bring the records into the namespace; what is lost.

        Raises:
            DamagedError: They cannot even be read around what is broken.
        """
        skip = dict(skip)
        around = bool(skip)
        while True:
            try:
                return self._pass(number, progress, skip, around=around)
            except TooSlowError as error:
                if progress.name in skip:
                    raise DamagedError(f"{progress.name} takes too long") from error
                skip[progress.name] = "restoring it takes too long"
            except Exception as error:  # of the user's classes; reading around finds it again
                if around:
                    raise DamagedError(reason_of(error)) from error
            around = True
            self._clear()

    def _pass(
        self, number: int, progress: Progress, skip: dict[str, str], *, around: bool
    ) -> list[dict[str, str]]:
        place = self._shelf.place(number)
        lost: list[dict[str, str]] = []
        parts: list[Record] = []
        self._report.names = 0
        with (place / DATA).open("rb") as data, (place / BUFFERS).open("rb") as buffers:
            if around:
                records = read_around(data, buffers, self._namespace, skip, progress)
            else:
                records = read_strictly(data, buffers, progress)
            for record in records:
                if record.lost:
                    lost.append(_missing(record, record.lost))
                elif record.kind == VARIABLE:
                    # At once, for what is made later may use it.
                    self._namespace[record.name] = record.value
                    self._report.names += 1
                elif record.kind == PART and record.name == surroundings.PROCESS:
                    lost += self._set(record, progress)
                elif record.kind == PART:
                    parts.append(record)
        for record in parts:
            if record.name not in skip:
                lost += self._set(record, progress)
        return lost

    def _set(self, part: Record, progress: Progress) -> list[dict[str, str]]:
        progress.enter(part.name)
        try:
            if part.name == surroundings.DELETED:
                for name in part.value:
                    self._namespace.pop(name, None)
            else:
                settling.settle(part.name, part.value)
        except Exception as error:  # noqa: BLE001 - of any library; told with the name
            return [_missing(part, reason_of(error))]
        finally:
            progress.leave()
        return []

    def _clear(self) -> None:
        """Undo a restore that was broken off."""
        self._namespace.clear()
        self._namespace.update(self._baseline)
        self._report.names = 0


def _candidates(numbers: list[int], order: Order) -> list[int]:
    """The checkpoints to try, one after the other."""
    if isinstance(order, int):
        return [order]
    return numbers[::-1] if order == "newest" else []


def _missing(record: Record, reason: str) -> dict[str, str]:
    kind = "setting" if record.kind == PART else ""
    return {"name": record.name, "type": kind, "reason": f"could not be restored: {reason}"}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Let no object print into the first cell's output, nor the garbage be looked for meanwhile."""
    gc.disable()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _watchdog(limit_s: float) -> Iterator[None]:
    """End the process when the block takes longer; a thread in C that no object can hold up."""
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _live_symbolic_functions(namespace: dict[str, Any]) -> Iterator[None]:
    """Let Sage bind the functions within symbolic functions to the namespace, not to its own."""
    module: Any = sys.modules.get("sage.symbolic.function")
    if module is None:
        yield
        return
    original = module.unpickle_function
    # Not read by us: Sage keeps these functions as pickled code within its own states.
    module.unpickle_function = lambda code: types.FunctionType(pickle.loads(code), namespace)
    try:
        yield
    finally:
        module.unpickle_function = original


@contextlib.contextmanager
def _own_alarm() -> Iterator[Alarm]:
    previous = signal.getsignal(signal.SIGALRM)
    try:
        yield Alarm()
    finally:
        signal.signal(signal.SIGALRM, previous)
        if "cysignals.signals" in sys.modules:
            # Its handler is one in C, which only it can set again.
            interrupt = signal.getsignal(signal.SIGINT)
            importlib.import_module("cysignals.signals").init_cysignals()
            signal.signal(signal.SIGINT, interrupt)


def restore(namespace: dict[str, Any], config: CheckpointConfig, generation: int) -> Report:
    """Restore what the broker wants, and tell it what came of that.

    Args:
        namespace: The user's global variables.
        config: Place and limits of the checkpoints.
        generation: Which incarnation of the kernel this is.
    """
    report = Restorer(namespace, config, generation).run(wanted(Path(config.order_file)))
    try:
        write_json(Path(config.report_file), asdict(report))
    except OSError as error:
        sys.stderr.write(f"{config.report_file}: {error}\n")
    return report
