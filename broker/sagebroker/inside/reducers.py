"""How objects are taken apart that pickle would refuse, or would take apart wrongly."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any

from . import reviving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REDUCED_TO_A_CALL = 2
"""Length of a reduction to a function and its arguments."""

WALK_LIMIT = 100_000
"""Most items looked at in the search for values of other processes in plain containers."""


class UnsavableError(pickle.PicklingError):
    """What is to be saved lives in another process or in the system."""


def reduce_special(obj: Any) -> Any:
    """The reduction of an object that needs one of ours, else NotImplemented for its whole type.

    Raises:
        UnsavableError: It cannot be saved.
    """
    if isinstance(obj, functools._lru_cache_wrapper):  # noqa: SLF001 - the type has no other name
        return _reduce_named(obj, reviving.reduce_lru_cached, obj.__wrapped__)
    for module, kind, reduce in SPECIAL:
        if _is_of(obj, module, kind):
            return reduce(obj)
    return NotImplemented


def _plainly(obj: Any) -> Any:
    """The reduction that the object itself offers."""
    return obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _reduce_named(obj: Any, reduce: Callable[[Any], Any], function: Any) -> Any:
    """By value if the function was defined in a cell, where its name is all that it offers."""
    if getattr(function, "__module__", "") == "__main__":
        return reduce(obj)
    return _plainly(obj)


def _reduce_lazy_import(obj: Any) -> Any:
    return reviving.same, (obj._get_object(),)  # noqa: SLF001 - no public way


def _reduce_shell(obj: Any) -> Any:
    del obj
    return reviving.shell, ()


def _reduce_cached_function(obj: Any) -> Any:
    if type(obj).__name__ != "CachedFunction":  # those of methods know their instance
        return _plainly(obj)
    return _reduce_named(obj, reviving.reduce_cached_function, obj.f)


def _reduce_cached_method(obj: Any) -> Any:
    return type(obj), (obj.__get__(None, object).f, obj.__name__)


def _reduce_lazy_attribute(obj: Any) -> Any:
    return type(obj), (obj.f,)


def _reduce_expression(obj: Any) -> Any:
    # Sage's own reduction forgets the parent, so that f(x) = x^2 would come back as no function,
    # and takes the wrong class for those with methods of their function, as `piecewise`.
    ring = sys.modules["sage.symbolic.ring"].SR
    if obj.parent() is not ring:
        return reviving.in_parent, (obj.parent(), ring(obj))
    kind = sys.modules["sage.symbolic.expression"].Expression
    if type(obj) is kind:
        return _plainly(obj)
    plain = kind.__new__(kind)
    plain.__setstate__(obj.__getstate__())
    return reviving.with_methods, (plain,)


def _reduce_vector(obj: Any) -> Any:
    # Sage's own reduction forgets the class: a symbolic vector would lose its methods.
    if type(obj).__name__ == "FreeModuleElement_generic_dense":
        return _plainly(obj)
    return reviving.vector, (obj.parent(), obj.list(), obj.is_immutable())


def _reduce_sequence(obj: Any) -> Any:
    # Sage's own reduction forgets how it is displayed.
    reduced = _plainly(obj)
    if len(reduced) != REDUCED_TO_A_CALL:
        return reduced
    return (*reduced, dict(vars(obj)), None, None, reviving.fill_attributes)


def _reduce_maxima(obj: Any) -> Any:
    # Sage's own reduction goes by its symbolic ring, where variables have other names.
    return reviving.in_parent, (obj.parent(), repr(obj))


def reduce_sage_class(obj: type) -> Any:
    """The reduction of one of Sage's dynamic classes, else NotImplemented.

    They know how to be made again; taken by value they would come back as other classes.
    """
    reduce = getattr(type(obj), "__reduce__", type.__reduce__)
    if reduce is type.__reduce__ or not type(obj).__module__.startswith("sage."):
        return NotImplemented
    if obj.__module__ == "__main__" or _looked_up(obj) is obj:
        return NotImplemented
    reduced = reduce(obj)
    return reduced if isinstance(reduced, tuple) else NotImplemented


def _looked_up(obj: type) -> Any:
    found: Any = sys.modules.get(obj.__module__)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found


def _reduce_stream(obj: io.IOBase) -> Any:
    if type(obj) in (io.BytesIO, io.StringIO):
        return _plainly(obj)
    raise UnsavableError(f"a file handle ({type(obj).__name__})")


def _reduce_interface(obj: Any) -> Any:
    if runs(obj):
        raise UnsavableError(f"its state is that of the running {name_of(obj)} process")
    return _plainly(obj)


def _is_of(obj: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    # By its type, for a lazy import answers isinstance() by importing what it stands for.
    return loaded is not None and issubclass(type(obj), getattr(loaded, name))


def runs(value: Any) -> bool:
    """Whether a value is an interface whose process has been started."""
    if not _is_of(value, "sage.interfaces.expect", "Expect"):
        return False
    return getattr(value, "_expect", None) is not None


def name_of(interface: Any) -> str:
    """Of the program behind an interface."""
    return str(interface.name())


def refuse_foreign_values(value: Any, namespace: dict[str, Any]) -> None:
    """Look for values of other processes in a variable and the plain containers in it.

    Deeper in, such values are caches that Sage makes again when they are dead.

    Args:
        value: Of the variable.
        namespace: The user's global variables, which are not looked into.

    Raises:
        UnsavableError: There is one.
    """
    if "sage.interfaces.expect" not in sys.modules:
        return
    for item in walk(value, beyond=namespace):
        if _is_of(item, "sage.interfaces.expect", "ExpectElement"):
            raise UnsavableError(f"its value lives in the running {name_of(item.parent())} process")


def walk(
    value: Any, *, beyond: Any = None, attributes: bool = False, limit: int = WALK_LIMIT
) -> Iterator[Any]:
    """The value and what is in it as far as it is made of plain containers.

    Args:
        value: Where to begin.
        beyond: What is not looked into.
        attributes: Whether to look into the attributes of objects, too.
        limit: Most items looked at.
    """
    seen = {id(beyond)}
    queue = [value]
    while queue and len(seen) < limit:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        kind = type(item)
        if kind in (list, tuple, set, frozenset):
            queue.extend(item)
        elif kind is dict:
            queue.extend(item.keys())
            queue.extend(item.values())
        elif attributes and not isinstance(item, (type, types.ModuleType, types.FunctionType)):
            inner = getattr(item, "__dict__", None)
            if type(inner) is dict:
                queue.append(inner)


def running_interfaces() -> Iterator[tuple[str, Any]]:
    """Sage's own interfaces whose processes run, by the names under which Sage offers them."""
    found: dict[int, str] = {}
    for module_name in [name for name in sys.modules if name.startswith("sage.interfaces.")]:
        for name, value in list(vars(sys.modules[module_name]).items()):
            if runs(value) and id(value) not in found:
                found[id(value)] = name
                yield name, value


