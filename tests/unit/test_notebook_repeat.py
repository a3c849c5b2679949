"""Which cells a replay cannot repeat, and what the code of a cell says about that."""

from __future__ import annotations

from typing import Any

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output

from sagebroker.notebook.repeat import MAX_REASONS, judge, mark
from sagebroker.notebook.source import statements


def cell(
    number: int,
    code: str,
    *,
    shows: str = "1",
    raises: str = "",
    count: int | None = None,
    **about: Any,
) -> NotebookNode:
    """A cell that has shown a value, or raised something."""
    outputs = [new_output("execute_result", data={"text/plain": shows})] if shows else []
    if raises:
        outputs = [new_output("error", ename=raises, evalue="", traceback=[])]
    told = {"number": number, "status": "ok", "started": "2026-01-02T03:04:05+00:00", **about}
    made: NotebookNode = new_code_cell(
        code,
        execution_count=number if count is None else count,
        outputs=outputs,
        metadata={"sagebroker": told},
    )
    return made


def verdicts(*given: str | NotebookNode) -> dict[int, tuple[str, str]]:
    """Mode and first reason of the cells that are not repeated, by number from 1."""
    cells = [
        one if isinstance(one, NotebookNode) else cell(n, one) for n, one in enumerate(given, 1)
    ]
    judge(cells)
    told = {c.metadata.sagebroker.number: c.metadata.sagebroker.get("replay") for c in cells}
    return {n: (found["mode"], found["reasons"][0]) for n, found in told.items() if found}


def names(code: str, kind: str) -> set[str]:
    return set().union(*(getattr(statement, kind) for statement in statements(code)))


@pytest.mark.parametrize(
    ("code", "bound"),
    [
        ("R.<x, y> = QQ[]", {"R", "x", "y"}),
        ("f(t) = t^2 + 1", {"f", "t"}),
        ("R.<x, y> = QQ[]; f(t) = t^2 + 1; z = 1", {"R", "x", "y", "f", "t", "z"}),
        ("L = [1..5] + [1, 3, .., 9]", {"L"}),
        ("a = K.0 + 12.sqrt() + 3r + 1.5R + 1e5 + 2.e3", {"a"}),
        ("v = A \\ b", {"v"}),
        ("%time y = 5", {"y"}),
        ("%%time\nz = 1", {"z"}),
        ("x = 1  # R.<y> = '\ns = 'it''s'", {"x", "s"}),
        ("s = '''R.<a> = \n b = 1'''", {"s"}),
        ("def f(a):\n    b = a\n    return b\nclass C:\n    d = 1", {"f", "C"}),
        ("for i in range(3):\n    q = i", {"i", "q"}),
        ("import numpy as np, os.path\nfrom math import pi as p", {"np", "os", "p"}),
        ("factor?\n?factor\nx = 1", {"x"}),
        ("a, (b, *c) = 1, (2, 3)", {"a", "b", "c"}),
        ("[k for k in range(3)]", set()),
    ],
)
def test_the_names_that_sage_code_binds_are_found(code: str, bound: set[str]) -> None:
    assert names(code, "binds") == bound


@pytest.mark.parametrize(
    ("code", "read"),
    [
        ("lambda t: t + q", {"q"}),
        ("def h(a, *b, c=d, **e):\n    z = a + c\n    return z + w", {"d", "w"}),
        ("x += y", {"x", "y"}),
        ("{k: v for k, v in P.items() if k in S}", {"P", "S"}),
        ("f'{a}'", {"a"}),
    ],
)
def test_the_names_that_a_statement_needs_are_found(code: str, read: set[str]) -> None:
    assert names(code, "reads") == read


def test_code_that_is_no_python_is_looked_at_word_by_word() -> None:
    code = "n = 1\ncdef int f(int m): return random_element(m)"
    assert "random_element" in names(code, "reads")
    assert verdicts(code)[1] == ("differs", "depends on chance: random_element")


def test_deep_code_is_no_reason_to_fail() -> None:
    assert verdicts("(" * 500 + ")" * 500, "x = " + "-" * 100_000 + "1") == {}


def test_plain_mathematics_is_repeated() -> None:
    codes = (
        "x = var('x'); integrate(sin(x), x)",
        "E = EllipticCurve('37a'); E.rank()",
        "plot(sin(x), (x, 0, 1))",
        "open('a', 'w').write('1')",
        "open('a').read(), open('/usr/share/dict/words').read()",
        "set_random_seed(0); ZZ.random_element()",
        "import time, random; time.sleep(1)",
        "sample = 5",
        "sample + 1",
    )
    assert verdicts(*codes) == {}


