"""Writes a checkpoint: the processes that a kernel forks off for it.

The kernel forks a process that forks the overseer and ends, so that the kernel has no child that
the user's ``os.wait()`` could meet. The overseer forks the writer proper and watches it; when an
object kills or stalls the writer, the overseer, which has the same objects still untouched, forks
another that leaves this one out.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import recording
from .confining import limit_memory, silence_descriptors
from .shared_note import FINISHED, SharedNote
from .shelf import FAILED, VERSION, Shelf
from .wording import HARM, TAKES_TOO_LONG, one_line, reason_of

if TYPE_CHECKING:
    from .recording import Snapshot

OVERSEER_OOM_SCORE = "900"
WRITER_OOM_SCORE = "1000"
"""Who goes first when memory runs out; the kernel has 500, the keeper 0."""

NICENESS = 10
"""The next cell goes before the checkpoint of the last one."""

WATCH_STEP_S = 0.1
"""Between two looks at a writer that does not end."""

STALL_GRACE_S = 1.0
"""What a variable may take beyond its time, for the writer's own alarm to stop it gently."""

HARMFUL_LIMIT = 8
"""Variables that may kill their writer before the overseer gives up."""

HARMFUL_NAME_CHARACTERS = 60
"""Longest name told to the kernel: the report must fit into one write to a pipe."""


@dataclass(frozen=True)
class Verdict:
    """How a writer has ended.

    Attributes:
        ok: Everything is written.
        fatal: Another writer would fail in the same way.
        reason: Why it is not.
    """

    ok: bool
    fatal: bool = False
    reason: str = ""


def detach(snapshot: Snapshot, report: int) -> NoReturn:
    """Become the overseer, by another fork; never returns and never raises.

    To be called in a child that was forked with all signals blocked.

    Args:
        snapshot: What is to be saved.
        report: Descriptor to write the result to; it is closed when all is over.
    """
    try:
        os.setsid()
        if os.fork() == 0:
            Overseer(snapshot, report).run()
    except BaseException as error:  # noqa: BLE001 - nothing of this may go on as the kernel
        reason = reason_of(error)
        note_failure(Shelf(snapshot.config.folder), snapshot, reason)
        _say(report, failed(reason))
    finally:
        os._exit(0)


def failed(error: str) -> dict[str, Any]:
    """What is told of an attempt that has come to nothing."""
    return {"number": 0, "error": error, "harmful": {}, "unlabelled": ""}


