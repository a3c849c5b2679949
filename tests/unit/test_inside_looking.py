"""What is told of objects with Sage's own means, by a stand-in for these."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from sagebroker.inside.looking import ProblemError, completions, documentation, resolve, source

WARNING = "WARNING: the enclosing module is marked 'needs sage.x',\nso doctests may not pass.\n\n"


class LazyImport:
    """Named as Sage's."""

    def _get_object(self) -> object:
        return len


class Wrapped:
    """A function of a type that `inspect` does not know, whose source is told by Sage alone."""

    __module__ = __name__

    def __call__(self) -> None:
        """Do nothing."""

    def _sage_src_lines_(self) -> tuple[list[str], int]:
        return ["def wrapped():\n", "    pass\n"], 12


@pytest.fixture
def sage(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sage's module for inspection."""
    found: Any = types.ModuleType("sage.misc.sageinspect")
    found.sage_getdoc = lambda _, name: f"{WARNING}   About {name}.\n"
    found.sage_getdef = lambda _, name: f"{name}(shown by Sage)"
    found.sage_getsourcelines = lambda obj: obj._sage_src_lines_()
    found.sage_getfile = lambda _: "/of/the/decorator.py"
    for name in ("sage", "sage.misc"):
        package = types.ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found


def test_sages_documentation_is_told_without_its_warning_to_testers(sage: Any) -> None:
    _, text = documentation("len", {})
    assert text == "len(shown by Sage)\n\n   About len."
    sage.sage_getdef = lambda _, name: f"{name}( [noargspec] )"
    assert documentation("len", {})[1] == "   About len."


@pytest.mark.usefixtures("sage")
def test_plain_functions_tell_their_arguments_themselves() -> None:
    def f(a: int, *, b: int = 3) -> None: ...

    assert documentation("f", {"f": f})[1].startswith("f(a: 'int', *, b: 'int' = 3) -> 'None'\n")
    f._sage_argspec_ = None  # type: ignore[attr-defined]
    assert documentation("f", {"f": f})[1].startswith("f(shown by Sage)\n")


@pytest.mark.usefixtures("sage")
def test_source_that_sage_knows_has_the_file_of_its_module() -> None:
    title, text = source("w", {"w": Wrapped()})
    assert title.endswith(f"; {__file__}:12")
    assert text == "def wrapped():\n    pass\n"


def test_lazy_imports_are_what_they_stand_for() -> None:
    assert resolve("lazy", {"lazy": LazyImport()}) is len


def test_the_users_names_come_before_builtins_and_modules() -> None:
    assert resolve("len", {"len": 5}) == 5
    assert resolve("json", {"json": 6}) == 6
    assert resolve("len", {}) is len


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a()", "a[0]", "1a", "a;b"])
def test_what_is_no_dotted_name_is_not_looked_at(name: str) -> None:
    with pytest.raises(ProblemError) as caught:
        resolve(name, {"a": 1})
    assert caught.value.kind == "call"


def test_modules_that_are_neither_loaded_nor_pythons_own_are_not_imported(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_the_user.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProblemError) as caught:
        resolve("module_of_the_user.x", {})
    assert caught.value.kind == "unknown"


def test_too_many_completions_are_counted_and_the_case_may_differ() -> None:
    many = {f"item{at:05}": at for at in range(3000)}
    title, text = completions("ITEM", many)
    assert title == "3000 names begin with 'ITEM'"
    assert text.count("\n") == 1000
    assert text.endswith("(2000 more: give a longer beginning)")
