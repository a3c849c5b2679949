"""Relations between exact values, and between values that are not: when Python's True means true."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

from .enclosing import (
    AGREEMENT_BITS,
    POINT_BITS,
    Enclosing,
    RoundedError,
    UnknownError,
    agree_at,
    holds_at,
)
from .verdict import OPERATORS, OPPOSITE, PROVED, REFUTED, SUPPORTED, Verdict, undecided

_WORDS = {
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}

PLAIN = (bool, int, str, bytes, Fraction, type(None), range)

ALGEBRAIC_LIMIT_S = 5.0
"""For an exact comparison of algebraic numbers: a large degree takes for ever."""


def relation_of(expression: Any) -> str:
    """The sign of a symbolic relation; empty if it is none."""
    return _WORDS.get(expression.operator(), "")


def is_symbolic(value: Any) -> bool:
    """Whether a value is a symbolic expression."""
    from sage.structure.element import Expression

    return isinstance(value, Expression)


def is_exact(value: Any) -> bool:
    """Whether comparing a value gives the truth about what it stands for."""
    from sage.structure.element import Element

    if isinstance(value, PLAIN):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(is_exact(one) for one in value)
    if isinstance(value, dict):
        return all(is_exact(one) for pair in value.items() for one in pair)
    if isinstance(value, Element):
        parent = value.parent()
        return bool(getattr(parent, "is_exact", lambda: True)())
    kind = type(value).__module__
    return kind.startswith("sage.") and not kind.startswith(("sage.symbolic", "sage.interfaces"))


def is_enclosure(value: Any) -> bool:
    """Whether a value is an interval or a ball, whose order is certain where it is true."""
    from sage.rings.real_arb import RealBall
    from sage.rings.real_mpfi import RealIntervalFieldElement

    return isinstance(value, RealBall | RealIntervalFieldElement)


def settle(left: Any, right: Any, relation: str) -> Verdict:
    """The verdict on a relation without variables."""
    if is_symbolic(left) or is_symbolic(right):
        from sage.all import SR

        try:
            return settle_symbolic(SR(left), SR(right), relation)
        except TypeError as error:
            return undecided(f"the sides cannot be compared: {error}")
    entries = entries_of(left, right)
    if entries is not None and relation == "==":
        from .verdict import conjunction

        return conjunction([settle(a, b, "==") for a, b in entries])
    if is_exact(left) and is_exact(right):
        if not have_common_parent(left, right):
            return undecided("Sage knows no common parent of the sides: they cannot be compared")
        found = OPERATORS[relation](left, right)
        if not isinstance(found, bool):
            return undecided(f"the comparison gives no truth value but {type(found).__name__}")
        return Verdict(PROVED if found else REFUTED, method="exact arithmetic")
    if is_enclosure(left) or is_enclosure(right):
        return _settle_enclosures(left, right, relation)
    found = OPERATORS[relation](left, right)
    note = "the values are rounded: a comparison of them proves nothing; use exact numbers such as 1/10"
    if isinstance(found, bool) and found:
        return Verdict(SUPPORTED, method="comparison of rounded numbers", details=[note])
    return undecided(note)


def entries_of(left: Any, right: Any) -> list[tuple[Any, Any]] | None:
    """The entries of two matrices or vectors of symbolic expressions; None of anything else."""
    from sage.all import SR
    from sage.structure.element import Matrix, Vector

    for kind in (Matrix, Vector):
        if isinstance(left, kind) and isinstance(right, kind):
            if SR not in (left.base_ring(), right.base_ring()):
                return None
            shapes = [(m.dimensions() if kind is Matrix else len(m)) for m in (left, right)]
            if shapes[0] != shapes[1]:
                return None
            return list(zip(left.list(), right.list(), strict=True))
    return None


def _settle_enclosures(left: Any, right: Any, relation: str) -> Verdict:
    for value in (left, right):
        if not is_enclosure(value) and not is_exact(value):
            return undecided("a rounded number is compared with an enclosure")
    if OPERATORS[relation](left, right):
        return Verdict(PROVED, method="enclosures compared")
    if OPERATORS[OPPOSITE[relation]](left, right):
        return Verdict(REFUTED, method="enclosures compared")
    return undecided("the enclosures overlap")


def settle_symbolic(left: Any, right: Any, relation: str) -> Verdict:
    """The verdict on a relation of symbolic constants."""
    from sage.all import QQbar

    try:
        found = holds_at(left, right, relation, {})
        agree = found is None and relation in ("==", "<=", ">=") and agree_at(left, right, {})
    except RoundedError as error:
        return undecided(f"{error}: write exact numbers such as 1/10")
    if found is not None:
        return Verdict(PROVED if found else REFUTED, method="ball arithmetic")
    try:
        difference = QQbar(left) - QQbar(right)
    except (TypeError, ValueError, ZeroDivisionError, ArithmeticError, NotImplementedError):
        difference = None
    method = "exact algebraic numbers"
    if difference is None:
        difference, method = (0 if is_zero(left - right) else None), "exact normal form"
    is_order = relation not in ("==", "!=")
    if difference is not None and not (is_order and (difference != 0 or not _is_real(left))):
        is_true = OPERATORS[relation](difference, 0)
        return Verdict(PROVED if is_true else REFUTED, method=method)
    if agree:
        method = f"the sides agree to more than {AGREEMENT_BITS} bits"
        return Verdict(SUPPORTED, method=method, details=["no exact proof was found"])
    return undecided("the sides could not be told apart, nor proved to be the same")


def is_zero(expression: Any) -> bool:
    """Whether an expression is proved to be zero wherever it is defined."""
    from .normalform import vanishes

    return vanishes(expression)


def _is_real(expression: Any) -> bool:
    """Whether a constant is certainly a real number."""
    from sage.all import ComplexBallField

    try:
        return bool(Enclosing(ComplexBallField(POINT_BITS[1]), {}).of(expression).imag().is_zero())
    except UnknownError:
        return False


def have_common_parent(left: Any, right: Any) -> bool:
    """Whether Sage knows where to compare two values; plain Python's are compared anywhere."""
    from sage.structure.coerce import CoercionModel
    from sage.structure.element import Element, get_coercion_model

    if not (isinstance(left, Element) and isinstance(right, Element)):
        return True
    model: CoercionModel = get_coercion_model()
    try:
        model.common_parent(left, right)
    except TypeError:
        return False
    return True
