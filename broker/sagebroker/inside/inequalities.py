"""Proves that an expression is positive, or not negative, for all real values of its variables.

By rules of signs and ranges; for rational functions by their real roots, factors and coefficients; over
a bounded interval by enclosures of its parts; and by the sign of the derivative on both sides of a point.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from .domains import INTEGER
from .enclosing import UnknownError, holds_at
from .relations import settle_symbolic
from .roots import fraction_of, holds_of_integers, one_variable, wrong_point
from .signs import Signs, narrowed
from .verdict import PROVED

if TYPE_CHECKING:
    from .domains import Domain

DEPTH_LIMIT = 4
"""How often a derivative is taken."""

SOME_POINTS = 5

PARTS_LIMIT = 3000
"""Into how many parts an interval is cut."""


def proves(expression: Any, domains: dict[str, Domain], *, strict: bool) -> str:
    """How it is proved that an expression is never negative where it is defined; empty if it is not.

    Args:
        expression: Symbolic, with variables that have real domains only.
        domains: Of all its variables, by name.
        strict: Whether it must not be zero either.
    """
    if not expression.variables():
        found = settle_symbolic(expression, expression.parent().zero(), ">" if strict else ">=")
        return found.method if found.verdict == PROVED else ""
    wanted = ("+",) if strict else ("+", "0+")
    if Signs(domains).sign(expression) in wanted:
        return "rules of signs and interval arithmetic"
    by_polynomials = _by_polynomials(*_without_roots(expression, domains), strict=strict)
    if by_polynomials:
        return by_polynomials
    names = [str(one) for one in expression.variables()]
    if len(names) != 1:
        return _by_parts(expression, domains, strict=strict)
    domain = domains[names[0]]
    if _by_derivatives(expression, expression.variables()[0], domain, DEPTH_LIMIT, strict=strict):
        return "signs of derivatives by interval arithmetic"
    return _by_parts(expression, domains, strict=strict)


def _by_polynomials(expression: Any, domains: dict[str, Domain], *, strict: bool) -> str:
    value = fraction_of(expression)
    if value is None:
        return ""
    numerator, denominator = value.numerator(), value.denominator()
    if numerator.parent().ngens() == 1:
        domain = domains[str(numerator.parent().gen())]
        if domain.kind == INTEGER and holds_of_integers(
            numerator, denominator, domain, strict=strict
        ):
            return "all integers between the exact real roots"
        is_good = wrong_point(numerator, denominator, domain, strict=strict) is None
        return "real roots isolated exactly" if is_good else ""
    negative, is_strict = False, True
    if numerator == 0:
        return "" if strict else "exact normal form"
    pairs = [*numerator.factor(), *denominator.factor()]
    unit = numerator.factor().unit() / denominator.factor().unit()
    for factor, multiplicity in pairs:
        sign = _sign_of(factor, domains)
        if multiplicity % 2 == 0:
            sign = "+" if sign in ("+", "-") else "0+"
        if not sign:
            return ""
        negative ^= sign in ("-", "0-")
        is_strict &= sign in ("+", "-") or denominator % factor == 0
    is_positive = negative == bool(unit < 0)
    return "signs of the exact factors" if is_positive and (is_strict or not strict) else ""


def _sign_of(polynomial: Any, domains: dict[str, Domain]) -> str:
    """The sign of a polynomial in several variables."""
    from sage.all import SR

    if len(polynomial.variables()) == 1:
        return _sign_on_line(polynomial, domains[str(polynomial.variables()[0])])
    moved = _moved_to_zero(polynomial, domains)
    for sign, factor in (("+", 1), ("-", -1)):
        if moved is not None and all(factor * one >= 0 for one in moved.coefficients()):
            return sign if factor * moved.constant_coefficient() > 0 else "0" + sign
        found = _definite(factor * polynomial)
        if found:
            return sign if found == "+" else "0" + sign
    return Signs(domains).sign(SR(polynomial))


def _sign_on_line(polynomial: Any, domain: Domain) -> str:
    alone = one_variable(polynomial)
    for strict in (True, False):
        for sign, one in (("+", alone), ("-", -alone)):
            if wrong_point(one, one.parent().one(), domain, strict=strict) is None:
                return sign if strict else "0" + sign
    return ""


def _moved_to_zero(polynomial: Any, domains: dict[str, Domain]) -> Any:
    """The polynomial in variables that are not negative; None where one has no bound in QQ."""
    from sage.all import QQ

    values = []
    for gen in polynomial.parent().gens():
        domain = domains[str(gen)]
        if polynomial.degree(gen) == 0:
            values.append(gen)
        elif domain.low is not None and domain.low in QQ:
            values.append(QQ(domain.low) + gen)
        elif domain.high is not None and domain.high in QQ:
            values.append(QQ(domain.high) - gen)
        else:
            return None
    return polynomial(*values)


def _definite(polynomial: Any) -> str:
    """``+`` or ``0+`` of a polynomial of degree two whose form is positive or has no negative values."""
    from sage.all import QQ, matrix

    if polynomial.total_degree() != 2:
        return ""
    gens = [*polynomial.variables()]
    size = len(gens) + 1
    gram = matrix(QQ, size)
    ring = polynomial.parent()
    for i, a in enumerate([ring.one(), *gens]):
        for j, b in enumerate([ring.one(), *gens]):
            gram[i, j] = polynomial.monomial_coefficient(a * b) / (1 if i == j else 2)
    if gram.is_positive_definite():
        return "+"
    return "0+" if gram.is_positive_semidefinite() else ""


def _without_roots(expression: Any, domains: dict[str, Domain]) -> tuple[Any, dict[str, Domain]]:
    """The same with variables whose powers are the old ones, so that their roots vanish."""
    degrees: dict[Any, Any] = {}
    _collect(expression, domains, degrees)
    if not degrees:
        return expression, domains
    found = _Unrooted(degrees).of(expression)
    return (expression, domains) if found is None else (found, domains)


def _runs_to_infinity(domain: Domain) -> bool:
    return domain.is_real and domain.low is not None and domain.low == 0 and domain.high is None


def _collect(expression: Any, domains: dict[str, Domain], degrees: dict[Any, Any]) -> None:
    """Note the roots that are taken of variables that run from zero to infinity."""
    from sage.all import QQ, lcm

    operands = expression.operands()
    if expression.operator() is operator.pow and operands[1].is_numeric():
        power = operands[1].pyobject()
        if power in QQ and QQ(power).denominator() > 1:
            for one in operands[0].variables():
                domain = domains.get(str(one))
                if domain is not None and _runs_to_infinity(domain):
                    degrees[one] = lcm(degrees.get(one, 1), QQ(power).denominator())
    for one in operands:
        _collect(one, domains, degrees)


class _Unrooted:
    """Puts a power in each variable's place, and takes the roots of products of these."""

    def __init__(self, degrees: dict[Any, Any]) -> None:
        self._degrees = degrees

    def of(self, expression: Any, root: Any = 1) -> Any:
        """A power of the expression; None where it cannot be made."""
        from sage.all import QQ
        from sage.symbolic.operators import add_vararg, mul_vararg

        op, operands = expression.operator(), expression.operands()
        if op is None:
            power = self._degrees.get(expression, 1) * root
            is_whole = QQ(power).denominator() == 1
            if expression in self._degrees:
                return expression**power if is_whole else None
            return expression**root if QQ(root).denominator() == 1 else None
        if op is operator.pow and operands[1].is_numeric() and operands[1].pyobject() in QQ:
            if QQ(operands[1].pyobject()).denominator() > 1 and not self._is_monomial(operands[0]):
                return None
            return self.of(operands[0], root * QQ(operands[1].pyobject()))
        if op is mul_vararg and (QQ(root).denominator() == 1 or self._is_monomial(expression)):
            parts = [self.of(one, root) for one in operands]
            return (
                None if any(one is None for one in parts) else expression.parent().one().mul(*parts)
            )
        if op is add_vararg and QQ(root).denominator() == 1:
            parts = [self.of(one) for one in operands]
            return None if any(one is None for one in parts) else sum(parts) ** root
        return None

    def _is_monomial(self, expression: Any) -> bool:
        """Whether an expression is a product of powers of variables that are not negative."""
        from sage.symbolic.operators import mul_vararg

        if expression in self._degrees:
            return True
        if expression.operator() is operator.pow:
            return self._is_monomial(expression.operands()[0])
        is_product = expression.operator() is mul_vararg
        return is_product and all(self._is_monomial(one) for one in expression.operands())


