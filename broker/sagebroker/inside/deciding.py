"""Decides claims: which means are tried, in which order. Runs in a forked child, see `verifying`."""

from __future__ import annotations

import ast
import contextlib
from typing import Any

from . import claims
from .domains import COMPLEX, REAL
from .relations import entries_of, is_exact, is_symbolic, relation_of, settle
from .searching import Search, check_cases
from .symbolic import WHERE_DEFINED, Question, decide_relation, domains_of
from .verdict import PROVED, REFUTED, SUPPORTED, ClaimError, Verdict, conjunction, undecided
from .wording import TooSlowError

BARE = (
    "a bare truth value does not say what it was computed from, and Sage's False may mean unknown:"
    " give the claim as a string, a relation or a function"
)


def decide(question: Question) -> Verdict:
    """The verdict on a claim. Raises `ClaimError` where there is none to be had."""
    claim = question.claim
    if isinstance(claim, bool):
        return undecided(BARE)
    if isinstance(claim, str):
        return _decide_text(question, claim)
    if isinstance(claim, list | tuple) and claim:
        parts = []
        for one in claim:
            part = Question(one, question.domains, question.namespace, question.baseline,
                            question.search, question.limit_s, question.alarm)  # fmt: skip
            found = decide(part)
            found.claim = found.claim or str(one)
            parts.append(found)
        return conjunction(parts)
    if is_symbolic(claim) and relation_of(claim):
        return decide_relation(question, claim.lhs(), claim.rhs(), relation_of(claim))
    if callable(claim) and not is_symbolic(claim):
        return _decide_function(question, claim)
    kind = type(claim).__name__
    raise ClaimError(f"a {kind} is no claim: give a relation, a string, or a function with domains")


def _decide_function(question: Question, function: Any) -> Verdict:
    import inspect

    names = list(inspect.signature(function).parameters)
    missing = [name for name in names if name not in question.known]
    if missing:
        raise ClaimError(
            f"the function's argument {missing[0]} has no domain: verify(f, {missing[0]}=[1..100])"
        )
    domains = {name: question.known[name] for name in names}
    code = getattr(getattr(function, "f", function), "__code__", None)
    doubts = claims.doubts_of_code(code, question.namespace, question.baseline) if code else set()

    def case(values: dict[str, Any]) -> Verdict:
        return _truth(function(**values), doubts)

    found = check_cases(case, domains, question.search)
    if found.counterexample is None:
        shown = ", ".join(f"{name} {domain.shown}" for name, domain in domains.items())
        found.details.insert(0, f"for all {shown}")
    return found


def _truth(value: Any, doubts: set[str]) -> Verdict:
    """The verdict on a value that is to be true."""
    if is_symbolic(value) and relation_of(value):
        return _discounted(settle(value.lhs(), value.rhs(), relation_of(value)), doubts)
    if isinstance(value, Verdict):
        return value
    if not isinstance(value, bool):
        raise ClaimError(f"the claim's value is no truth value but a {type(value).__name__}")
    return _discounted(Verdict(PROVED if value else REFUTED, method="exact evaluation"), doubts)


def _discounted(found: Verdict, doubts: set[str]) -> Verdict:
    """A verdict, less what is to be doubted of it."""
    if not doubts or found.verdict not in (PROVED, REFUTED):
        return found
    why = f"it relies on what rounds, or what Sage has not proved ({', '.join(sorted(doubts))})"
    if found.verdict == PROVED:
        return Verdict(SUPPORTED, method=found.method, details=[why])
    return undecided(f"it came out false, but {why}")


def _decide_text(question: Question, text: str) -> Verdict:
    from sage.all import SR
    from sage.repl.preparse import preparse

    parts = []
    for name, domain in question.known.items():
        if domain.is_number_line:
            question.namespace[name] = SR.symbol(name)
    for piece in claims.pieces_of(text, preparse):
        found = _decide_piece(question, piece)
        found.claim = piece.text
        parts.append(found)
    return conjunction(parts)


def _decide_piece(question: Question, piece: claims.Piece) -> Verdict:
    names = set().union(*(claims.names_in(side) for side in piece.sides()))
    symbols = {
        n
        for n in names
        if is_symbolic(question.namespace.get(n)) and question.namespace[n].variables()
    }
    symbols |= names & question.known.keys()
    doubts = _doubts(question, piece, symbols)
    if not symbols:
        return _discounted(
            _decide_values(question, piece, _values(piece, question.namespace)), doubts
        )
    found = _by_symbols(question, piece, symbols)
    if found is not None and (found.verdict != PROVED or claims.is_plain(piece)):
        return _discounted(found, doubts)
    is_sure = found is not None
    search = question.search if not is_sure else Search(SPOTS, question.search.seed, _tell_nobody)
    try:
        with question.alarm.within(question.limit_s * SPOT_SHARE if is_sure else question.limit_s):
            cases = _by_cases(question, piece, symbols, (search, doubts))
    except (TooSlowError, *UNSYMBOLIC) as error:
        if found is None or isinstance(error, ClaimError):
            raise
        return _discounted(found, doubts)
    if found is None or cases.verdict == REFUTED:
        return cases
    return _discounted(found, doubts)


