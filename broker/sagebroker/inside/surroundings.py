"""What belongs to a session besides its variables, as plain values to save and to set again.

Of a library only what is loaded is looked at: nothing here starts Maxima or GAP.
"""

from __future__ import annotations

import ctypes
import linecache
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LINECACHE_FIELDS = 4
"""Of an entry that is loaded: size, modification time (None: no file), lines, name."""

WORD_BYTES = 8
STATE_BYTES = 32
"""Of GMP's `gmp_randstate_t`: a number, which holds the state proper, the method and its table."""

Part = tuple[str, Any]

PROCESS = "(process)"
SOURCES = "(sources)"
DELETED = "(deleted)"
"""Parts by name; no variable of a cell has such a one."""

STATE_OFFSET = 24
"""Of GMP's random state within Sage's `randstate`: after reference count, type, method table."""

STATE_LIMBS = 313
"""8-byte limbs of GMP's Mersenne twister: 624 words of 4 bytes and an index."""

UNINTERESTING_VARIABLES = frozenset({"COLUMNS", "LINES", "PWD", "OLDPWD", "_"})


def first_parts(baseline_environment: dict[str, str]) -> list[Part]:
    """What must be set before the variables are read: where modules are found.

    Args:
        baseline_environment: Environment variables at the kernel's start.
    """
    now = dict(os.environ)
    changed = {k: v for k, v in now.items() if baseline_environment.get(k) != v}
    removed = [k for k in baseline_environment if k not in now]
    for name in UNINTERESTING_VARIABLES:
        changed.pop(name, None)
    try:
        folder = str(Path.cwd())
    except OSError:  # it was removed
        folder = ""
    process = {"path": list(sys.path), "folder": folder, "set": changed, "unset": removed}
    return [(PROCESS, process)]


def last_parts(python_random: Any) -> Iterable[tuple[str, Callable[[], Any]]]:
    """What is set after the variables; each with the function that reads it.

    The random states come last, for making objects may draw numbers.

    Args:
        python_random: State of `random` before the fork, which seeds it anew.
    """
    yield "(recursion limit)", sys.getrecursionlimit
    if "sage.repl.interpreter" in sys.modules:
        yield "(preparser)", _preparser
    if "sage.repl.rich_output.display_manager" in sys.modules:
        yield "(display)", _display
    if "sage.structure.proof.proof" in sys.modules:
        yield "(proof)", _proof
    if "numpy" in sys.modules:
        yield "(numpy print options)", sys.modules["numpy"].get_printoptions
    if "sage.symbolic.assumptions" in sys.modules:
        yield "(assumptions)", _assumptions
    yield "(python random state)", lambda: python_random
    if "numpy.random" in sys.modules:
        yield "(numpy random state)", lambda: sys.modules["numpy.random"].get_state()
    # The raw state first: reading the others may draw from it.
    if "sage.misc.randstate" in sys.modules:
        yield "(sage random state)", sage_random_state


def sources_of(names: Iterable[str]) -> dict[str, Any]:
    """The source texts of cells by the file names under which they were compiled."""
    found = {}
    for name in names:
        entry: Any = linecache.cache.get(name)
        if entry is not None and len(entry) == LINECACHE_FIELDS and entry[1] is None:
            found[name] = entry
    return found


def _preparser() -> dict[str, Any]:
    from sage.repl import interpreter, preparse

    return {
        "on": interpreter._do_preparse,  # noqa: SLF001 - no public way
        "implicit": preparse.implicit_mul_level,
        "prefix": preparse.numeric_literal_prefix,
    }


def _display() -> dict[str, Any]:
    from sage.repl.rich_output import get_display_manager

    preferences = get_display_manager().preferences
    return {str(name): getattr(preferences, str(name)) for name in preferences.available_options()}


def _proof() -> dict[str, bool]:
    from sage.structure.proof.proof import _proof_prefs

    return dict(_proof_prefs._require_proof)  # noqa: SLF001 - no public way for all of them


def _assumptions() -> list[Any]:
    from sage.symbolic.assumptions import assumptions

    return list(assumptions())


def sage_random_state() -> dict[str, Any]:
    """The states of Sage's generator and of those it has seeded.

    GMP's state has no reader; its memory is copied after a trial has shown that putting it back
    repeats the same numbers. Where it does not, a seed drawn from it stands for it. To be called
    in a process that draws no numbers of its own afterwards.
    """
    from sage.misc.randstate import current_randstate

    state = current_randstate()
    content = _tried_raw(state)
    found: dict[str, Any] = {
        "seed": int(state.seed()),
        "version": _sage_version(),
        "raw": content,
        "drawn": int(state.ZZ_seed()),
    }
    put_raw(state, content)
    # A library that this state has not seeded yet takes its seed from it when Sage first uses it.
    if "sage.libs.pari" in sys.modules:
        from sage.libs.pari import pari

        found["pari"] = str(pari("getrand()"))
        found["pari seeded"] = _untouched(state, content, state.set_seed_pari)
    if "sage.libs.gap.saved_workspace" in sys.modules:
        found["gap"] = _gap_state()
        found["gap seeded"] = _untouched(state, content, state.set_seed_libgap)
    if _untouched(state, content, state.python_random):
        found["python"] = state.python_random().getstate()
    return found


def _untouched(state: Any, content: bytes | None, call: Callable[[], object]) -> bool:
    """Whether a call does not draw from the state, which is put back afterwards."""
    call()
    if content is None or raw(state) == content:
        return True
    put_raw(state, content)
    return False


def _gap_state() -> list[list[int]]:
    from sage.libs.gap.libgap import libgap

    mersenne = libgap.eval("List(State(GlobalMersenneTwister)[1], INT_CHAR)")
    older = libgap.eval("State(GlobalRandomSource)")
    return [
        [int(item) for item in mersenne],
        [int(older[0]), *(int(item) for item in older[1])],
    ]


def _sage_version() -> str:
    from sage.version import version

    return str(version)


def raw(state: Any) -> bytes | None:
    """The memory of GMP's state; None where it does not look as expected."""
    place = _place(state)
    return None if place is None else ctypes.string_at(place, STATE_LIMBS * WORD_BYTES)


def put_raw(state: Any, content: bytes | None) -> bool:
    """Write back what `raw` gave; whether that was possible."""
    place = _place(state)
    if place is None or content is None or len(content) != STATE_LIMBS * WORD_BYTES:
        return False
    ctypes.memmove(place, content, len(content))
    return True


def _place(state: Any) -> int | None:
    if ctypes.sizeof(ctypes.c_void_p) != WORD_BYTES:
        return None
    if type(state).__basicsize__ < STATE_OFFSET + STATE_BYTES:
        return None
    base = id(state) + STATE_OFFSET
    if ctypes.c_int.from_address(base).value != STATE_LIMBS:
        return None
    return ctypes.c_void_p.from_address(base + WORD_BYTES).value


def _tried_raw(state: Any) -> bytes | None:
    content = raw(state)
    if content is None:
        return None
    first = state.ZZ_seed()
    put_raw(state, content)
    second = state.ZZ_seed()
    put_raw(state, content)
    return content if first == second else None
