"""A keeper for tests without containers: the same protocol, for one ipykernel on this machine.

Not PID 1: it kills the process group of its kernel only. Run by `sagebroker.testing.LocalRuntime`::

    python local_keeper.py CONNECTION_FILE STATUS_FILE WORKING_FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_SIGNALS = {signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD}


class LocalKeeper:
    """Runs one kernel after the other."""

    def __init__(self, connection_file: str, status_file: str, folder: str) -> None:
        self._connection_file = connection_file
        self._status_file = Path(status_file)
        self._folder = folder
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
                self._note_exit(self._kernel.returncode)
                self._start()

    def _start(self) -> None:
        for socket in self._status_file.parent.glob("k-*"):
            socket.unlink()
        self._kernel = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ipykernel_launcher",
                "-f",
                self._connection_file,
                "--HistoryManager.hist_file=:memory:",
            ],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS),
        )
        self._tell(state="running", generation=self._status["generation"] + 1, pid=self._kernel.pid)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._kernel.pid, signal.SIGKILL)
        self._kernel.wait()

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


if __name__ == "__main__":
    LocalKeeper(*sys.argv[1:]).run()
