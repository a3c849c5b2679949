"""Proves identities: the sides' difference, a rational function of a few kernels, is reduced to zero.

Every rule holds for all complex numbers for which both sides are defined, with the principal branches.
Rules that need a real or positive argument ask first. What is not zero in this form may be zero all the same.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from .rational import POWER_LIMIT, RationalReader, TooComplicatedError, collect_roots

if TYPE_CHECKING:
    from collections.abc import Callable

TERMS_LIMIT = 4000
"""Terms of an expanded exponent or power beyond which nothing is tried."""

GAMMA_SHIFT_LIMIT = 50


class Facts:
    """What is known of the variables; the plain one knows nothing, as over the complex numbers."""

    def is_real(self, expression: Any) -> bool:
        """Whether an expression has real values only."""
        del expression
        return False

    def sign(self, expression: Any) -> str:
        """``+`` if it is positive, ``0+`` if not negative, ``0-`` if not positive, else empty."""
        del expression
        return ""


class Kernels:
    """Rewrites expressions as rational functions of symbols of its own.

    Args:
        facts: What is known of the variables.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._kernels: dict[str, Any] = {}
        self.exponentials: dict[Any, Any] = {}
        """Symbols by what they are the exponential of; they may get rational powers."""
        self.relations: list[Any] = []
        """Expressions that are zero."""
        self.square_roots: dict[Any, Any] = {}
        """Symbols of the roots of numbers."""
        from sage.all import SR, I, pi

        self._i, self._pi = SR(I), pi

    def rewrite(self, expression: Any) -> Any:
        """The same value by the kernels' symbols."""
        from sage.symbolic.operators import add_vararg, mul_vararg

        op = expression.operator()
        if op is None:
            return self._leaf(expression)
        operands = expression.operands()
        if op in (add_vararg, operator.add):
            return sum(map(self.rewrite, operands))
        if op in (mul_vararg, operator.mul):
            value = expression.parent().one()
            for one in operands:
                value *= self.rewrite(one)
            return value
        if op is operator.pow:
            return self._power(*operands)
        name = op.name() if hasattr(op, "name") else str(op)
        rule = self._rules().get(name) if len(operands) == 1 else None
        if rule is not None:
            return rule(operands[0])
        if name == "binomial" and _is_small_natural(operands[1]):
            upper = self.rewrite(operands[0])
            value = expression.parent().one()
            for step in range(int(operands[1])):
                value *= (upper - step) / (step + 1)
            return value
        inner = [self.rewrite(one) for one in operands]
        return self._kernel(f"{name}({', '.join(map(str, inner))})")

    def _leaf(self, expression: Any) -> Any:
        if expression.is_numeric():
            number = expression.pyobject()
            if not number.parent().is_exact():
                raise TooComplicatedError("there are floating point numbers")
            real, imaginary = expression.real(), expression.imag()
            if imaginary == 0:
                return expression
            return real + imaginary * self._exponential(self._i * self._pi) ** (_half())
        if str(expression) == "e":
            return self.exp(expression.parent().one())
        return self._kernel(f"symbol {expression}")

    def _kernel(self, key: str) -> Any:
        from sage.all import SR

        if key not in self._kernels:
            self._kernels[key] = SR.symbol()
        return self._kernels[key]

    def _exponential(self, argument: Any) -> Any:
        """The symbol of an exponential whose argument is one term without a rational factor."""
        from sage.all import SR

        if argument not in self.exponentials:
            self.exponentials[argument] = SR.symbol()
        return self.exponentials[argument]

    def exp(self, argument: Any) -> Any:
        """Exponential; the product of those of the terms."""
        from sage.all import QQ
        from sage.symbolic.operators import add_vararg

        expanded = argument.expand()
        terms = expanded.operands() if expanded.operator() is add_vararg else [expanded]
        if len(terms) > TERMS_LIMIT:
            raise TooComplicatedError("an exponent has too many terms")
        value = argument.parent().one()
        for term in terms:
            number, rest = _split_number(term)
            for part, unit in ((number.real(), 1), (number.imag(), self._i)):
                part = QQ(part.pyobject()) if hasattr(part, "pyobject") else QQ(part)
                if part == 0:
                    continue
                if unit == 1 and _is_log(rest):
                    value *= self._power(rest.operands()[0], argument.parent()(part))
                    continue
                value *= self._exponential(unit * rest) ** part
        return value

    def _power(self, base: Any, exponent: Any) -> Any:
        from sage.all import QQ, ZZ, exp, log

        number = exponent.pyobject() if exponent.is_numeric() else None
        if number is not None and number in ZZ:
            if abs(number) > POWER_LIMIT:
                raise TooComplicatedError("a power is too large")
            return self.rewrite(base) ** ZZ(number)
        if number is not None and number in QQ:
            root = self.root(base, QQ(number).denominator())
            return root ** QQ(number).numerator()
        if base.is_numeric() or str(base) == "e" or not exponent.is_numeric():
            if str(base) == "e":
                return self.exp(exponent)
            return self.exp(exponent * log(base, hold=True))
        return self.rewrite(exp(exponent * log(base, hold=True), hold=True))

    def root(self, base: Any, degree: Any) -> Any:
        """Principal root: its power is the base, and of what is known to be positive more."""
        from sage.all import QQ
        from sage.symbolic.operators import mul_vararg

        if base.operator() is mul_vararg:
            good = [one for one in base.operands() if self._facts.sign(one) in ("+", "0+")]
            if good and len(base.operands()) > 1:
                rest = base.parent().one()
                for one in base.operands():
                    rest = rest if one in good else rest * one
                value = self.root(rest, degree) if rest != 1 else rest
                for one in good:
                    value *= self.root(one, degree)
                return value
        if base.operator() is operator.pow:
            inner, power = base.operands()
            if (
                power.is_numeric()
                and power.pyobject() in QQ
                and self._facts.sign(inner) in ("+", "0+")
            ):
                return self._power(inner, power / degree)
            if power == degree and degree == 2 and self._facts.is_real(inner):
                return self._abs(inner)
        inner = self.rewrite(base)
        if inner == 1 or inner == 0:
            return inner
        symbol = self._kernel(f"root {degree} of {inner}")
        self.relations.append(symbol**degree - inner)
        if degree == 2 and inner.is_numeric():
            self.square_roots[symbol] = inner.pyobject()
        return symbol

    def _abs(self, argument: Any) -> Any:
        sign = self._facts.sign(argument)
        if sign in ("+", "0+"):
            return self.rewrite(argument)
        if sign == "0-":
            return -self.rewrite(argument)
        inner = self.rewrite(argument)
        symbol = self._kernel(f"abs({inner})")
        if self._facts.is_real(argument):
            self.relations.append(symbol**2 - inner**2)
        return symbol

    def _log(self, argument: Any) -> Any:
        from sage.symbolic.operators import mul_vararg

        if argument.operator() is mul_vararg and all(
            self._facts.sign(one) == "+" for one in argument.operands()
        ):
            return sum(map(self._log, argument.operands()))
        if argument.operator() is operator.pow:
            base, power = argument.operands()
            if self._facts.sign(base) == "+" and self._facts.is_real(power):
                return self.rewrite(power) * self._log(base)
        if str(argument.operator()) == "exp" and self._facts.is_real(argument.operands()[0]):
            return self.rewrite(argument.operands()[0])
        return self._kernel(f"log({self.rewrite(argument)})")

    def _gamma(self, argument: Any) -> Any:
        """By the recurrence, from the argument without its whole part."""
        from sage.all import QQ, floor
        from sage.symbolic.operators import add_vararg

        expanded = argument.expand()
        shift = 0
        if expanded.operator() is add_vararg:
            for one in expanded.operands():
                if one.is_numeric() and one.pyobject() in QQ:
                    shift = int(floor(QQ(one.pyobject())))
        if abs(shift) > GAMMA_SHIFT_LIMIT:
            raise TooComplicatedError("the gamma function's argument is shifted too far")
        base = self.rewrite(expanded - shift)
        value = self._kernel(f"gamma({base})")
        for step in range(shift):
            value *= base + step
        for step in range(-1, shift - 1, -1):
            value /= base + step
        return value

    def _rules(self) -> dict[str, Callable[[Any], Any]]:
        i = self._i

        def waves(u: Any, unit: Any) -> tuple[Any, Any]:
            return self.exp(unit * u), self.exp(-unit * u)

        def sine(u: Any) -> Any:
            plus, minus = waves(u, i)
            return (plus - minus) / (2 * self._leaf(i))

        def cosine(u: Any) -> Any:
            plus, minus = waves(u, i)
            return (plus + minus) / 2

        def hyperbolic_sine(u: Any) -> Any:
            plus, minus = waves(u, 1)
            return (plus - minus) / 2

        def hyperbolic_cosine(u: Any) -> Any:
            plus, minus = waves(u, 1)
            return (plus + minus) / 2

        return {
            "exp": self.exp,
            "sin": sine,
            "cos": cosine,
            "tan": lambda u: sine(u) / cosine(u),
            "cot": lambda u: cosine(u) / sine(u),
            "sec": lambda u: 1 / cosine(u),
            "csc": lambda u: 1 / sine(u),
            "sinh": hyperbolic_sine,
            "cosh": hyperbolic_cosine,
            "tanh": lambda u: hyperbolic_sine(u) / hyperbolic_cosine(u),
            "coth": lambda u: hyperbolic_cosine(u) / hyperbolic_sine(u),
            "abs": self._abs,
            "log": self._log,
            "gamma": self._gamma,
            "factorial": lambda u: self._gamma(u + 1),
        }


