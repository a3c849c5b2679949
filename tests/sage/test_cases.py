"""Sage's answers through one real MCP client over stdio: the language is whole, values are exact.

``tests/data/sage_cases.json`` holds the cases that were given; ``more_sage_cases.json`` those of this
project. ``compare`` says how an answer is compared (see `COMPARE`); where ``code`` is a list, its
cells run one after the other and ``expected`` belongs to the last or, as a list, to each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent
from tests.interaction.reading import is_error, parts, result_text, text_of

pytestmark = pytest.mark.sage

HANG_GUARD_S = 120.0
"""Bounds a cell that hangs; the slowest of these takes 4 s."""

DATA = Path(__file__).parent.parent / "data"


def load_cases() -> list[Any]:
    cases = []
    for name in ("sage_cases.json", "more_sage_cases.json"):
        for case in json.loads((DATA / name).read_text(encoding="utf-8")):
            shown = case.get("name") or str(case["code"]).replace("\n", " ")[:50]
            cases.append(pytest.param(case, id=shown))
    return cases


async def run(client: Client, code: str) -> CallToolResult:
    with anyio.fail_after(HANG_GUARD_S):
        found = await client.call_tool("sage_run", {"code": code, "max_chars": 50_000})
    assert isinstance(found, CallToolResult)
    return found


def exact(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert not is_error(answer)
    assert result_text(answer) == case["expected"]


def repl(answer: CallToolResult, case: dict[str, Any]) -> None:
    """As Sage's own prompt prints it; blanks at line ends do not count."""
    shown = [line.rstrip() for line in result_text(answer).splitlines()]
    assert shown == [line.rstrip() for line in case["expected"].splitlines()]


def numeric(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert float(result_text(answer)) == pytest.approx(
        float(case["expected"]), rel=case["tol"], abs=case["tol"]
    )


def as_set(answer: CallToolResult, case: dict[str, Any]) -> None:
    """Elements of a flat list in any order."""

    def elements(text: str) -> Counter[str]:
        assert text.startswith("[")
        assert text.endswith("]")
        return Counter(text[1:-1].split(", "))

    assert elements(result_text(answer)) == elements(case["expected"])


def error(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert is_error(answer)
    [shown] = parts(answer, "error")
    assert shown.splitlines()[0] == case["expected"]


def error_prefix(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert is_error(answer)
    [shown] = parts(answer, "error")
    assert shown.startswith(case["expected"])


def stdout_contains(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert not is_error(answer)
    [shown] = parts(answer, "stdout")
    assert case["expected"] in shown


def help_contains(answer: CallToolResult, case: dict[str, Any]) -> None:
    [shown] = parts(answer, "help")
    assert case["expected"] in shown


def contains(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert case["expected"] in result_text(answer)


def display(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert parts(answer, "display") == [case["expected"]]


def image(answer: CallToolResult, case: dict[str, Any]) -> None:
    assert not is_error(answer)
    shown = [block for block in answer.content if isinstance(block, ImageContent)]
    assert [block.mime_type for block in shown] == [case["expected"]]


COMPARE: dict[str, Callable[[CallToolResult, dict[str, Any]], None]] = {
    "exact": exact,
    "sagerepl": repl,
    "numeric": numeric,
    "set": as_set,
    "error": error,
    "error-prefix": error_prefix,
    "stdout-contains": stdout_contains,
    "help-contains": help_contains,
    "contains": contains,
    "display": display,
    "image": image,
}


@pytest.mark.parametrize("case", load_cases())
async def test_the_answer_is_the_expected_one(client: Client, case: dict[str, Any]) -> None:
    codes = case["code"] if isinstance(case["code"], list) else [case["code"]]
    expected = case["expected"]
    wanted = expected if isinstance(expected, list) else [None] * (len(codes) - 1) + [expected]
    for code, one in zip(codes, wanted, strict=True):
        answer = await run(client, code)
        print(text_of(answer)[:2000])
        if one is not None:
            COMPARE[case["compare"]](answer, {**case, "expected": one})


def test_every_way_to_compare_is_known() -> None:
    for parameters in load_cases():
        assert parameters.values[0]["compare"] in COMPARE
