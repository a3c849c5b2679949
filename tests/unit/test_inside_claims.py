"""How `verify` takes a claim's text apart and what it trusts, without Sage."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import pytest

from sagebroker.inside import claims
from sagebroker.inside.verdict import ClaimError, Verdict, conjunction, undecided
from sagebroker.inside.verifying import LENGTH, _word

BASELINE: dict[str, Any] = {name: object() for name in ("sqrt", "gcd", "sin", "N", "is_prime")}


def pieces(text: str) -> list[claims.Piece]:
    return claims.pieces_of(text, lambda source: source.replace("^", "**"))


def why_not(text: str, **users: Any) -> str:
    (piece,) = pieces(text)
    return claims.why_not_symbolic(piece, {"x"}, BASELINE | users, BASELINE)


def doubts(
    text: str, *, opaque: bool = False, own: set[str] | None = None, **users: Any
) -> set[str]:
    (piece,) = pieces(text)
    found: set[str] = set()
    for side in piece.sides():
        found |= claims.doubts(side, BASELINE | users, BASELINE, own=own or set(), opaque=opaque)
    return found


def test_conjunctions_and_chains_fall_apart_and_other_logic_does_not() -> None:
    assert [piece.text for piece in pieces("0 <= x^2 < 2 and y == 1")] == [
        "0 <= x ^ 2",
        "x ^ 2 < 2",
        "y == 1",
    ]
    for text in ("a < 1 or a > 2", "not a == 1", "a in b", "f(a)"):
        (piece,) = pieces(text)
        assert piece.relation == ""


def test_numbers_are_shown_as_they_were_written() -> None:
    (piece,) = pieces("Integer(2)*x == RealNumber('0.1')")
    assert piece.text == "2 * x == 0.1"


def test_what_is_no_expression_is_told_how_to_write_it() -> None:
    for text in ("x = 1", "", "1 +", "import os"):
        with pytest.raises(ClaimError, match="== for equality"):
            pieces(text)


@pytest.mark.parametrize(
    "text",
    [
        "max(x, 0) >= 0",
        "gcd(x, 2) == 1",
        "x % 2 == 0",
        "x // 1 == x",
        "(1 if x > 0 else 2) == 1",
        "all(k*x > 0 for k in y)",
        "(x > 0) == True",
        "mine(x) == 1",
        "(lambda: x)() == 1",
        "x.is_integer() == y",
    ],
)
def test_what_may_take_a_symbol_for_something_else_is_not_computed_with_it(text: str) -> None:
    assert why_not(text, mine=lambda z: z)


def test_plain_formulas_are_computed_with_symbols() -> None:
    assert why_not("sqrt(x^2) + abs(x) - 1/x == x^3") == ""
    assert why_not("gcd(4, 6) + x == 2 + x") == ""
    assert why_not("sqrt(x) == 1", sqrt=lambda z: z)


def test_only_plain_formulas_are_left_unsimplified() -> None:
    for text, plain in {
        "sqrt(1/x) == 1/sqrt(x)": True,
        "diff(x^2, x) == 2*x": False,
        "m.det() == 1": False,
        "v[0] == 1": False,
    }.items():
        assert claims.is_plain(pieces(text)[0]) is plain


def test_what_rounds_or_is_not_proved_is_doubted() -> None:
    assert doubts("integrate(x, x) == 1") == {"integrate"}
    assert doubts("pi.n() == 3") == {"n"}
    assert doubts("round(2.5) == 2") == {"round", "float"}
    assert doubts("n == 3", own={"n"}) == set()
    assert doubts("is_prime(n)", own={"n"}, opaque=True) == set()
    assert doubts("bool(sin(x) == 0)", opaque=True) == {"sin"}
    assert doubts("sin(x) == 0") == set()
    assert doubts("N(pi) == 3", N=lambda z: z) == set()


def test_only_the_symbolic_sum_is_doubted() -> None:
    assert doubts("sum(k for k in y) == 6") == set()
    assert doubts("sum(k, k, 1, n) == 6", own={"n"}) == {"sum"}


def test_functions_of_the_user_are_followed() -> None:
    namespace: dict[str, Any] = {}
    exec(
        "def half(z): return z * 0.5\n"
        "def outer(z): return half(z) > 1\n"
        "def exact(z): return sum(d for d in z) == 2\n"
        "def symbolic(z): return bool(sin(z) == 0)\n"
        "def itself(z): return itself(z - 1)\n",
        namespace,
    )
    assert doubts("outer(4)", opaque=True, **namespace) == {"float"}
    assert doubts("exact(4)", opaque=True, **namespace) == set()
    assert doubts("symbolic(4)", opaque=True, **namespace) == {"sin"}
    assert doubts("itself(4)", opaque=True, **namespace) == set()


def test_of_several_claims_the_weakest_counts_and_a_refuted_one_most() -> None:
    def said(*verdicts: str) -> str:
        return conjunction([Verdict(v, claim=f"c{at}") for at, v in enumerate(verdicts)]).verdict

    assert said("proved", "proved") == "proved"
    assert said("proved", "supported") == "supported"
    assert said("supported", "undecided", "proved") == "undecided"
    assert said("undecided", "refuted", "supported") == "refuted"
    assert "c1" in conjunction([Verdict("proved"), Verdict("supported", claim="c1")]).details[0]


def test_a_verdict_shows_itself_and_is_no_truth_value() -> None:
    found = Verdict("refuted", "x == 1", "exact arithmetic", ["a detail"], {"x": 2})
    assert repr(found) == (
        "refuted: x == 1  (method: exact arithmetic)\n  counterexample: x = 2\n  a detail"
    )
    with pytest.raises(TypeError, match=r"\.verdict"):
        bool(found)


def test_words_of_the_child_are_taken_whole_and_one_by_one() -> None:
    data = [pickle.dumps((undecided(text), last)) for text, last in (("one", False), ("two", True))]
    stream = bytearray(b"".join(LENGTH.pack(len(one)) + one for one in data))
    late = stream[-5:]
    del stream[-5:]
    first = _word(stream)
    assert first is not None
    assert isinstance(first[0], Verdict)
    assert (first[0].details, first[1]) == (["one"], False)
    assert _word(stream) is None
    stream += late
    second = _word(stream)
    assert second is not None
    assert isinstance(second[0], Verdict)
    assert (second[0].details, second[1]) == (["two"], True)
    assert _word(stream) is None


def test_nothing_of_sage_is_needed_to_import_it() -> None:
    for name in ("verifying", "deciding", "symbolic", "normalform", "inequalities", "domains"):
        source = Path(claims.__file__).with_name(f"{name}.py")
        tree = ast.parse(source.read_text(encoding="utf-8"))
        imported = {
            node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module
        }
        assert not {one for one in imported if one.startswith("sage")}
