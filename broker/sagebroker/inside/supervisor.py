"""The keeper: PID 1 of a session container, which forks the kernel and outlives it.

Single-threaded; the signals it obeys are blocked and taken one by one. Orders come as signals,
answers go into the status file.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import warming
from .decisions import CrashWindow, Exit, LeaseWatch, OomWatch, Order, oom_kills, order_of, tick_s
from .settings import CONFIGURATION_FILE, ConfigurationError, KeeperConfig, read_configuration
from .status import StatusFile

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_TERMINATED = 0
"""SIGTERM ended it."""
EXIT_USAGE = 64
"""Started otherwise than as PID 1 (``EX_USAGE`` of sysexits.h, as the next ones)."""
EXIT_SOFTWARE = 70
"""The preload or the keeper itself failed; also a kernel's whose bootstrap failed."""
EXIT_LEASE = 75
"""The broker has not touched the lease for too long."""
EXIT_HARD_LIFE = 76
"""The container's time is over."""
EXIT_CONFIGURATION = 78
"""No usable configuration."""

OBEYED = frozenset({signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD})

SWEEP_LIMIT_S = 10.0
"""How long killed processes may take to go; those that stay longer hang in the system."""
SWEEP_STEP_S = 0.05
"""Longest wait for the next of them before all are killed once more."""

FORK_TRIES = 8
FORK_PAUSE_S = 0.25
"""Together 2 s for the system to give back the processes of a fork bomb."""

KERNEL_OOM_SCORE = "500"
"""Makes the kernel, not the keeper, the one to go when memory runs out (0 is neutral, 1000 most)."""

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15

CGROUP_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


class Keeper:
    """Owns the container's processes.

    Args:
        config: What the broker wants.

    Raises:
        OSError: The folder of the status file cannot be opened.
    """

    def __init__(self, config: KeeperConfig) -> None:
        self._config = config
        self._run_kernel: Callable[[KeeperConfig, int], None] | None = None  # once warm
        self._status = StatusFile(config.status_file)
        self._tick_s = tick_s(config.lease_limit_s)
        self._lease = LeaseWatch(config.lease_limit_s, self._tick_s)
        self._crashes = CrashWindow(config.crash_limit, config.crash_window_s)
        self._ooms = OomWatch(_read_oom_kills())
        self._ends_at = time.clock_gettime(time.CLOCK_BOOTTIME) + config.hard_life_s
        self._state = "warming"
        self._kernel = 0  # pid; 0 while there is none
        self._generation = 0
        self._started: float | None = None
        self._interrupts = 0
        self._replacements = 0
        self._last_exit: dict[str, Any] | None = None
        self._warming_notes: list[str] = []

    def warm(self) -> None:
        """Import what the kernels need.

        Raises:
            ImportError: Something of it cannot be imported.
        """
        self._report()
        kernel_module = self._config.kernel_class.rpartition(".")[0]
        modules = (*self._config.preload, kernel_module, __package__ + ".kernel_main")
        self._warming_notes = warming.preload(
            modules, warm_up=self._config.warm_up, end=self._end_at_once
        )
        kernel_main = sys.modules[__package__ + ".kernel_main"]
        kernel_main.prepare()
        self._run_kernel = kernel_main.run
        self._warming_notes += warming.before_fork()
        # A signal from the user's code reaches PID 1 only where a handler is set, and the
        # libraries have set some; with none, the system drops it.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        _prctl(PR_SET_DUMPABLE, 0)

    def keep(self) -> int:
        """Fork the kernel and look after it; the exit code when all is over."""
        self._fork()
        while True:
            arrived = self._wait()
            order = order_of(arrived)
            if order is Order.END:
                return self._end(EXIT_TERMINATED, "ended on demand")
            end, _ = self._reap()
            if end is not None:
                self._record(end, requested=False)
            if order is Order.REPLACE:
                self._replace()
            elif end is not None:
                self._recover()
            elif order is Order.INTERRUPT:
                self._interrupt()
            if time.clock_gettime(time.CLOCK_BOOTTIME) >= self._ends_at:
                return self._end(EXIT_HARD_LIFE, "hard life over")
            if self._lease.expired(_stamp(self._config.lease_file), time.monotonic()):
                return self._end(EXIT_LEASE, "lease expired")
            self._status.settle()

    def _wait(self) -> set[int]:
        left = self._ends_at - time.clock_gettime(time.CLOCK_BOOTTIME)
        timeout = min(self._tick_s, max(0.0, left))
        arrived: set[int] = set()
        # At most one of each: a child that never stops signalling must not hold us here.
        for _ in OBEYED:
            info = signal.sigtimedwait(OBEYED, timeout)
            if info is None:
                break
            arrived.add(info.si_signo)
            timeout = 0.0
        self._ooms.observe(_read_oom_kills(), time.monotonic())
        return arrived

    def _reap(self) -> tuple[Exit | None, bool]:
        """Collect the dead: how the kernel ended, if it did, and whether no child is left."""
        kernel_end = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return kernel_end, True
            if pid == 0:
                return kernel_end, False
            if pid == self._kernel:
                self._kernel = 0
                kernel_end = _exit_of(status)

    def _sweep(self) -> Exit | None:
        """Kill every other process of the container; how the kernel ended, if it was among them."""
        kernel_end = None
        limit = time.monotonic() + SWEEP_LIMIT_S
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            end, none_left = self._reap()
            kernel_end = end or kernel_end
            if none_left:
                return kernel_end
            if time.monotonic() >= limit:
                self._log("processes survive SIGKILL")
                return kernel_end
            signal.sigtimedwait({signal.SIGCHLD}, SWEEP_STEP_S)

    def _record(self, end: Exit, *, requested: bool) -> None:
        now = time.monotonic()
        self._ooms.observe(_read_oom_kills(), now)
        self._last_exit = {
            "generation": self._generation,
            "signal": end.signal,
            "code": end.code,
            "oom": not requested and self._ooms.explains(end, now),
            "requested": requested,
            "when": time.time(),
        }

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._kernel:
            os.kill(self._kernel, signal.SIGINT)
        self._report()

    def _replace(self) -> None:
        self._replacements += 1
        self._state = "replacing"
        self._report()
        end = self._sweep()
        if end is not None:
            self._record(end, requested=True)
        self._crashes.forget()
        self._fork()

    def _recover(self) -> None:
        """The kernel has died by itself: report first, then tidy up and fork the next."""
        self._state = "replacing"
        self._report()
        self._sweep()
        if self._crashes.died(time.monotonic()):
            self._state = "crash_loop"
            limit, window = self._config.crash_limit, self._config.crash_window_s
            self._report(f"{limit} deaths within {window:g} s: waiting for SIGUSR1")
            return
        self._fork()

    def _fork(self) -> None:
        """Start a kernel among no other processes, in an empty socket folder."""
        self._status.clear()
        self._ooms.forget()
        self._generation += 1
        problem: OSError | None = None
        for _ in range(FORK_TRIES):
            try:
                pid = os.fork()
            except OSError as error:
                problem = error
                self._sweep()
                time.sleep(FORK_PAUSE_S)
                continue
            if pid == 0:
                self._become_kernel()
            self._kernel = pid
            self._started = time.time()
            self._state = "running"
            self._report()
            return
        self._state = "crash_loop"
        self._report(f"fork failed: {problem}; waiting for SIGUSR1")

    def _become_kernel(self) -> NoReturn:
        code = EXIT_SOFTWARE
        try:
            # First, because /proc/self is root's as long as the process is not dumpable.
            _prctl(PR_SET_DUMPABLE, 1)
            _prctl(PR_SET_NAME, b"kernel")
            self._status.close()
            os.setsid()
            Path("/proc/self/oom_score_adj").write_text(KERNEL_OOM_SCORE)
            _ordinary_signals()
            os.chdir(self._config.cwd)
            warming.reseed()
            if self._run_kernel is None:
                raise RuntimeError("forked before warming")
            self._run_kernel(self._config, self._generation)
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else EXIT_SOFTWARE
        except BaseException:  # noqa: BLE001 - the last frame of the process; the broker sees the code
            traceback.print_exc()
        finally:
            os._exit(code)

    def _end(self, code: int, why: str) -> int:
        end = self._sweep()
        if end is not None:
            self._record(end, requested=True)
        self._state = "ended"
        self._report(why)
        return code

    def give_up(self, why: str) -> None:
        """Leave word of a failure of the preload or of the keeper itself."""
        self._state = "ended"
        self._report(why)

    def _end_at_once(self) -> NoReturn:
        os._exit(self._end(EXIT_TERMINATED, "ended while warming"))

    def _report(self, note: str = "") -> None:
        written = self._status.write(
            {
                "state": self._state,
                "generation": self._generation,
                "pid": self._kernel,
                "interrupts": self._interrupts,
                "replacements": self._replacements,
                "oom_kills": self._ooms.kills,
                "started": self._started,
                "last_exit": self._last_exit,
                "note": "; ".join([*self._warming_notes, *([note] if note else [])]),
            }
        )
        if note:
            self._log(note)
        if not written:
            self._log("status file cannot be written")

    def _log(self, text: str) -> None:
        # The log may be full or made non-blocking by somebody; that is no reason to end.
        with contextlib.suppress(OSError):
            os.write(2, f"keeper: {text}\n".encode())


