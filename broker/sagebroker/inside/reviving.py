"""What the pickles of a checkpoint call when they are read; its names are part of their format."""

from __future__ import annotations

import functools
import types
from typing import Any

_namespace: dict[str, Any] = {}
"""The live namespace of this kernel, told by `bind`."""

_baseline: dict[str, Any] = {}


def bind(namespace: dict[str, Any]) -> None:
    """Tell whose global variables restored functions shall see, as they are before any restore."""
    global _namespace, _baseline  # pickles can reach the module level only
    _namespace = namespace
    _baseline = dict(namespace)


def baseline() -> dict[str, Any]:
    """The global variables at the kernel's start."""
    return _baseline


def live_namespace() -> dict[str, Any]:
    """The global variables of the kernel that reads."""
    return _namespace


class NamespaceStandIn:
    """Is written in the namespace's place."""

    def __reduce__(self) -> Any:
        return live_namespace, ()


def same(value: Any) -> Any:
    """What was written in place of something that stood for it."""
    return value


def shell() -> Any:
    """The running IPython shell."""
    from IPython.core.getipython import get_ipython

    return get_ipython()


def reduce_cell(cell: types.CellType) -> Any:
    """A variable shared by closures; stays shared."""
    try:
        content = (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return types.CellType, ()
    return types.CellType, (), content, None, None, fill_cell


def fill_cell(cell: types.CellType, content: tuple[Any]) -> None:
    """Second half of `reduce_cell`."""
    (cell.cell_contents,) = content


def reduce_function(function: types.FunctionType, namespace: dict[str, Any]) -> Any:
    """A function of a cell; its globals are the reader's namespace."""
    state = {
        name: getattr(function, name)
        for name in (
            "__name__",
            "__qualname__",
            "__module__",
            "__doc__",
            "__defaults__",
            "__kwdefaults__",
            "__annotations__",
            "__type_params__",
        )
        if hasattr(function, name)
    }
    made = make_function, (function.__code__, namespace, function.__closure__)
    return (*made, (state, dict(function.__dict__)), None, None, fill_function)


def make_function(
    code: types.CodeType, namespace: dict[str, Any], closure: Any
) -> types.FunctionType:
    """First half of `reduce_function`."""
    return types.FunctionType(code, namespace, None, None, closure)


def fill_function(
    function: types.FunctionType, state: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Second half of `reduce_function`."""
    for name, value in state[0].items():
        setattr(function, name, value)
    function.__dict__.update(state[1])


def reduce_cached_function(function: Any) -> Any:
    """A function of a cell that remembers its values, with these."""
    made = type(function), (function.f,), (function.__name__, dict(function.cache))
    return (*made, None, None, fill_cached_function)


def fill_cached_function(function: Any, state: tuple[str, dict[Any, Any]]) -> None:
    """Second half of `reduce_cached_function`."""
    function.__name__ = state[0]
    function.cache.update(state[1])


def reduce_lru_cached(function: Any) -> Any:
    """A function of a cell under `functools.lru_cache`, without what it remembers."""
    return lru_cached, (function.__wrapped__, function.cache_parameters())


def lru_cached(function: Any, parameters: dict[str, Any]) -> Any:
    """See `reduce_lru_cached`."""
    return functools.lru_cache(**parameters)(function)


def vector(parent: Any, entries: list[Any], immutable: bool) -> Any:  # noqa: FBT001 - of a pickle
    """A vector of a free module."""
    made = parent(entries)
    if immutable:
        made.set_immutable()
    return made


def fill_attributes(obj: Any, attributes: dict[str, Any]) -> None:
    """Set what a constructor does not."""
    vars(obj).update(attributes)


def with_methods(expression: Any) -> Any:
    """An expression with the methods of its outermost function, as every calculation gives it."""
    opposite = -expression
    return -opposite


def in_parent(parent: Any, element: Any) -> Any:
    """An element of a parent from an equal one of another."""
    return parent(element)


def reduce_dead_element(element: Any) -> Any:
    """A value in the process of an interface, met as a cache within another object.

    Sage looks whether such a value is still valid before it uses it, and makes it again if not.
    """
    return dead_element, (type(element),)


def dead_element(kind: Any) -> Any:
    """A value of a process that has ended: one without a parent, as Sage has it."""
    from sage.interfaces.expect import ExpectElement

    element: Any = kind.__new__(kind)
    ExpectElement.__init__(element, None, None)
    return element
