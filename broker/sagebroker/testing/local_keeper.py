"""A keeper for tests without containers: the same protocol, for our kernel on this machine.

Not PID 1: what it kills are its own descendants. Run by `sagebroker.testing.LocalRuntime`::

    python local_keeper.py CONFIGURATION_FILE
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SIGNALS = {signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD}
_PR_SET_CHILD_SUBREAPER = 36
_KERNEL = Path(__file__).with_name("local_kernel.py")

_SWEEP_LIMIT_S = 5.0
"""How long killed processes may take to go."""
_SWEEP_STEP_S = 0.005
"""Between two looks at those that are left."""


class LocalKeeper:
    """Runs one kernel after the other.

    Args:
        configuration_file: The keeper's, with paths of this machine.
    """

    def __init__(self, configuration_file: Path) -> None:
        self._configuration_file = configuration_file
        self._config = json.loads(configuration_file.read_text(encoding="utf-8"))
        self._status_file = Path(self._config["status_file"])
        self._kernel: subprocess.Popen[bytes]
        self._requested = False
        self._status: dict[str, Any] = {
            "state": "warming",
            "generation": 0,
            "pid": 0,
            "interrupts": 0,
            "replacements": 0,
            "oom_kills": 0,
            "started": 0.0,
            "last_exit": None,
            "note": "",
        }

    def run(self) -> None:
        """Serve signals until SIGTERM."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        # What the kernel forks off and leaves, as for a checkpoint, comes to us as to a PID 1.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._start()
        while True:
            received = signal.sigwaitinfo(_SIGNALS).si_signo
            if received == signal.SIGTERM:
                self._kill()
                return
            if received == signal.SIGINT:
                self._kernel.send_signal(signal.SIGINT)
                self._tell(interrupts=self._status["interrupts"] + 1)
            elif received == signal.SIGUSR1:
                self._requested = True
                self._kill()
            if self._kernel.poll() is not None:
                self._kill()
                self._note_exit(self._kernel.returncode)
                self._start()
            self._reap()

    def _start(self) -> None:
        for left in [*self._status_file.parent.glob("k-*"), self._restore_report]:
            left.unlink(missing_ok=True)
        generation = self._status["generation"] + 1
        self._kernel = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-B",
                str(_KERNEL),
                str(self._configuration_file),
                str(generation),
            ],
            cwd=self._config["cwd"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_ordinary_signals,
        )
        self._tell(state="running", generation=generation, pid=self._kernel.pid)

    @property
    def _restore_report(self) -> Path:
        return self._status_file.with_name("restore.json")

    def _kill(self) -> None:
        """Kill the kernel and all that comes from it."""
        self._kernel.kill()
        self._kernel.wait()
        limit = time.monotonic() + _SWEEP_LIMIT_S
        while (left := self._reap()) and time.monotonic() < limit:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(_SWEEP_STEP_S)

    def _reap(self) -> list[int]:
        """Collect the dead that came to us; those that live, without the kernel."""
        adopted = [process for process in _children() if process != self._kernel.pid]
        return [process for process in adopted if os.waitpid(process, os.WNOHANG) == (0, 0)]

    def _note_exit(self, code: int) -> None:
        self._status["last_exit"] = {
            "generation": self._status["generation"],
            "signal": -code if code < 0 else None,
            "code": code if code >= 0 else None,
            "oom": False,
            "requested": self._requested,
            "when": 0.0,
        }
        self._requested = False

    def _tell(self, **changes: Any) -> None:
        self._status.update(changes)
        draft = self._status_file.with_suffix(".new")
        draft.write_text(json.dumps(self._status), encoding="utf-8")
        draft.replace(self._status_file)


def _children() -> list[int]:
    me = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]


def _ordinary_signals() -> None:
    # Ignored until a cell runs, as in the keeper's kernels: a late one must not end the start.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


if __name__ == "__main__":
    LocalKeeper(Path(sys.argv[1])).run()