def _ordinary_signals() -> None:
    """Set what a Python process, and Sage in it, expects, and let the signals in.

    SIGINT stays ignored until a cell runs, as in any ipykernel: one that was meant for the kernel
    before must not hit this one while it starts.
    """
    if "cysignals.signals" in sys.modules:
        importlib.import_module("cysignals.signals").init_cysignals()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _exit_of(status: int) -> Exit:
    if os.WIFSIGNALED(status):
        return Exit(os.WTERMSIG(status), None)
    return Exit(None, os.WEXITSTATUS(status))


def _read_oom_kills() -> int:
    texts = {}
    for name in CGROUP_FILES:
        with contextlib.suppress(OSError):
            texts[name] = Path(name).read_text()
    return oom_kills(texts)


def _stamp(path: str) -> int | None:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return None


def _prctl(option: int, value: int | bytes) -> None:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, zero, zero, zero):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def main() -> int:
    """Run the keeper; its exit code, one of the ``EXIT_`` constants."""
    if os.getpid() != 1:
        # It kills every process it may: outside a container that would be the user's session.
        os.write(2, b"keeper: runs as PID 1 of a container only\n")
        return EXIT_USAGE
    signal.pthread_sigmask(signal.SIG_BLOCK, OBEYED)
    os.umask(0o077)
    try:
        keeper = Keeper(read_configuration(CONFIGURATION_FILE))
    except (ConfigurationError, OSError) as error:
        os.write(2, f"keeper: {error}\n".encode())
        return EXIT_CONFIGURATION
    code = EXIT_SOFTWARE
    try:
        _prctl(PR_SET_NAME, b"keeper")
        keeper.warm()
        code = keeper.keep()
    except Exception as error:  # noqa: BLE001 - the last frame of the process; the exit code tells
        traceback.print_exc()
        keeper.give_up(repr(error))
    # No interpreter shutdown: the libraries' exit handlers have nothing to tidy up here.
    sys.stderr.flush()
    os._exit(code)