def _half() -> Any:
    from sage.all import QQ

    return QQ((1, 2))


def _is_small_natural(expression: Any) -> bool:
    from sage.all import NN

    is_natural = expression.is_numeric() and expression.pyobject() in NN
    return is_natural and expression.pyobject() <= GAMMA_SHIFT_LIMIT


def _is_log(term: Any) -> bool:
    operation = term.operator()
    return getattr(operation, "name", lambda: "")() == "log" and len(term.operands()) == 1


def _split_number(term: Any) -> tuple[Any, Any]:
    """The numeric factor of a term, in QQ(I), and the rest."""
    from sage.symbolic.operators import mul_vararg

    one = term.parent().one()
    if term.is_numeric():
        return term, one
    number, rest = one, one
    for factor in term.operands() if term.operator() is mul_vararg else [term]:
        if factor.is_numeric():
            number *= factor
        else:
            rest *= factor
    return number, rest


def vanishes(expression: Any, facts: Facts | None = None) -> bool:
    """Whether an expression is proved to be zero wherever it is defined."""
    from sage.all import QQ, PolynomialRing, cyclotomic_polynomial, lcm

    kernels = Kernels(facts or Facts())
    try:
        rewritten = kernels.rewrite(expression)
    except (TooComplicatedError, ZeroDivisionError, ValueError):
        return False
    everything = [rewritten, *kernels.relations]
    roots = {symbol: QQ.one() for symbol in kernels.exponentials.values()}
    for one in everything:
        collect_roots(one, roots)
    symbols = sorted({v for one in everything for v in one.variables()} | set(roots), key=str)
    if not symbols:
        return bool(rewritten.is_numeric() and rewritten.pyobject() == 0)
    circle = kernels.exponentials.get(kernels._i * kernels._pi)  # noqa: SLF001 - made in this module
    if circle is not None:
        roots[circle] = lcm(2, roots[circle])
    ring = PolynomialRing(QQ, len(symbols), "k", order="degrevlex")
    generators = dict(zip(symbols, ring.gens(), strict=True))
    into = RationalReader(ring.fraction_field(), generators, roots)
    try:
        value = into.of(rewritten)
        relations = [into.of(one).numerator() for one in kernels.relations]
    except (TooComplicatedError, ZeroDivisionError):
        return False
    if circle is not None:
        relations += _square_roots(kernels, generators, generators[circle], 2 * roots[circle])
        relations.append(cyclotomic_polynomial(2 * roots[circle])(generators[circle]))
    ideal = ring.ideal(relations)
    if not relations:
        return bool(value == 0)
    return bool(value.numerator() in ideal and value.denominator() not in ideal)


def _square_roots(
    kernels: Kernels, generators: dict[Any, Any], circle: Any, order: Any
) -> list[Any]:
    """How square roots of positive numbers are made of roots of unity, where they are."""
    from sage.all import CyclotomicField

    field = CyclotomicField(order)
    found = []
    for symbol, square in kernels.square_roots.items():
        if symbol in generators and square > 0 and field(square).is_square():
            root = field(square).sqrt()
            if root.complex_embedding().real() < 0:  # it is far from zero
                root = -root
            found.append(generators[symbol] - root.polynomial()(circle))
    return found
