"""The rules of the tree that tools can check: where imports point, and how large things may be."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "broker" / "sagebroker"
MAX_MODULE_LINES = 400
MAX_TEST_LINES = 500
"""Tests of one subject stay together longer: they are read one by one."""
MAX_FUNCTION_LINES = 60
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}

MODULES = sorted(
    path
    for folder in ("broker", "tests", "examples", "scripts", "images")
    for path in (ROOT / folder).rglob("*.py")
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_point_downwards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the linter adds to it for good
    code = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert code == 0, capsys.readouterr().out


def too_long(path: Path) -> list[str]:
    """What is too long in a module, with its place."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    limit = MAX_TEST_LINES if path.is_relative_to(ROOT / "tests") else MAX_MODULE_LINES
    found = [f"{relative(path)}: {lines} lines"] if lines > limit else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{relative(path)}: {node.name} has {length} lines")
    return found


def test_no_module_and_no_function_is_too_long() -> None:
    assert [place for path in MODULES for place in too_long(path)] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not [relative(p) for p in MODULES if p.stem in NAMELESS]


def imported_names(path: Path) -> list[str]:
    """Top names of what a module imports; a leading dot for its own folder's."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or "").split(".")[0])
    return names


def test_what_runs_in_the_container_imports_nothing_of_the_broker() -> None:
    for path in (PACKAGE / "inside").glob("*.py"):
        outside = [n for n in imported_names(path) if n == "sagebroker" or n.startswith("..")]
        assert not outside, relative(path)


def test_every_product_module_says_what_it_is_for() -> None:
    silent = [
        relative(path)
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent
