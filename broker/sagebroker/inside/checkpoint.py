"""The kernel's part in its checkpoints: when to fork, and what became of it.

A snapshot is taken when the kernel has nothing to do after a cell, at the latest before the next
cell runs; never while another is being written. The user's code sees nothing of it: no output, no
history, no child process.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .changes import may_change
from .forking import Writing, fork
from .recording import Snapshot
from .shelf import LABEL, LABEL_RULE, Shelf
from .wording import reason_of
from .writer import failed, note_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from .settings import CheckpointConfig

SETTLE_S = 0.005
"""Between a cell's end and the fork: the cell's answer leaves first."""

POLL_S = 0.05
"""Between two looks at a writer while the kernel has nothing to do."""

OVERSEER_GRACE_S = 10.0
"""What the overseer may take beyond its time limit, to bring the files to the disk and to prune."""

PARTING_LIMIT_S = 2.0
"""How long the child that only forks the overseer may take; it takes some 20 ms."""
PARTING_STEP_S = 0.001

HARM_REST_S = 60.0
"""For how long a variable that stalled or killed its writer is left alone: with one that takes its
whole time at each attempt, all checkpoints would be old."""

REPORT_BYTES = 4096
"""Most bytes of the overseer's report; a pipe takes so many at once."""

_installed: Checkpointer | None = None


@dataclass(frozen=True)
class Harm:
    """What is known of a variable that stalled or killed its writer.

    Attributes:
        value: Of the variable then.
        reason: For the list of what is missing.
        until: Monotonic time from which it may be tried again: it may have changed inside.
    """

    value: Any
    reason: str
    until: float


class Checkpointer:
    """Takes snapshots of a kernel's namespace.

    Args:
        shell: The kernel's shell.
        call_later: Has the kernel's event loop call a function after some seconds.
        config: Limits and place.
        generation: Which incarnation of the kernel this is.
        baseline: The user's global variables before anything was restored.
    """

    def __init__(
        self,
        shell: Any,
        call_later: Callable[[float, Callable[[], None]], object],
        config: CheckpointConfig,
        generation: int,
        baseline: dict[str, Any],
    ) -> None:
        self._shell = shell
        self._call_later = call_later
        self._config = config
        self._generation = generation
        self._pid = os.getpid()
        self._baseline = baseline
        self._environment = dict(os.environ)
        self._changed = False
        self._left = False  # the newest checkpoint is of a state that the user has left
        self._label = ""  # of the next checkpoint
        self._owed = False  # the last attempt has failed; the next cell occasions another
        self._running = 0
        self._begun = 0  # cells and silent requests
        self._armed = False
        self._cell = 0
        self._context = contextvars.copy_context()
        self._writing: Writing | None = None
        self._harmful: dict[str, Harm] = {}
        self.last: dict[str, Any] = {"number": 0, "error": ""}
        """How the last attempt has ended; with ``label`` and ``unlabelled`` if it was to get one."""

    def register(self, kernel: Any) -> None:
        """Begin to look at the cells of a kernel."""
        events = self._shell.events
        events.register("pre_execute", self._before_cell)
        events.register("post_execute", self._after_any_cell)
        events.register("post_run_cell", self._after_cell)
        prepare = kernel.pre_handler_hook

        def prepare_later() -> None:
            try:
                self._guarded(self._before_message)
            finally:
                prepare()

        kernel.pre_handler_hook = prepare_later

    @property
    def settled(self) -> bool:
        """Whether everything is saved, as far as it can be, and nothing is being written."""
        return not self.pending and not self._owed

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written, or is due."""
        return self._changed or self._left or self._writing is not None

    def ask(self, label: str = "") -> str:
        """Write a checkpoint as soon as may be, though nothing may have changed.

        Args:
            label: That it shall have; empty for none.

        Returns:
            Why that is refused, or nothing.
        """
        if label and not LABEL.fullmatch(label):
            return LABEL_RULE
        if label and self._label not in ("", label):
            return f"the checkpoint that is due will have the label {self._label}; ask again then"
        self._label = label or self._label
        self._changed = True
        self._arm(SETTLE_S)
        return ""

    def owe(self) -> None:
        """Write a checkpoint after the first request, though nothing may have changed.

        For a kernel that begins with another state than the newest checkpoint's: the next one must
        not go back to that. The first request is the broker's, who waits for the kernel.
        """
        self._left = True

    def _before_message(self) -> None:
        # Not in the event before a cell: SIGINT is let in by then, and must not come between a
        # fork and the note of it.
        if self._running or not self._may_fork():
            return
        self._poll()
        self._snapshot_if_due()
        self._part()
        if self._left:
            self._left, self._changed = False, True
            self._arm(SETTLE_S)

    def _before_cell(self) -> None:
        if self._may_fork():
            self._running += 1
            self._begun += 1

    def _after_any_cell(self) -> None:
        if self._may_fork():
            self._running = max(0, self._running - 1)
            self._arm(SETTLE_S)

    def _after_cell(self, result: Any) -> None:
        info = result.info
        if info is None or not info.store_history or os.getpid() != self._pid:
            return
        self._cell = result.execution_count or self._cell
        self._context = contextvars.copy_context()
        self._known_harm()  # lets go of what the user has let go of
        cell = getattr(info, "transformed_cell", None)
        if self._owed or may_change(cell, self._shell.user_ns, self._baseline):
            self._changed = True
        self._arm(SETTLE_S)

    def _may_fork(self) -> bool:
        """Whether this is the kernel's own main thread, not a subshell's or a forked child's."""
        return threading.current_thread() is threading.main_thread() and os.getpid() == self._pid

    def _arm(self, delay_s: float) -> None:
        due = self._changed or self._writing is not None
        if due and not self._armed and self._may_fork():
            self._armed = True
            self._call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._armed = False
        if self._running:
            return  # a cell that awaits something; its end arms again
        self._guarded(self._after_message)
        self._arm(POLL_S)

    def _after_message(self) -> None:
        self._poll()
        self._reap()
        self._snapshot_if_due()

    def _guarded(self, step: Callable[[], None]) -> None:
        """Take a step; no failure of it may reach the kernel or its user."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - told by `state`; the next cell tries again
            self._writing = None
            self._owed = True
            self.last = {"number": 0, "error": reason_of(error)}

    def _snapshot_if_due(self) -> None:
        if not self._changed or self._writing is not None:
            return
        self._changed = False
        label, self._label = self._label, ""
        snapshot = Snapshot(
            namespace=self._shell.user_ns,
            baseline=self._baseline,
            environment=self._environment,
            cell=self._cell,
            generation=self._generation,
            config=self._config,
            python_random=random.getstate(),
            context=self._context,
            harmful=self._known_harm(),
            label=label,
        )
        try:
            self._writing = fork(snapshot, self._begun)
        except OSError as error:
            self._conclude(snapshot, failed(reason_of(error)), told=False, unchanged=False)

    def _known_harm(self) -> dict[str, str]:
        """Variables that are still those that have lately done harm, with the reason."""
        now = time.monotonic()
        namespace = self._shell.user_ns
        self._harmful = {
            name: harm
            for name, harm in self._harmful.items()
            if now < harm.until and namespace.get(name) is harm.value
        }
        return {name: harm.reason for name, harm in self._harmful.items()}

    def _poll(self) -> None:
        """See whether the checkpoint is written."""
        writing = self._writing
        if writing is None:
            return
        try:
            report = os.read(writing.report, REPORT_BYTES)
        except BlockingIOError:
            limit = self._config.time_limit_s + OVERSEER_GRACE_S
            if time.monotonic() - writing.began > limit:
                # Its end is seen by the next look.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(writing.group, signal.SIGKILL)
            return
        os.close(writing.report)
        self._part()
        self._writing = None
        try:
            result = json.loads(report)
        except ValueError:
            result = failed("the process that was to write it was killed")
        unchanged = self._begun == writing.begun
        self._conclude(writing.snapshot, result, told=bool(report), unchanged=unchanged)

    def _conclude(
        self, snapshot: Snapshot, result: dict[str, Any], *, told: bool, unchanged: bool
    ) -> None:
        self.last = {"number": result["number"], "error": result["error"]}
        if snapshot.label:
            self.last |= {"label": snapshot.label, "unlabelled": result["unlabelled"]}
        until = time.monotonic() + HARM_REST_S
        for name, reason in result["harmful"].items():
            # Only a value that certainly is the one that did it.
            if unchanged and name not in self._harmful and name in snapshot.namespace:
                self._harmful[name] = Harm(snapshot.namespace[name], reason, until)
        self._owed = bool(result["error"])
        if result["error"] and not told:
            note_failure(Shelf(self._config.folder), snapshot, result["error"])

    def _reap(self) -> None:
        """Collect the child that has forked the overseer, if it has ended."""
        if self._writing is not None and self._writing.parting:
            try:
                ended, _ = os.waitpid(self._writing.parting, os.WNOHANG)
            except ChildProcessError:  # somebody else has
                ended = self._writing.parting
            if ended:
                self._writing.parting = 0

    def _part(self) -> None:
        """Have no child any more when the user's code runs."""
        deadline = time.monotonic() + PARTING_LIMIT_S
        while self._writing is not None and self._writing.parting:
            self._reap()
            if not self._writing.parting:
                return
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._writing.parting, signal.SIGKILL)
            time.sleep(PARTING_STEP_S)


