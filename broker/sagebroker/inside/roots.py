"""Signs of rational functions in one real variable, exactly: by their real roots."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from .rational import RationalReader, TooComplicatedError

if TYPE_CHECKING:
    from .domains import Domain

BETWEEN_LIMIT = 100_000
"""Integers between the real roots that are looked at."""


def fraction_of(expression: Any) -> Any:
    """A rational function over QQ of the expression's variables; None if it is none."""
    from sage.all import QQ, PolynomialRing

    variables = expression.variables()
    if not variables:
        return None
    ring = PolynomialRing(QQ, [str(one) for one in variables])
    try:
        reader = RationalReader(
            ring.fraction_field(), dict(zip(variables, ring.gens(), strict=True))
        )
        return reader.of(expression)
    except (TypeError, ValueError, KeyError, ZeroDivisionError, TooComplicatedError):
        return None


def counterpoint(expression: Any, domain: Domain, *, strict: bool) -> Any:
    """An exact point at which a rational function of one real variable is negative (or zero, if strict)."""
    value = fraction_of(expression)
    if value is None or value.parent().ngens() != 1:
        return None
    return wrong_point(value.numerator(), value.denominator(), domain, strict=strict)


def wrong_point(numerator: Any, denominator: Any, domain: Domain, *, strict: bool) -> Any:
    """An exact real number at which a quotient is negative (or zero, if strict); None if there is none.

    Args:
        numerator: Polynomial in one variable over QQ.
        denominator: Such a one.
        domain: Of the variable.
        strict: Whether zero is wrong, too.
    """
    from sage.all import AA, QQ

    ring = QQ["t"]
    above, below = (ring(one_variable(one).list()) for one in (numerator, denominator))
    roots = sorted({*((above * below).roots(AA, multiplicities=False) if above * below else [])})
    inside = [root for root in roots if domain.may_contain(root)]
    edges = [
        end for end in (domain.low, domain.high) if end is not None and domain.may_contain(end)
    ]
    marks = sorted({*inside, *(AA(end) for end in (domain.low, domain.high) if end is not None)})
    tests = [(a + b) / 2 for a, b in itertools.pairwise(marks)]
    if domain.low is None:
        tests.append(marks[0] - 1 if marks else AA(0))
    if domain.high is None:
        tests.append(marks[-1] + 1 if marks else AA(0))
    tests += [AA(end) for end in edges]
    for point in tests:
        if below(point) != 0 and above(point) * below(point) < 0:
            return point
    if strict:
        for point in [*inside, *tests]:
            if above(point) == 0 and below(point) != 0:
                return point
    return None


def holds_of_integers(numerator: Any, denominator: Any, domain: Domain, *, strict: bool) -> bool:
    """Whether a quotient has the sign at all integers of a domain: beyond its roots it does not change."""
    from sage.all import AA, QQ, ZZ, ceil, floor

    above, below = (QQ["t"](one_variable(one).list()) for one in (numerator, denominator))
    if not above:
        return not strict
    roots = (above * below).roots(AA, multiplicities=False) or [AA(0)]
    first, last = ZZ(floor(min(roots))) - 1, ZZ(ceil(max(roots))) + 1
    # A domain that lies beyond the roots altogether: its ends stand for it.
    ends = [
        ZZ(floor(end)) + step
        for end in (domain.low, domain.high)
        if end is not None
        for step in (-1, 0, 1)
    ]
    if last - first > BETWEEN_LIMIT:
        return False
    for value in (*range(first, last + 1), *ends):
        if domain.may_contain(value) and below(value) != 0:
            sign = above(value) * below(value)
            if sign < 0 or (strict and sign == 0):
                return False
    return True


def one_variable(polynomial: Any) -> Any:
    """A polynomial in the one variable it has."""
    is_general = hasattr(polynomial, "univariate_polynomial")
    return polynomial.univariate_polynomial() if is_general else polynomial
