"""Encloses the values of symbolic expressions: at points by complex balls, over intervals by MPFI's.

Only functions are known here of which Arb or MPFI gives enclosures, with the branches that Sage has.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

SAME_NAME = frozenset(
    {"exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "arctan", "arcsinh", "gamma"}
)
"""Functions that balls have as methods of the same name; of `gamma` intervals have another."""

BALLS_ONLY = frozenset({"gamma", "erf", "zeta"})

POINT_BITS = (64, 256, 1024, 4096)
"""Precisions tried one after the other at a point."""

AGREEMENT_BITS = 150
"""So many of 256 must be left for two sides to be said to agree."""


class UnknownError(Exception):
    """There is no enclosure: an unknown function, a place where it is not defined, a rounded number."""


class RoundedError(UnknownError):
    """The expression holds floating point numbers, of which nobody knows what they stand for."""


class Enclosing:
    """Evaluates expressions.

    Args:
        field: ``CBF`` of some precision, or ``RIF``.
        values: What stands for the variables, by name: elements of the field, or exact numbers.
    """

    def __init__(self, field: Any, values: dict[str, Any]) -> None:
        from sage.rings.complex_arb import ComplexBallField

        self._field = field
        self._is_ball = isinstance(field, ComplexBallField)
        self._values = {name: self._number(value) for name, value in values.items()}

    def of(self, expression: Any) -> Any:
        """An enclosure of all values. Raises `UnknownError`."""
        try:
            value = self._walk(expression)
        except (ValueError, TypeError, ZeroDivisionError, ArithmeticError) as error:
            raise UnknownError(str(error)) from None
        return value

    def _number(self, value: Any) -> Any:
        """An exact number in the field."""
        from sage.all import QQbar
        from sage.structure.element import parent

        if parent(value) is self._field:
            return value
        if not parent(value).is_exact():
            raise RoundedError(f"{value} is a floating point number")
        try:
            return self._field(value)
        except (TypeError, ValueError):
            found = QQbar(value)
        if self._is_ball:
            interval = found.interval_fast(_intervals(self._field.precision()))
            return self._field(interval)
        return self._field(found)

    def _walk(self, expression: Any) -> Any:
        from sage.symbolic.operators import add_vararg, mul_vararg

        op = expression.operator()
        if op is None:
            return self._leaf(expression)
        operands = expression.operands()
        if op in (add_vararg, operator.add):
            return self._finite(sum(map(self._walk, operands), self._field.zero()))
        if op in (mul_vararg, operator.mul):
            value = self._field.one()
            for one in operands:
                value = self._finite(value * self._walk(one))
            return value
        if op is operator.pow:
            return self._finite(self._power(*operands))
        name = op.name() if hasattr(op, "name") else ""
        if len(operands) != 1:
            raise UnknownError(f"no enclosure of {name or op} is known")
        return self._finite(self._function(name, self._walk(operands[0])))

    def _leaf(self, expression: Any) -> Any:
        if expression.is_symbol() and not expression.is_constant():
            name = str(expression)
            if name not in self._values:
                raise UnknownError(f"{name} has no value")
            return self._values[name]
        if expression.is_numeric():
            return self._number(expression.pyobject())
        constants: dict[str, Callable[[], Any]] = {
            "pi": self._field.pi if hasattr(self._field, "pi") else lambda: self._real("pi"),
            "e": lambda: self._field.one().exp(),
            "euler_gamma": lambda: self._real("euler_constant"),
            "catalan": lambda: self._real("catalan_constant"),
            "golden_ratio": lambda: (1 + self._field(5).sqrt()) / 2,
        }
        if str(expression) not in constants:
            raise UnknownError(f"no enclosure of {expression} is known")
        return constants[str(expression)]()

    def _real(self, name: str) -> Any:
        from sage.all import RealBallField

        return self._field(getattr(RealBallField(max(53, self._field.precision())), name)())

    def _finite(self, value: Any) -> Any:
        if self._is_ball:
            is_good = value.real().is_finite() and value.imag().is_finite()
        else:
            is_good = not value.is_NaN()
        if not is_good:
            raise UnknownError("it is not defined there, or not known to be")
        return value

    def _power(self, base: Any, exponent: Any) -> Any:
        from sage.all import QQ, ZZ

        value = self._walk(base)
        power = exponent.pyobject() if exponent.is_numeric() else None
        if power is not None and power in ZZ:
            if power < 0 and value.contains_zero():
                raise UnknownError("a division by zero cannot be ruled out")
            return value ** ZZ(power)
        if power is not None and power in QQ and value.is_zero() and QQ(power) > 0:
            return value
        if power is not None and power in QQ and QQ(power).denominator() == 2:
            root = self._function("sqrt", value)
            numerator = QQ(power).numerator()
            if numerator < 0 and root.contains_zero():
                raise UnknownError("a division by zero cannot be ruled out")
            return root**numerator
        if value.contains_zero() and not value.is_zero():
            raise UnknownError("a power of zero cannot be ruled out")
        factor = self._walk(exponent)
        if value.is_zero():
            if factor.is_zero():
                return self._field.one()
            raise UnknownError("a power of zero is left open")
        return (factor * self._function("log", value)).exp()

    def _function(self, name: str, value: Any) -> Any:
        if name == "abs":
            return self._field(abs(value))
        if self._is_ball:
            return self._of_ball(name, value)
        if name in SAME_NAME - BALLS_ONLY:
            if name == "log" and not value.lower() >= 0:
                raise UnknownError("log of what may be negative")
            return getattr(value, name)()
        if name == "sqrt":
            if not value.lower() >= 0:
                raise UnknownError("root of what may be negative")
            return value.sqrt()
        raise UnknownError(f"no enclosure of {name} over intervals is known")

    def _of_ball(self, name: str, value: Any) -> Any:
        from sage.all import RIF

        if name in SAME_NAME | BALLS_ONLY or name == "sqrt":
            if name == "log" and value.contains_zero():
                raise UnknownError("log of zero")
            if name in ("arctan", "arcsinh") and not value.imag().is_zero():
                raise UnknownError("the branch is not certain")
            return getattr(value, name)()
        if name in ("arcsin", "arccos"):
            # On the cuts the libraries differ.
            if not value.imag().is_zero() or not -1 <= RIF(value.real()) <= 1:
                raise UnknownError("the branch is not certain")
            return getattr(value, name)()
        if name == "factorial":
            return (value + 1).gamma()
        if name in ("conjugate", "sec", "csc", "cot"):
            return getattr(value, name)()
        if name in ("real_part", "imag_part"):
            return self._field(value.real() if name == "real_part" else value.imag())
        raise UnknownError(f"no enclosure of {name} is known")


def _intervals(bits: int) -> Any:
    from sage.all import ComplexIntervalField

    return ComplexIntervalField(bits)


def holds_at(left: Any, right: Any, relation: str, values: dict[str, Any]) -> bool | None:
    """Whether a relation certainly holds, or certainly fails, at a point.

    Args:
        left: Expression.
        right: Expression.
        relation: As in `Piece`.
        values: Exact numbers by the variables' names.

    Returns:
        None where neither is certain: the sides may be equal, or not defined, or not real though
        they are compared by order.

    Raises:
        RoundedError: There are floating point numbers.
    """
    from sage.all import ComplexBallField

    for bits in POINT_BITS:
        try:
            at = Enclosing(ComplexBallField(bits), values)
            one, other = at.of(left), at.of(right)
        except RoundedError:
            raise
        except UnknownError:
            continue
        found = compare_balls(one, other, relation)
        if found is not None:
            return found
    return None


def agree_at(left: Any, right: Any, values: dict[str, Any]) -> bool:
    """Whether two expressions have nearly the same value at a point: in all the bits looked at."""
    from sage.all import ComplexBallField

    try:
        at = Enclosing(ComplexBallField(POINT_BITS[1]), values)
        return agree(at.of(left), at.of(right))
    except UnknownError:
        return False


def agree(one: Any, other: Any) -> bool:
    """Whether two balls overlap, and are small."""
    difference = one - other
    try:
        size = max(1, one.abs().upper())
        return bool(difference.contains_zero() and difference.rad() < size * 2.0**-AGREEMENT_BITS)
    except RuntimeError:  # beyond the exponents that Sage can turn into a number
        return False


def compare_balls(one: Any, other: Any, relation: str) -> bool | None:
    """Whether a relation certainly holds of all that is in two complex balls; None: not certain."""
    difference = one - other
    if relation in ("==", "!="):
        if not difference.contains_zero():
            return relation == "!="
        if difference.is_zero():  # both are exact numbers
            return relation == "=="
        return None
    if not (one.imag().is_zero() and other.imag().is_zero()):
        return None
    real = difference.real()
    if real > 0:
        return relation in (">", ">=")
    if real < 0:
        return relation in ("<", "<=")
    if real.is_zero():
        return relation in ("<=", ">=")
    return None
