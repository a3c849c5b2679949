"""What follows for an expression from where its variables live: whether it is real, and its sign."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .enclosing import Enclosing, UnknownError
from .normalform import Facts

if TYPE_CHECKING:
    from .domains import Domain

REAL_FUNCTIONS = frozenset(
    {"exp", "sin", "cos", "sinh", "cosh", "tanh", "arctan", "arcsinh", "abs", "erf"}
)
"""Real and smooth (but `abs`) for all real numbers."""

POSITIVE_FUNCTIONS = frozenset({"exp", "cosh"})

REAL_CONSTANTS = frozenset({"pi", "e", "euler_gamma", "catalan", "golden_ratio"})

NEGATED = {"+": "-", "-": "+", "0+": "0-", "0-": "0+", "": ""}

_PRODUCT = {("+", "+"): "+", ("+", "-"): "-", ("-", "-"): "+"}


class Signs(Facts):
    """Rules of signs.

    Args:
        domains: Of the variables, by name.
    """

    def __init__(self, domains: dict[str, Domain]) -> None:
        self._domains = domains

    def is_real(self, expression: Any) -> bool:
        """Whether an expression has real values only."""
        return self._is_made_of(expression, smooth=False)

    def is_smooth(self, expression: Any) -> bool:
        """Whether it is real, and has derivatives everywhere in the domain, its closed ends included."""
        return self._is_made_of(expression, smooth=True)

    def _is_made_of(self, expression: Any, *, smooth: bool) -> bool:
        from sage.all import QQ, ZZ
        from sage.symbolic.operators import add_vararg, mul_vararg

        op, operands = expression.operator(), expression.operands()
        if op is None:
            if expression.is_numeric():
                return expression.pyobject() in QQ
            domain = self._domains.get(str(expression))
            return str(expression) in REAL_CONSTANTS or (domain is not None and domain.is_real)
        if not all(self._is_made_of(one, smooth=smooth) for one in operands):
            return False
        if op in (add_vararg, mul_vararg, operator.add, operator.mul):
            return True
        if op is operator.pow:
            base, exponent = operands
            if exponent.is_numeric() and exponent.pyobject() in ZZ:
                return exponent.pyobject() >= 0 or self.sign(base) in ("+", "-") or not smooth
            return self.sign(base) == "+" or (self.sign(base) == "0+" and not smooth)
        name = getattr(op, "name", lambda: "")()
        if name == "log":
            return self.sign(operands[0]) == "+"
        return name in REAL_FUNCTIONS and not (smooth and name == "abs")

    def range_of(self, expression: Any) -> Any:
        """An interval that holds all values. Raises `UnknownError`."""
        from sage.all import RIF, Infinity

        values = {}
        for name, domain in self._domains.items():
            if domain.is_real:
                low = RIF(-Infinity) if domain.low is None else RIF(domain.low)
                high = RIF(Infinity) if domain.high is None else RIF(domain.high)
                values[name] = RIF(low.lower(), high.upper())
        return Enclosing(RIF, values).of(expression)

    def sign(self, expression: Any) -> str:
        """``+``, ``-``, ``0+`` (not negative), ``0-`` (not positive); empty where it is not known."""
        found = self._by_rules(expression)
        if found in ("+", "-"):
            return found
        try:
            values = self.range_of(expression)
        except UnknownError:
            return found
        if values.lower() > 0 or values.upper() < 0:
            return "+" if values.lower() > 0 else "-"
        if values.lower() >= 0 or values.upper() <= 0:
            return found or ("0+" if values.lower() >= 0 else "0-")
        return found

    def _by_rules(self, expression: Any) -> str:
        from sage.symbolic.operators import add_vararg, mul_vararg

        op, operands = expression.operator(), expression.operands()
        if op is None:
            return self._of_leaf(expression)
        if op in (add_vararg, mul_vararg, operator.add, operator.mul):
            signs = [self.sign(one) for one in operands]
            return _of_sum(signs) if op in (add_vararg, operator.add) else _of_product(signs)
        if op is operator.pow:
            return self._of_power(*operands)
        name = getattr(op, "name", lambda: "")()
        if name in POSITIVE_FUNCTIONS and self.is_real(operands[0]):
            return "+"
        if name == "abs":
            return "+" if self.sign(operands[0]) in ("+", "-") else "0+"
        if name in ("sinh", "tanh", "arctan", "arcsinh") and self.is_real(operands[0]):
            return self.sign(operands[0])
        return ""

    def _of_leaf(self, expression: Any) -> str:
        from sage.all import QQ

        if expression.is_numeric():
            number = expression.pyobject()
            if number not in QQ:
                return ""
            return "+" if number > 0 else "-" if number < 0 else "0+"
        if str(expression) in REAL_CONSTANTS:
            return "+"
        domain = self._domains.get(str(expression))
        if domain is None or not domain.is_real:
            return ""
        if domain.low is not None and domain.low >= 0:
            return "+" if domain.low > 0 or domain.is_open_low else "0+"
        if domain.high is not None and domain.high <= 0:
            return "-" if domain.high < 0 or domain.is_open_high else "0-"
        return ""

    def _of_power(self, base: Any, exponent: Any) -> str:
        from sage.all import QQ, ZZ

        if not (self.is_real(base) and self.is_real(exponent)):
            return ""
        sign = self.sign(base)
        if sign == "+":
            return "+"
        if not exponent.is_numeric() or exponent.pyobject() not in QQ:
            return ""
        if exponent.pyobject() in ZZ:
            if ZZ(exponent.pyobject()) % 2 == 0:
                return "+" if sign == "-" else "0+"
            return sign
        return "0+" if sign == "0+" else ""


def _of_sum(signs: list[str]) -> str:
    for strict, weak in (("+", "0+"), ("-", "0-")):
        if all(sign in (strict, weak) for sign in signs):
            return strict if strict in signs else weak
    return ""


def _of_product(signs: list[str]) -> str:
    if "" in signs:
        return ""
    is_negative = sum(sign in ("-", "0-") for sign in signs) % 2 == 1
    strict = all(sign in ("+", "-") for sign in signs)
    return ("" if strict else "0") + ("-" if is_negative else "+")


def narrowed(domain: Domain, *, low: Any = None, high: Any = None) -> Domain:
    """The part of a real domain on one side of a point within it, the point included."""
    if low is not None:
        return replace(domain, low=low, is_open_low=False)
    return replace(domain, high=high, is_open_high=False)
