"""Lists the user's variables, whatever their own methods do: a forked child looks at them.

The broker has a silent request evaluate
``__import__("sagebroker_inside.variables", fromlist=["listing"]).listing()``.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import reprlib
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from . import reviving
from .changes import user_names
from .glimpse import child, pieces
from .reducers import walk
from .wording import TooSlowError, one_line, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .alarm import Alarm

REPR_CHARACTERS = 120
"""Longest representation of a value."""

NAMES_LIMIT = 500
"""Most variables in one listing."""

SHOWING_LIMIT_S = 0.3
"""For showing one variable; more than any plain value takes."""

STALL_LIMIT_S = 0.6
"""After which a child is ended that has shown nothing new, for its own alarm to come first."""

LISTING_LIMIT_S = 3.0
"""For all; what is left then is listed without its value."""

CHILD_MEMORY_BYTES = 128 * 2**20
"""What a child may take beyond what it shares with the kernel."""

SIZED_ITEMS = 10_000
"""Most items of containers whose sizes are added up."""


@dataclass(frozen=True)
class Look:
    """What a child shall look at."""

    names: list[str]
    namespace: dict[str, Any]


def listing(pattern: str = "*", limit: int = NAMES_LIMIT) -> str:
    """The user's variables.

    Args:
        pattern: Of the names, as in a shell.
        limit: Most variables.

    Returns:
        JSON: ``variables``, each with ``name``, ``type``, ``bytes`` (an estimate; null where it
        could not be made) and ``repr`` (at most `REPR_CHARACTERS`; null where the object does not
        let itself be shown), and ``total``: how many there are.
    """
    namespace = reviving.live_namespace()
    names = fnmatch.filter(user_names(namespace, reviving.baseline()), pattern)
    chosen = names[: max(0, limit)]
    found = _look(Look(chosen, namespace))
    variables = [
        found.get(at) or {"name": name, "type": type_name(namespace.get(name))}
        for at, name in enumerate(chosen)
    ]
    for variable in variables:
        variable.setdefault("bytes", None)
        variable.setdefault("repr", None)
    return json.dumps({"variables": variables, "total": len(names)})


def _look(look: Look) -> dict[int, dict[str, Any]]:
    """What can be seen, by position; around what kills or stalls the child."""
    found: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + LISTING_LIMIT_S
    start = 0
    while start < len(look.names) and time.monotonic() < deadline:
        with child(partial(_tell, look, start), CHILD_MEMORY_BYTES) as pipe:
            for line in _lines(pipe, deadline):
                position, seen = json.loads(line)
                found[position] = seen
                start = position + 1
        start += 1  # the one that was being looked at; past the end if all were
    return found


def _lines(pipe: int, deadline: float) -> Iterator[bytes]:
    """Whole lines, until the child ends, stalls, or the time is over."""
    rest = b""
    for data in pieces(pipe, STALL_LIMIT_S, deadline):
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def _tell(look: Look, start: int, told: int, alarm: Alarm) -> None:
    """Look at the variables from a position on; done in the child."""
    for position in range(start, len(look.names)):
        name = look.names[position]
        seen = _describe(name, look.namespace[name], alarm)
        os.write(told, json.dumps([position, seen]).encode("ascii") + b"\n")


def _describe(name: str, value: Any, alarm: Alarm) -> dict[str, Any]:
    seen: dict[str, Any] = {"name": name, "type": type_name(value)}
    for key, look in (("bytes", _size), ("repr", _show)):
        # Of the user's objects anything may come, and MemoryError: the value is left out.
        with contextlib.suppress(Exception, TooSlowError), alarm.within(SHOWING_LIMIT_S):
            seen[key] = look(value)
    return seen


def _size(value: Any) -> int:
    held = getattr(value, "nbytes", None)
    if type(held) is int:
        return held
    return sum(sys.getsizeof(item, 0) for item in walk(value, attributes=True, limit=SIZED_ITEMS))


def _show(value: Any) -> str:
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxset = short.maxfrozenset = short.maxdict = 20
    short.maxstring = short.maxlong = REPR_CHARACTERS
    if type(value) in (list, tuple, set, frozenset, dict, str):
        return one_line(short.repr(value), REPR_CHARACTERS)
    return one_line(str(repr(value)), REPR_CHARACTERS)
