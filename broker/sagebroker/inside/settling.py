"""Sets again what `surroundings` has saved."""

from __future__ import annotations

import importlib
import linecache
import os
import random
import sys
from typing import TYPE_CHECKING, Any

from .surroundings import put_raw

if TYPE_CHECKING:
    from collections.abc import Callable


def settle(name: str, value: Any) -> None:
    """Set one part again; names of a newer version are passed over.

    Raises:
        Exception: Whatever the library raises.
    """
    setter = SETTERS.get(name)
    if setter is not None:
        setter(value)


def _process(value: dict[str, Any]) -> None:
    sys.path[:] = value["path"]
    os.environ.update(value["set"])
    for name in value["unset"]:
        os.environ.pop(name, None)
    importlib.invalidate_caches()
    if value["folder"]:
        os.chdir(value["folder"])


def _sources(value: dict[str, Any]) -> None:
    linecache.cache.update(value)


def _preparser(value: dict[str, Any]) -> None:
    from sage.repl import interpreter, preparse

    interpreter._do_preparse = value["on"]  # noqa: SLF001 - `preparser()` does no more
    preparse.implicit_mul_level = value["implicit"]
    preparse.numeric_literal_prefix = value["prefix"]


def _display(value: dict[str, Any]) -> None:
    from sage.repl.rich_output import get_display_manager

    preferences = get_display_manager().preferences
    for name, choice in value.items():
        if getattr(preferences, name) != choice:
            setattr(preferences, name, choice)


def _proof(value: dict[str, bool]) -> None:
    from sage.structure.proof.proof import _proof_prefs

    _proof_prefs._require_proof.update(value)  # noqa: SLF001 - no public way for all of them


def _numpy_print_options(value: dict[str, Any]) -> None:
    import numpy as np

    np.set_printoptions(**value)


def _assumptions(value: list[Any]) -> None:
    if not value:
        return
    from sage.symbolic.assumptions import assume, assumptions

    known = {str(item) for item in assumptions()}
    assume(*[item for item in value if str(item) not in known])


def _numpy_random_state(value: Any) -> None:
    import numpy as np

    np.random.set_state(value)


def _sage_random_state(value: dict[str, Any]) -> None:
    from sage.misc.randstate import current_randstate, set_random_seed
    from sage.version import version

    set_random_seed(value["seed"])
    state = current_randstate()
    # Sage shall not seed a library later over what is set here, if it had done so before.
    if "pari" in value:
        from sage.libs.pari import pari

        if value["pari seeded"]:
            state.set_seed_pari()
        pari.setrand(pari(value["pari"]))
    if "gap" in value:
        if value["gap seeded"]:
            state.set_seed_libgap()
        _set_gap(value["gap"])
    generator = state.python_random() if "python" in value else None
    if generator is not None:
        generator.setstate(value["python"])
    if value["version"] != version or not put_raw(state, value["raw"]):
        set_random_seed(value["drawn"])


def _set_gap(states: list[list[int]]) -> None:
    from sage.libs.gap.libgap import libgap

    mersenne, (place, *older) = states
    libgap.eval(
        "function(codes) local state; state := List(codes, CHAR_INT); ConvertToStringRep(state);"
        " Reset(GlobalMersenneTwister, [state]); end"
    )(mersenne)
    libgap.eval("function(state) Reset(GlobalRandomSource, state); end")([place, older])


SETTERS: dict[str, Callable[[Any], None]] = {
    "(process)": _process,
    "(sources)": _sources,
    "(recursion limit)": sys.setrecursionlimit,
    "(preparser)": _preparser,
    "(display)": _display,
    "(proof)": _proof,
    "(numpy print options)": _numpy_print_options,
    "(assumptions)": _assumptions,
    "(python random state)": random.setstate,
    "(numpy random state)": _numpy_random_state,
    "(sage random state)": _sage_random_state,
}
