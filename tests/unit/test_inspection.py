"""What the broker asks a kernel about names, and what it takes for an answer."""

from __future__ import annotations

import ast
import json
from typing import get_args

import pytest

from sagebroker.kernel.inspection import (
    CLOSE_LIMIT,
    NAME_CHARACTERS,
    TITLE_CHARACTERS,
    Inspected,
    Problem,
    ProblemKind,
    Question,
    inspect_expression,
    parse_inspected,
)
from sagebroker.session.inspection import problem_error


def test_expressions_pass_their_arguments_on_whatever_these_are() -> None:
    hostile = "'), __import__('os')._exit(1) #\n\"\ud800"
    (call,) = ast.parse(inspect_expression(Question(hostile, "search", 3, 50))).body
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    values = [ast.literal_eval(argument) for argument in call.value.args]
    assert values == [hostile, "search", 3, 50]


def test_an_answer_is_taken_within_its_limits() -> None:
    forged = {"title": "a\nb" + "x" * 1000, "text": "t" * 100, "total": 100}
    found = parse_inspected(json.dumps(forged), 10)
    assert isinstance(found, Inspected)
    assert found.title.startswith("a bx")
    assert len(found.title) == TITLE_CHARACTERS
    assert (found.text, found.total) == ("t" * 10, 100)


def test_a_problem_is_taken_within_its_limits() -> None:
    forged = {"problem": "unknown", "reason": "r\n" * 900, "close": ["n" * 900, 5] + ["a"] * 50}
    found = parse_inspected(json.dumps(forged), 10)
    assert isinstance(found, Problem)
    assert "\n" not in found.reason
    assert found.close[0] == "n" * NAME_CHARACTERS
    assert len(found.close) < CLOSE_LIMIT + 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "junk",
        "[]",
        "{}",
        "[" * 100_000,
        '{"title": "t", "text": "x"}',
        '{"title": "t", "text": "x", "total": true}',
        '{"title": "t", "text": "x", "total": -1}',
        '{"title": "t", "text": "x", "total": 1e400}',
        '{"title": 1, "text": "x", "total": 1}',
        '{"problem": "other", "reason": "", "close": []}',
        '{"problem": [], "reason": "", "close": []}',
        '{"problem": "unknown", "reason": "", "close": "abc"}',
    ],
)
def test_anything_else_is_no_answer(answer: str) -> None:
    assert parse_inspected(answer, 100) is None


@pytest.mark.parametrize("kind", get_args(ProblemKind))
@pytest.mark.parametrize("detail", ["doc", "search"])
def test_each_problem_is_told_with_the_name_and_what_to_do(kind: ProblemKind, detail: str) -> None:
    problem = Problem(kind=kind, reason="ValueError: no", close=("able",))
    error = problem_error(Question("abel", "search" if detail == "search" else "doc"), problem)
    assert error.code == "inspection"
    assert "'abel'" in error.message
    assert error.hint
    assert "\n" not in str(error)