@pytest.mark.parametrize(
    ("code", "mode", "reason"),
    [
        ("random_matrix(ZZ, 3)", "differs", "depends on chance: random_matrix"),
        ("GF(7).random_element()", "differs", "depends on chance: .random_element"),
        ("np.random.rand(3)", "differs", "depends on chance: np.random.rand"),
        ("graphs.RandomGNP(5, .5)", "differs", "depends on chance: graphs.RandomGNP"),
        (
            "set_random_seed(0); np.random.rand(3)",
            "differs",
            "depends on chance: np.random.rand",
        ),
        (
            "from random import random as r, choice\nset_random_seed(0)\nchoice([1, 2])",
            "differs",
            "depends on chance: choice",
        ),
        ("import time; time.time()", "differs", "depends on the time: time.time"),
        ("walltime()", "differs", "depends on the time: walltime"),
        ("%timeit factor(100)", "differs", "tells how long it took"),
        ("x = input('?')", "skip", "asks for input: input()"),
        (
            "open('data.csv').read()",
            "skip",
            "reads the file data.csv, which no earlier cell writes",
        ),
        ("load('/files/a.sage')", "skip", "reads the file a.sage, which no earlier cell writes"),
        ("%run b.py", "skip", "reads the file b.py, which no earlier cell writes"),
        (
            "load(p)",
            "skip",
            "reads a file whose name is computed, which no earlier cell writes",
        ),
        ("import os; os.listdir()", "differs", "looks at which files there are"),
        ("!ls", "differs", "runs a shell command, which is not looked into"),
        ("id(1)", "differs", "depends on the process: id"),
    ],
)
def test_what_cannot_be_repeated_is_told_with_its_reason(code: str, mode: str, reason: str) -> None:
    assert verdicts(code) == {1: (mode, reason)}


def test_what_depends_on_such_a_cell_is_followed_until_the_name_is_bound_anew() -> None:
    found = verdicts(
        cell(1, "r = random()", shows=""),
        "s = r + 1; s",
        "t = 5\nt",
        "def f(): return s",
        "f()",
        "s = 0; r = 1; f = None",
        "r + s",
    )
    assert found == {
        2: ("differs", "uses r of cell 1, which may have another value"),
        4: ("differs", "uses s of cell 2, which may have another value"),
        5: ("differs", "uses f of cell 4, which may have another value"),
    }


def test_what_needs_a_cell_that_is_not_run_is_not_run_either() -> None:
    found = verdicts(
        "n = 0; L = []",
        cell(2, "while True: n += 1; L.append(n)", status="interrupted", shows=""),
        "n + 1",
        "len(L)",
        "x = input()",
        "x^2",
        "n = 3; n",
    )
    assert found == {
        2: ("skip", "was interrupted"),
        3: ("skip", "uses n of cell 2, which is not run again"),
        4: ("skip", "uses L of cell 2, which is not run again"),
        5: ("skip", "asks for input: input()"),
        6: ("skip", "uses x of cell 5, which is not run again"),
    }


def test_cells_that_left_nothing_do_not_spoil_those_after_them() -> None:
    found = verdicts(
        "n = 1",
        cell(2, "n = 2", status="interrupted", started=None, shows="", count=0),
        "n",
    )
    assert found == {2: ("skip", "was not run")}


def test_what_a_kernel_after_a_death_had_may_be_older() -> None:
    found = verdicts(
        "n = 1; m = 2; k = 3",
        cell(2, "n = 3; crash()", status="died", variables_kept=False, shows=""),
        "n",
        "m = 4; m",
        "2 + 2",
    )
    assert found == {
        2: ("skip", "ended with its kernel"),
        3: ("differs", "uses n as the new kernel after cell 2 had it, perhaps an older value"),
    }


def test_prompt_numbers_and_the_last_value_are_used_only_where_they_are_the_same() -> None:
    assert verdicts("1", "_ + Out[1] + _1") == {}
    found = verdicts("random()", "_ + 1", "2", "_ + 3")
    assert found.keys() == {1, 2}
    asked = verdicts("input()", "2", "Out[2]")
    assert asked[3] == ("differs", "uses Out: prompt numbers are others in a replay")


def test_a_name_that_a_new_kernel_lacked_is_told() -> None:
    lacking = cell(3, "a", raises="NameError", count=1)
    assert verdicts("a = 1", "a", lacking) == {
        3: ("differs", "lacked a name, since its kernel was a new one")
    }
    assert verdicts("a = 1", cell(2, "b", raises="NameError")) == {}


def test_a_new_kernel_has_no_seed() -> None:
    again = cell(2, "ZZ.random_element()", count=1)
    assert verdicts("set_random_seed(1)", again).keys() == {2}


def test_outputs_that_no_two_kernels_show_alike_are_told() -> None:
    shown = cell(1, "object()", shows="<object object at 0x7f00deadbeef>")
    assert verdicts(shown) == {1: ("differs", "shows an address in memory")}
    cut = cell(1, "2", is_incomplete=True)
    assert verdicts(cut) == {1: ("differs", "part of its output was not kept")}


def test_a_cell_that_shows_nothing_differs_in_nothing() -> None:
    assert verdicts(cell(1, "r = random()", shows="")) == {}


def test_the_tags_are_those_that_jupyters_tools_know() -> None:
    failing, asking = cell(1, "1/0", raises="ZeroDivisionError"), cell(2, "input()")
    drawing = cell(3, "random()", raises="ValueError")
    judge([failing, asking, drawing])
    assert failing.metadata.tags == ["raises-exception"]
    assert asking.metadata.tags == ["skip-execution", "nbval-skip"]
    assert drawing.metadata.tags == ["nbval-ignore-output", "raises-exception"]


def test_the_stronger_mode_stays_and_reasons_are_few_and_told_once() -> None:
    one = cell(1, "x")
    for n in range(MAX_REASONS + 3):
        mark(one, "differs", f"reason {n // 2}")
    mark(one, "skip", "stopped")
    mark(one, "differs", "reason 0")
    told = one.metadata.sagebroker.replay
    assert told["mode"] == "skip"
    assert told["reasons"] == [f"reason {n}" for n in range(4)] + ["stopped"]
    assert one.metadata.tags == ["skip-execution", "nbval-skip"]