def is_same_import(first: Any, second: Any) -> bool:
    """Whether the first is a lazy import that stands for the second."""
    if not _is_of(first, "sage.misc.lazy_import", "LazyImport"):
        return False
    return first._get_object() is second  # noqa: SLF001 - no public way


SPECIAL: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    # First, for a lazy import is nothing else, whatever it stands for.
    ("sage.misc.lazy_import", "LazyImport", _reduce_lazy_import),
    ("io", "IOBase", _reduce_stream),
    ("IPython.core.interactiveshell", "InteractiveShell", _reduce_shell),
    ("sage.interfaces.maxima_lib", "MaximaLibElement", _reduce_maxima),
    ("sage.interfaces.expect", "ExpectElement", reviving.reduce_dead_element),
    ("sage.interfaces.expect", "Expect", _reduce_interface),
    ("sage.misc.cachefunc", "CachedMethod", _reduce_cached_method),
    ("sage.misc.cachefunc", "CachedFunction", _reduce_cached_function),
    ("sage.misc.lazy_attribute", "_lazy_attribute", _reduce_lazy_attribute),
    ("sage.symbolic.expression", "Expression", _reduce_expression),
    ("sage.modules.free_module_element", "FreeModuleElement_generic_dense", _reduce_vector),
    ("sage.structure.sequence", "Sequence_generic", _reduce_sequence),
)
"""Module, class and reduction of what has one of ours; looked at only where they are loaded."""