def _by_parts(expression: Any, domains: dict[str, Domain], *, strict: bool) -> str:
    """Cut the box of the variables until the range over each part has the sign."""
    names = [str(one) for one in expression.variables()]
    if any(domains[n].low is None or domains[n].high is None for n in names):
        return ""
    waiting = [{name: domains[name] for name in names}]
    for _ in range(PARTS_LIMIT):
        if not waiting:
            return "interval arithmetic over all parts of the domain"
        box = waiting.pop()
        try:
            values = Signs(box).range_of(expression)
            if values.lower() > 0 or (not strict and values.lower() >= 0):
                continue
            if values.upper() < 0:
                return ""
        except UnknownError:
            pass
        name = max(names, key=lambda one: box[one].high - box[one].low)
        middle = (box[name].low + box[name].high) / 2
        waiting.append({**box, name: narrowed(box[name], high=middle)})
        waiting.append({**box, name: narrowed(box[name], low=middle)})
    return ""


def _by_derivatives(f: Any, x: Any, domain: Domain, depth: int, *, strict: bool) -> bool:
    """Whether a function falls to the left and rises to the right of a point where it is not negative."""
    here, closed = Signs({str(x): domain}), _closed(domain)
    if here.sign(f) in (("+",) if strict else ("+", "0+")):
        return True
    if depth == 0 or not here.is_smooth(f):
        return False
    reaches_ends = Signs({str(x): closed}).is_smooth(f)
    derivative = f.diff(x)
    for point in _telling_points(closed):
        is_inside = domain.may_contain(point)
        if not (is_inside or reaches_ends):
            continue
        needs = ">" if strict and is_inside else ">="
        if settle_symbolic(f.subs({x: point}), f.parent().zero(), needs).verdict != PROVED:
            continue
        # An analytic function whose derivative is never negative, and not zero, rises strictly.
        if strict and not is_inside and not _is_somewhere_else(derivative, x, domain):
            continue
        parts = [(sign * derivative, part) for sign, part in _sides_of(point, domain)]
        if all(_proves_on_line(d, x, part, depth - 1, strict=False) for d, part in parts):
            return True
    return False