def _by_symbols(question: Question, piece: claims.Piece, symbols: set[str]) -> Verdict | None:
    """The verdict by computing with symbols; None where that cannot be trusted."""
    from sage.symbolic.expression import hold

    is_bound = any(n in symbols and not d.is_number_line for n, d in question.known.items())
    if is_bound or not piece.relation:
        return None
    if claims.why_not_symbolic(piece, symbols, question.namespace, question.baseline):
        return None
    try:
        # Left as it is written: some of Sage's own simplifications fail on the negative axis.
        with hold if claims.is_plain(piece) else contextlib.nullcontext():
            values = _values(piece, question.namespace)
    except ClaimError:
        raise
    except UNSYMBOLIC:
        return None
    found = _decide_values(question, piece, values)
    if found.verdict == PROVED and WHERE_DEFINED not in found.details:
        found.details.append(WHERE_DEFINED)
    return found


def _by_cases(
    question: Question, piece: claims.Piece, symbols: set[str], how: tuple[Search, set[str]]
) -> Verdict:
    """The verdict by computing with the values of single points."""
    search, doubts = how
    unknown = {n for n in symbols if n not in question.known}
    if any(str(question.namespace[n]) != n for n in unknown):
        return undecided(
            "it decides something by a symbol: give the claim with its variables alone"
        )
    default = COMPLEX if piece.relation in ("==", "!=") else REAL
    domains, notes = domains_of(question, symbols, default)
    search.conditions = question.search.conditions

    def case(values: dict[str, Any]) -> Verdict:
        inner = {name: _as_written(value) for name, value in values.items()}
        sides = _values(piece, question.namespace | inner)
        return _discounted(_decide_values(question, piece, sides), doubts)

    found = check_cases(case, domains, search)
    if found.counterexample is None:
        found.details = [*notes, *found.details]
    return found


def _tell_nobody(found: Verdict) -> None:
    del found


SPOTS = 30
"""Points at which a text that is proved by symbols is looked at once more."""

SPOT_SHARE = 0.2
"""Of the whole time, for these."""

UNSYMBOLIC = (TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError, KeyError)
"""What Sage's functions raise when they are given a symbol and want a number."""


def _as_written(value: Any) -> Any:
    """A point's coordinate as a claim's text would have it."""
    from sage.all import QQ, SR
    from sage.rings.number_field.number_field_element_quadratic import (
        NumberFieldElement_quadratic,
    )

    if isinstance(value, NumberFieldElement_quadratic):
        return QQ(value) if value in QQ else SR(value)
    return value


def _values(piece: claims.Piece, namespace: dict[str, Any]) -> list[Any]:
    """The values of the sides."""
    values = []
    for side in piece.sides():
        code = compile(ast.fix_missing_locations(ast.Expression(side)), "<claim>", "eval")
        try:
            values.append(eval(code, dict(namespace)))
        except NameError as error:
            name = getattr(error, "name", None) or "y"
            raise ClaimError(
                f"{error}: define it, or give its domain, as in verify(claim, {name}=RR)"
            ) from None
    return values


def _decide_values(question: Question, piece: claims.Piece, values: list[Any]) -> Verdict:
    """Decide between the sides' values."""
    if not piece.relation:
        return _truth(values[0], set())
    left, right = values
    entries = entries_of(left, right)
    if entries is not None and piece.relation == "==":
        return conjunction([decide_relation(question, a, b, "==") for a, b in entries])
    if is_symbolic(left) or is_symbolic(right):
        return decide_relation(question, left, right, piece.relation)
    return settle(left, right, piece.relation)


def _doubts(question: Question, piece: claims.Piece, symbols: set[str]) -> set[str]:
    found: set[str] = set()
    for side in piece.sides():
        found |= claims.doubts(
            side, question.namespace, question.baseline, own=symbols, opaque=not piece.relation
        )
        for name in claims.names_in(side) - symbols:
            value = question.namespace.get(name)
            if value is not None and value is not question.baseline.get(name):
                is_data = not callable(value) and not is_symbolic(value)
                if is_data and not is_exact(value):
                    found.add(name)
    return found
