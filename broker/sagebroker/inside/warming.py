"""What is done once, before the kernels are forked, and what each of them must undo."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import os
import random
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GC_MARKERS")
"""Set to 1 where unset: thread pools do not survive a fork, and the last one is that of the
garbage collector under Maxima's Lisp."""

CRASH_QUIET = ("CYSIGNALS_CRASH_QUIET",)
"""Set to 1 where unset: cysignals would start a process that collects a backtrace, and write it
into a pipe that only the dying kernel reads. Nobody would see it, and the death would come later."""

COMPANIONS = (
    "IPython.core.completerlib",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
)
SAGE_COMPANIONS = (
    "sage.all_cmdline",
    "sage.repl.ipython_kernel.all_jupyter",
    "sage.repl.rich_output.backend_ipython",
    "sage.repl.user_globals",
)
"""Modules that a kernel would import while it starts: 0.1 s less for each, where they exist."""

SEED_BITS = 62
"""Width of the seeds for generators that take a machine integer."""


class TerminationWatch(importlib.abc.MetaPathFinder):
    """Looks for a pending SIGTERM at every import; finds no module.

    The signal is blocked, for Sage's libraries set handlers of their own while they are loaded;
    yet somebody who ends the container must not wait for seconds of imports.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """End the process if it was told to."""
        del fullname, path, target
        if signal.SIGTERM in signal.sigpending():
            self._end()


def preload(modules: Iterable[str], *, warm_up: bool, end: Callable[[], None]) -> list[str]:
    """Import the modules and, on demand, make Sage's slow first calls.

    Args:
        modules: Names of the modules.
        warm_up: Whether to run one plot, Maxima, GAP and Singular call.
        end: Called when SIGTERM is pending; does not return.

    Returns:
        What could not be warmed up and why; a cold kernel is still a good one.

    Raises:
        ImportError: A module cannot be imported.
    """
    for name in SINGLE_THREADED + CRASH_QUIET:
        os.environ.setdefault(name, "1")
    watch = TerminationWatch(end)
    sys.meta_path.insert(0, watch)
    notes: list[str] = []
    try:
        for module in modules:
            importlib.import_module(module)
        for module in COMPANIONS + (SAGE_COMPANIONS if "sage.all" in sys.modules else ()):
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        if warm_up:
            for call in (_warm_maxima, _warm_gap, _warm_singular, _warm_plot):
                watch.find_spec("", None)
                notes += _attempt(call)
    finally:
        sys.meta_path.remove(watch)
    return notes


def _attempt(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - any library may fail in any way
        traceback.print_exc()
        return [f"{call.__name__.strip('_')} failed: {error!r}"]
    return []


def _warm_maxima() -> None:
    from sage.all import SR, integrate, sin

    x = SR.var("x")
    integrate(sin(x) ** 2, x)


def _warm_gap() -> None:
    from sage.all import SymmetricGroup

    SymmetricGroup(4).conjugacy_classes()


def _warm_singular() -> None:
    from sage.all import QQ, PolynomialRing

    ring = PolynomialRing(QQ, "a,b")
    a, b = ring.gens()
    ring.ideal([a**2 + b, a * b - 1]).groebner_basis()


def _warm_plot() -> None:
    from sage.all import SR, plot, sin

    x = SR.var("x")
    with tempfile.TemporaryDirectory() as folder:
        plot(sin(x), (x, 0, 1)).save(str(Path(folder, "warm.png")))


def before_fork() -> list[str]:
    """Make the process fit to be forked; what a kernel would share with it beyond a copy.

    Returns:
        A note for each thread, child, shared mapping or open file that should not be there.
    """
    gc.collect()
    gc.freeze()
    notes = []
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        notes.append(f"{threads} threads before the fork")
    try:
        os.waitpid(-1, os.WNOHANG)
        notes.append("child processes before the fork")
    except ChildProcessError:
        pass
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "rw-s" in line]
    if shared:
        notes.append(f"{len(shared)} shared writable mappings: {shared[0]}")
    return notes


def reseed() -> None:
    """Give this process random streams of its own, whatever its parent has drawn.

    Sage's `set_random_seed` makes a new random state from the system's entropy, from which Sage's
    own functions seed each library when they use it. Those that run already are seeded here, for
    code that calls them directly; GAP and Maxima started later begin as in any Sage.
    """
    random.seed()
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "sage.misc.randstate" not in sys.modules:
        return
    from sage.misc.randstate import current_randstate, set_random_seed

    set_random_seed()
    state = current_randstate()
    state.set_seed_libc(True)
    if "sage.libs.ntl.ntl_ZZ" in sys.modules:
        state.set_seed_ntl(True)
    if "sage.libs.pari" in sys.modules:
        state.set_seed_pari()
    # GAP takes more than a second to start, which nobody should pay for before using it. It has
    # started when it has looked for its saved workspace.
    if "sage.libs.gap.saved_workspace" in sys.modules:
        state.set_seed_libgap()
    seed = random.getrandbits(SEED_BITS)
    if "sage.interfaces.maxima_lib" in sys.modules:
        from sage.interfaces.maxima_lib import maxima_lib

        maxima_lib.eval(f"set_random_state(make_random_state({seed}))")
    if "sage.libs.singular.function" in sys.modules:
        from sage.libs.singular.function import singular_function

        singular_function("system")("random", seed % (2**31 - 1))
