"""What can be said about the object that a name stands for: done in a child, see `inspecting`.

No call is ever evaluated: names are followed by attributes only.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import importlib
import inspect
import keyword
import linecache
import pkgutil
import re
import sys
import types
from typing import TYPE_CHECKING, Any

from .wording import type_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAMES_LIMIT = 1000
"""Most completions told."""

CLOSE_LIMIT = 6
"""Most similar names told of one that is not known."""

_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_BEGINNING = re.compile(r"(?:((?:[^\W\d]\w*\.)*[^\W\d]\w*)\.)?([^\W\d]\w*)?")

_DOCTEST_WARNING = re.compile(r"\A\s*WARNING: the enclosing module [^\n]*\n[^\n]*may not pass\.\n")
"""Is about running Sage's own tests, and no part of the documentation."""

_ROUTINES = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)

_NO_SIGNATURE = "[noargspec]"
"""In what Sage shows where it knows no signature."""


class ProblemError(Exception):
    """Why there is nothing to tell.

    Args:
        kind: ``call`` (no name, but something to be evaluated), ``unknown``, ``raised``, ``slow``
            or ``nothing`` (there is no source).
        reason: In words, where the kind does not say it all.
        close: Names like the one that is unknown.
    """

    def __init__(self, kind: str, *, reason: str = "", close: Iterable[str] = ()) -> None:
        super().__init__(kind)
        self.kind, self.reason, self.close = kind, reason, list(close)

    def told(self) -> dict[str, Any]:
        """As a part of the answer."""
        return {"problem": self.kind, "reason": self.reason, "close": self.close}


def documentation(name: str, namespace: Mapping[Any, Any]) -> tuple[str, str]:
    """Title, and signature with docstring. Raises `ProblemError`."""
    name = name.strip().rstrip("?")
    obj = resolve(name, namespace)
    last = name.rpartition(".")[2]
    sage = _sageinspect()
    text = sage.sage_getdoc(obj, last) if sage else inspect.getdoc(obj)
    text = _DOCTEST_WARNING.sub("", text).strip("\n") if isinstance(text, str) else ""
    lines = [line for line in (_signature(obj, last, sage),) if line]
    return _title(name, obj), "\n\n".join([*lines, text or "(It has no documentation.)"])


def source(name: str, namespace: Mapping[Any, Any]) -> tuple[str, str]:
    """Title with file and line, and the source. Raises `ProblemError`."""
    name = name.strip().rstrip("?")
    obj = resolve(name, namespace)
    for look in _source_lookers(obj):
        # Each raises what it likes where it knows no source.
        with contextlib.suppress(Exception):
            file, lines, first = look()
            if lines:
                return f"{_title(name, obj)}; {file}:{max(first, 1)}", "".join(lines)
    raise ProblemError("nothing")


def completions(name: str, namespace: Mapping[Any, Any]) -> tuple[str, str]:
    """Title, and the names with a beginning, one a line. Raises `ProblemError`."""
    matched = _BEGINNING.fullmatch(name.strip())
    if matched is None:
        raise ProblemError("call")
    base, beginning = matched[1] or "", matched[2] or ""
    known = _attributes(resolve(base, namespace)) if base else _globals(namespace)
    found = [one for one in known if one.startswith(beginning)]
    found = found or [one for one in known if one.casefold().startswith(beginning.casefold())]
    found = [one for one in found if beginning.startswith("_") or not one.startswith("_")]
    if not found:
        raise _unknown(beginning, known, before=base)
    dot = f"{base}." if base else ""
    lines = [dot + one for one in found[:NAMES_LIMIT]]
    if len(found) > NAMES_LIMIT:
        lines.append(f"({len(found) - NAMES_LIMIT} more: give a longer beginning)")
    noun = "name begins" if len(found) == 1 else "names begin"
    return f"{len(found)} {noun} with {name.strip()!r}", "\n".join(lines)


def resolve(name: str, namespace: Mapping[Any, Any]) -> Any:
    """The object that a dotted name stands for: the user's, a builtin, or one of a module.

    Raises:
        ProblemError: It is no dotted name, or there is no such object.
        Exception: Whatever an attribute of the user's raises.
    """
    if _NAME.fullmatch(name) is None:
        raise ProblemError("call")
    first, *rest = name.split(".")
    if first in namespace:
        obj = namespace[first]
    elif first in vars(builtins):
        obj = vars(builtins)[first]
    elif (obj := _importable(first)) is None:
        raise _unknown(first, _globals(namespace))
    obj = _loaded(obj)
    for at, part in enumerate(rest, start=1):
        try:
            obj = _loaded(_attribute(obj, part, is_last=at == len(rest)))
        except AttributeError:
            inner = _imported(f"{obj.__name__}.{part}") if inspect.ismodule(obj) else None
            if inner is None:
                before = ".".join([first, *rest[: at - 1]])
                raise _unknown(part, _attributes(obj), before=before) from None
            obj = inner
    return obj