def _closed(domain: Domain) -> Domain:
    return replace(domain, is_open_low=False, is_open_high=False)


def _sides_of(point: Any, domain: Domain) -> list[tuple[int, Domain]]:
    """The parts of a domain to the left (-1) and to the right (1) of a point, as far as there are any."""
    if not domain.may_contain(point):
        return [(1 if domain.low == point else -1, domain)]
    parts = []
    if domain.low != point:
        parts.append((-1, narrowed(domain, high=point)))
    if domain.high != point:
        parts.append((1, narrowed(domain, low=point)))
    return parts


def _telling_points(domain: Domain) -> list[Any]:
    """Exact points of a closed domain where a function may be least."""
    from sage.all import QQ

    ends = [end for end in (domain.low, domain.high) if end is not None]
    ends = [QQ(end) if end in QQ else end for end in ends]
    inner = [QQ(one) for one in (0, 1, -1)]
    return [*ends, *(one for one in inner if domain.may_contain(one) and one not in ends)]


def _is_somewhere_else(f: Any, x: Any, domain: Domain) -> bool:
    """Whether a function certainly has a value other than zero in a domain."""
    few = itertools.islice(domain.points(Random(0)), SOME_POINTS)
    return any(holds_at(f, f.parent().zero(), "!=", {str(x): one}) for one in few)


def _proves_on_line(f: Any, x: Any, domain: Domain, depth: int, *, strict: bool) -> bool:
    """Whether a function of one variable has the sign, by its roots or its derivatives."""
    found = _by_polynomials(f, {str(x): domain}, strict=strict)
    return bool(found) or _by_derivatives(f, x, domain, depth, strict=strict)
