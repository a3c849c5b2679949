"""Takes symbolic expressions that are rational into fractions of polynomials."""

from __future__ import annotations

import operator
from typing import Any

POWER_LIMIT = 400
"""Largest power of a kernel."""


class TooComplicatedError(Exception):
    """The form would become too large."""


def collect_roots(expression: Any, roots: dict[Any, Any]) -> None:
    """Note the denominators of the powers of exponentials."""
    from sage.all import QQ, lcm

    operands = expression.operands()
    if expression.operator() is operator.pow and operands[0] in roots and operands[1].is_numeric():
        roots[operands[0]] = lcm(roots[operands[0]], QQ(operands[1].pyobject()).denominator())
    for one in operands:
        collect_roots(one, roots)


class RationalReader:
    """Takes a rational expression into a field of fractions.

    Args:
        field: Of the fractions of polynomials over QQ.
        generators: What stands for the symbols.
        roots: Symbols whose generator is a root of them, with its degree.
    """

    def __init__(
        self, field: Any, generators: dict[Any, Any], roots: dict[Any, Any] | None = None
    ) -> None:
        self._field, self._generators, self._roots = field, generators, roots or {}

    def of(self, expression: Any) -> Any:
        """The fraction. Raises `TooComplicatedError`, or TypeError if it is not rational."""
        from sage.all import QQ
        from sage.symbolic.operators import add_vararg, mul_vararg

        if expression.is_numeric():
            return self._field(QQ(expression.pyobject()))
        op, operands = expression.operator(), expression.operands()
        if op is None:
            power = self._roots.get(expression, 1)
            return self._field(self._generators[expression]) ** int(power)
        if op is operator.pow:
            base, exponent = operands[0], QQ(operands[1].pyobject())
            if base in self._roots:
                exponent *= self._roots[base]
                value = self._field(self._generators[base])
            else:
                value = self.of(base)
            if exponent.denominator() != 1 or abs(exponent) > POWER_LIMIT:
                raise TooComplicatedError("a power is too large or broken")
            return value ** int(exponent)
        if op not in (add_vararg, mul_vararg):
            raise TypeError(f"{op} is no rational operation")
        value = self._field.zero() if op is add_vararg else self._field.one()
        for one in operands:
            value = value + self.of(one) if op is add_vararg else value * self.of(one)
        return value