def _attribute(obj: Any, name: str, *, is_last: bool) -> Any:
    """An attribute; the property itself rather than its value, where nothing is asked of that."""
    if is_last:
        found = inspect.getattr_static(type(obj), name, None)
        if isinstance(found, property):
            return found
    return getattr(obj, name)


def _loaded(obj: Any) -> Any:
    """What one of Sage's lazy imports stands for."""
    return obj._get_object() if type_name(obj) == "LazyImport" else obj  # noqa: SLF001 - Sage's way


def _importable(name: str) -> Any:
    """A module that is imported already or is Python's own; None where there is none."""
    is_known = name in sys.modules or name in sys.stdlib_module_names
    return _imported(name) if is_known else None


def _imported(name: str) -> Any:
    """A module; None where there is none."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


def _unknown(part: str, known: Iterable[str], *, before: str = "") -> ProblemError:
    names = sorted({*known})
    close = difflib.get_close_matches(part, names, n=CLOSE_LIMIT, cutoff=0.7)
    folded = part.casefold()
    close += [one for one in names if one.casefold() == folded and one not in close]
    dot = f"{before}." if before else ""
    return ProblemError("unknown", close=[dot + one for one in close[:CLOSE_LIMIT]])


def _globals(namespace: Mapping[Any, Any]) -> list[str]:
    return sorted({n for n in namespace if isinstance(n, str)} | {*vars(builtins), *keyword.kwlist})


def _attributes(obj: Any) -> list[str]:
    told: list[Any] = dir(obj)
    names = {name for name in told if isinstance(name, str)}
    if inspect.ismodule(obj) and hasattr(obj, "__path__"):
        names |= {module.name for module in pkgutil.iter_modules(obj.__path__)}
    return sorted(names)


def _title(name: str, obj: Any) -> str:
    module = getattr(obj, "__module__", None)
    where = f" of {module}" if isinstance(module, str) and module else ""
    if inspect.ismodule(obj):
        return f"{name}: module"
    if inspect.isclass(obj):
        return f"{name}: class{where}"
    if _is_routine(obj):
        return f"{name}: {type_name(obj).replace('_', ' ')}{where}"
    return f"{name}: object of the class {type_name(obj)} of {type(obj).__module__}"


def _is_routine(obj: Any) -> bool:
    # Cython's functions and Sage's cached ones are of types that `inspect` does not know.
    return isinstance(obj, _ROUTINES) or type_name(obj).startswith(("cython_function", "Cached"))


def _sageinspect() -> Any:
    """Sage's own means of inspection; None in a kernel without Sage."""
    return _imported("sage.misc.sageinspect") if "sage" in sys.modules else None


def _signature(obj: Any, name: str, sage: Any) -> str:
    """How it is called; empty where nobody knows."""
    with contextlib.suppress(Exception):
        if not callable(obj):
            return ""
        # Of an object Sage would show how its class is made.
        called = obj if inspect.isclass(obj) or _is_routine(obj) else obj.__call__
        is_plain = inspect.isfunction(called) or inspect.ismethod(called)
        # Sage shifts the defaults of arguments that are given by name only.
        if sage is None or (is_plain and not hasattr(called, "_sage_argspec_")):
            return name + str(inspect.signature(called))
        shown = sage.sage_getdef(called, name)
        return "" if _NO_SIGNATURE in shown else str(shown)
    return ""


def _source_lookers(obj: Any) -> list[Any]:
    """Ways to a source, the best first: each returns file, lines and the number of the first."""

    def ours(about: Any) -> tuple[str, list[str], int]:
        lines, first = inspect.getsourcelines(about)
        return str(inspect.getsourcefile(about)), lines, first

    def sages() -> tuple[str, list[str], int]:
        sage = _sageinspect()
        found = sage.sage_getsourcelines(obj)
        file = sage.sage_getfile(obj)
        if hasattr(obj, "_sage_src_lines_"):
            # Of what is decorated Sage names the decorator's file.
            own = getattr(sys.modules.get(obj.__module__), "__file__", None) or ""
            file = own if own.endswith(".py") else file
        return str(file), found[0], found[1]

    lookers: list[Any] = [lambda: ours(obj)]
    if isinstance(obj, property):
        lookers.append(lambda: ours(obj.fget))
    if hasattr(obj, "_sage_src_lines_"):
        return [*lookers, sages]
    # Sage names the wrong file for objects of a class that inherits from one in Cython.
    if not _is_routine(obj):
        lookers.append(lambda: ours(type(obj)))
    return [*lookers, lambda: _class_of_cell(obj if inspect.isclass(obj) else type(obj)), sages]


def _class_of_cell(cls: type) -> tuple[str, list[str], int]:
    """The source of a class that a cell defined: its module has no file, but its methods have."""
    for method in vars(cls).values():
        if not inspect.isfunction(method):
            continue
        file = method.__code__.co_filename
        lines = linecache.getlines(file)
        begins = re.compile(rf"\s*class\s+{re.escape(cls.__name__)}\b")
        for at, line in enumerate(lines):
            if begins.match(line):
                return file, inspect.getblock(lines[at:]), at + 1
    raise OSError("no method tells a file")