def _say(report: int, result: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the kernel is gone: nobody wants to know
        os.write(report, json.dumps(result).encode("ascii"))


class Overseer:
    """Has the checkpoint written within its limits."""

    def __init__(self, snapshot: Snapshot, report: int) -> None:
        self._snapshot = snapshot
        self._config = snapshot.config
        self._report = report
        self._shelf = Shelf(snapshot.config.folder)
        self._note = SharedNote()
        self._began = time.monotonic()
        self._deadline = self._began + self._config.time_limit_s

    def run(self) -> None:
        """Write the checkpoint, tell the kernel and, of a failure, the folder."""
        self._withdraw()
        number, error, unlabelled = 0, "", ""
        harmful: dict[str, str] = {}
        try:
            self._shelf.sweep()
            place = self._shelf.begin()
            try:
                error = self._write(place)
                if not error:
                    number, harmful = self._publish(place)
                    if self._snapshot.label:
                        unlabelled = self._shelf.label(number, self._snapshot.label)
            finally:
                shutil.rmtree(place, ignore_errors=True)
            self._shelf.prune(self._config.keep)
        except OSError as problem:
            error = one_line(f"{self._config.folder}: {problem.strerror or problem}")
        if error:
            note_failure(self._shelf, self._snapshot, error)
        else:
            self._shelf.drop_note(FAILED)
        result = {"number": number, "error": error, "harmful": harmful, "unlabelled": unlabelled}
        _say(self._report, result)

    def _withdraw(self) -> None:
        """Let go of everything that is the kernel's."""
        gc.disable()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_IGN if number in IGNORED else signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD})
        _set_oom_score(OVERSEER_OOM_SCORE)
        os.nice(NICENESS)
        silence_descriptors(keep=self._report)
        sys.stdout = sys.stderr = io.StringIO()

    def _write(self, place: Path) -> str:
        """Fork writers until one has written everything it could; why none has, or nothing."""
        skip: dict[int, str] = {}
        while True:
            self._note.position = 0
            self._note.text = ""
            pid = os.fork()
            if pid == 0:
                self._be_writer(place, skip)
            verdict = self._watch(pid)
            if verdict.ok:
                return ""
            if verdict.fatal or len(skip) >= HARMFUL_LIMIT or self._note.position in skip:
                return verdict.reason
            skip[self._note.position] = verdict.reason
            for file in place.iterdir():
                file.unlink()

    def _be_writer(self, place: Path, skip: dict[int, str]) -> NoReturn:
        code = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            _set_oom_score(WRITER_OOM_SCORE)
            limit_memory(self._config.memory_limit_bytes)
            self._snapshot.context.run(
                recording.record, self._snapshot, place, skip, self._note, self._deadline
            )
            self._note.position = FINISHED
            code = 0
        except BaseException as error:  # noqa: BLE001 - told by the shared note
            self._note.text = reason_of(error)
        finally:
            os._exit(code)

    def _watch(self, pid: int) -> Verdict:
        position, since = -1, 0.0
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return self._judge(status)
            now = time.monotonic()
            if self._note.position != position:
                position, since = self._note.position, now
            if now >= self._deadline:
                _kill(pid)
                limit = self._config.time_limit_s
                return Verdict(ok=False, fatal=True, reason=f"not written within {limit:g} s")
            if now - since >= recording.variable_limit_s(self._config) + STALL_GRACE_S:
                _kill(pid)
                return Verdict(ok=False, reason=TAKES_TOO_LONG)
            signal.sigtimedwait({signal.SIGCHLD}, WATCH_STEP_S)

    def _judge(self, status: int) -> Verdict:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL:
                return Verdict(ok=False, reason=HARM + "took more memory than there is")
            return Verdict(ok=False, reason=f"{HARM}ends in a crash (signal {number})")
        if self._note.position == FINISHED:
            return Verdict(ok=True)
        code = os.WEXITSTATUS(status)
        if self._note.text:
            return Verdict(ok=False, fatal=True, reason=self._note.text)
        return Verdict(ok=False, reason=f"{HARM}ends the process (exit code {code})")

    def _publish(self, place: Path) -> tuple[int, dict[str, str]]:
        """Give it a number; that, and the variables that did harm, with the reason."""
        number = max(self._shelf.numbers(), default=0) + 1
        manifest = recording.finish_manifest(
            place,
            {
                "version": VERSION,
                "number": number,
                "cell": self._snapshot.cell,
                "generation": self._snapshot.generation,
                "saved_at": time.time(),
                "seconds": round(time.monotonic() - self._began, 3),
            },
        )
        self._shelf.publish(place, number)
        harmful = [m for m in manifest["missing"] if m["reason"].startswith(HARM)]
        told = [m for m in harmful if len(m["name"]) <= HARMFUL_NAME_CHARACTERS]
        return number, {m["name"]: m["reason"] for m in told[:HARMFUL_LIMIT]}


IGNORED = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ})


def note_failure(shelf: Shelf, snapshot: Snapshot, error: str) -> None:
    """Leave word of a checkpoint that could not be written, if that can be."""
    with contextlib.suppress(OSError):  # a full disk, most likely the very failure
        shelf.write_note(
            FAILED,
            {
                "version": VERSION,
                "cell": snapshot.cell,
                "generation": snapshot.generation,
                "at": time.time(),
                "error": error,
            },
        )


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _set_oom_score(score: str) -> None:
    with contextlib.suppress(OSError):  # outside of a container it may not be lowered again
        Path("/proc/self/oom_score_adj").write_text(score)