def install(
    kernel: Any, config: CheckpointConfig, generation: int, baseline: dict[str, Any]
) -> Checkpointer:
    """Have checkpoints of a kernel written from now on.

    Args:
        kernel: Of ipykernel, with its shell.
        config: Limits and place.
        generation: Which incarnation of the kernel this is.
        baseline: The user's global variables before anything was restored.
    """
    global _installed  # for `state`, which is called by name
    checkpointer = Checkpointer(
        kernel.shell,
        lambda delay_s, call: kernel.io_loop.call_later(delay_s, call),
        config,
        generation,
        baseline,
    )
    _installed = checkpointer
    checkpointer.register(kernel)
    return checkpointer


def state(*, write: bool = False, label: str = "") -> str:
    """How far the checkpoints are, as before a hibernation; does not wait.

    The broker has silent requests call it, again and again until nothing is pending; they change
    nothing that would have to be saved. One that is asked for while another is being written has
    the effect of cells that run before it is begun, so none should until it is no longer pending:
    ``__import__("sagebroker_inside.checkpoint", fromlist=["state"]).state()``.

    Args:
        write: Whether to write one though nothing may have changed.
        label: That this one shall have; it is written in any case then. One with a label stays, of
            which there are at most `shelf.LABELLED_LIMIT`.

    Returns:
        JSON: ``number`` of the last checkpoint (0: none was written by this kernel); ``error`` of
        the last attempt (empty: it succeeded), or why what is asked is refused; ``settled``:
        whether nothing is left to be saved; ``pending``: whether one is being written or due. If
        the last attempt was to get a label: ``label``, which it has if there is no error, and
        ``unlabelled``: the label of the one that is kept no longer for it (empty: there is none).
    """
    if _installed is None:
        off = {"number": 0, "error": "checkpoints are off", "settled": False, "pending": False}
        return json.dumps(off)
    refusal = _installed.ask(label) if write or label else ""
    told = {**_installed.last, "settled": _installed.settled, "pending": _installed.pending}
    return json.dumps({**told, "error": refusal} if refusal else told)
