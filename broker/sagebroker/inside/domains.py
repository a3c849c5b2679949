"""Where a claim's variables live: what the caller and the session's assumptions say, and points of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .verdict import ClaimError
from .wording import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

COMPLEX, REAL, RATIONAL, INTEGER, ELEMENTS = "complex", "real", "rational", "integer", "elements"

INTERVAL_ENDS = 2


@dataclass(frozen=True)
class Domain:
    """What a variable runs through.

    Attributes:
        kind: ``complex``, ``real``, ``rational``, ``integer`` or ``elements``.
        low: Lower bound of numbers; None if there is none.
        high: Upper bound.
        is_open_low: Whether the lower bound is left out.
        is_open_high: Whether the upper bound is left out.
        elements: What is run through, if it is neither kind of number.
        size: How many elements there are; None if there is no end.
        shown: For people.
    """

    kind: str
    low: Any = None
    high: Any = None
    is_open_low: bool = False
    is_open_high: bool = False
    elements: Any = None
    size: int | None = None
    shown: str = ""

    @property
    def is_number_line(self) -> bool:
        """Whether a symbol can stand for the elements."""
        return self.kind != ELEMENTS

    @property
    def is_real(self) -> bool:
        """Whether all elements are known to be real numbers."""
        return self.kind in (REAL, RATIONAL, INTEGER)

    def may_contain(self, value: Any) -> bool:
        """Whether an exact real number is within the bounds."""
        if self.low is not None and (value < self.low or (self.is_open_low and value == self.low)):
            return False
        above = self.high is not None and value > self.high
        return not above and not (self.is_open_high and value == self.high)

    def points(self, random: Random) -> Iterator[Any]:
        """Exact elements, the telling ones first, then random ones without end."""
        if self.kind == ELEMENTS:
            yield from iter(self.elements)
        elif self.kind == COMPLEX:
            yield from _complex_points(random)
        elif self.kind == INTEGER:
            yield from self._integers(random)
        else:
            yield from self._rationals(random)

    def _rationals(self, random: Random) -> Iterator[Any]:
        from sage.all import QQ

        ends = [end for end in (self.low, self.high) if end is not None and end in QQ]
        for value in map(QQ, [*ends, *TELLING]):
            if self.may_contain(value):
                yield value
        low, high = self._numbers()
        while True:
            size = 10 ** random.choice((1, 1, 1, 2, 4, 6))  # now and then far away
            part = QQ((random.randint(0, 10**6), 10**6))
            if low is not None and high is not None:
                value = low + (high - low) * part
            elif low is not None:
                value = low + size * part
            else:
                value = high - size * part if high is not None else size * (2 * part - 1)
            if self.may_contain(value):
                yield value

    def _numbers(self) -> tuple[Any, Any]:
        """Rational bounds, within the true ones."""
        from sage.all import AA, QQ

        def near(end: Any, sign: int) -> Any:
            if end is None or end in QQ:
                return None if end is None else QQ(end)
            return QQ(AA(end).n(60).simplest_rational()) + sign * QQ((1, 10**6))

        return near(self.low, 1), near(self.high, -1)

    def _integers(self, random: Random) -> Iterator[Any]:
        from sage.all import ZZ, ceil, floor

        low = (
            None
            if self.low is None
            else ZZ(floor(self.low) if self.is_open_low else ceil(self.low))
        )
        high = (
            None
            if self.high is None
            else ZZ(ceil(self.high) if self.is_open_high else floor(self.high))
        )
        low = low + 1 if low is not None and self.is_open_low else low
        high = high - 1 if high is not None and self.is_open_high else high
        if low is not None and high is not None:
            yield from (ZZ(value) for value in range(low, high + 1))
            return
        if low is None and high is None:
            yield from (ZZ(value) for near in range(_NEAR) for value in ({near, -near}))
        for near in range(_NEAR):
            if low is not None:
                yield low + near
            elif high is not None:
                yield high - near
        while True:
            value = ZZ(random.randint(_NEAR, 10 ** random.randint(3, 12)))
            if low is not None or high is not None:
                yield low + value if low is not None else high - value
            else:
                yield value * random.choice((1, -1))

    @property
    def finite_size(self) -> int | None:
        """How many elements there are; None if there is no end, or nobody knows."""
        if self.kind == INTEGER and self.low is not None and self.high is not None:
            from random import Random

            return sum(1 for _ in itertools.islice(self._integers(Random(0)), COUNT_LIMIT + 1))
        return self.size


TELLING = (0, 1, -1, 2, -2, "1/2", "-1/2", 3, -3, "1/3", 10, -10, "1/10", 100, -100)
"""Numbers that are tried first, as QQ reads them."""

_NEAR = 2000
"""Integers near zero, or near a bound, that are tried before random ones."""

COUNT_LIMIT = 10**7
"""Elements beyond which nobody would wait for the end of a count."""


def _complex_points(random: Random) -> Iterator[Any]:
    from sage.all import QQ, QuadraticField

    unit = QuadraticField(-1, "I").gen()
    real = [QQ(one) for one in (1, -1, 2, -2, 0, "1/2", "-1/2", 3, -5, 10, -10)]
    yield from real
    yield from (a + b * unit for a in real[:6] for b in real[:4])
    while True:
        a, b = (QQ((random.randint(-(10**4), 10**4), 10**3)) for _ in range(2))
        yield a + b * unit


def domain_of(value: Any, name: str) -> Domain:
    """What a caller means by a domain.

    Raises:
        ClaimError: It is none.
    """
    from sage.all import AA, CC, CDF, CIF, NN, QQ, RDF, RIF, RLF, RR, SR, ZZ, QQbar
    from sage.sets.real_set import RealSet

    shown = one_line(str(value), 60)
    for kind, those in (
        (REAL, (RR, RDF, RLF, RIF, AA)), (COMPLEX, (CC, CDF, CIF, QQbar, SR)), (INTEGER, (ZZ,)), (RATIONAL, (QQ,)),
    ):  # fmt: skip
        if any(value is one for one in those):
            return Domain(kind, shown={REAL: "real", COMPLEX: "complex"}.get(kind, shown))
    if value is NN:
        return Domain(INTEGER, low=ZZ(0), shown="non-negative integer")
    if isinstance(value, tuple) and len(value) == INTERVAL_ENDS:
        return _interval(value[0], value[1], is_open=(False, False))
    if isinstance(value, RealSet):
        if value.n_components() != 1:
            raise ClaimError(f"the domain of {name} must be one interval; verify each by itself")
        part = value[0]
        opened = not part.lower_closed(), not part.upper_closed()
        return _interval(part.lower(), part.upper(), is_open=opened)
    return _collection(value, name, shown)


def _interval(low: Any, high: Any, *, is_open: tuple[bool, bool]) -> Domain:
    from sage.all import AA, Infinity

    try:
        ends = [None if abs(end) == Infinity else AA(end) for end in (low, high)]
    except (TypeError, ValueError):
        raise ClaimError(
            "an interval's ends must be exact: rational, algebraic or infinite"
        ) from None
    is_left_open, is_right_open = is_open[0] or ends[0] is None, is_open[1] or ends[1] is None
    signs = "[("[is_left_open] + f"{low}, {high}" + "])"[is_right_open]
    return Domain(REAL, ends[0], ends[1], is_left_open, is_right_open, shown=f"in {signs}")


def _collection(value: Any, name: str, shown: str) -> Domain:
    try:
        iter(value)
    except (TypeError, NotImplementedError):
        raise ClaimError(
            f"{shown} is no domain for {name}: give RR, CC, ZZ, QQ, NN, (low, high), a RealSet, "
            "a list, or a Sage parent that can be iterated over"
        ) from None
    if iter(value) is value:
        value = list(value)  # a generator ends only once
    size: int | None
    try:
        size = int(value.cardinality()) if hasattr(value, "cardinality") else len(value)
    except (TypeError, OverflowError, AttributeError, NotImplementedError, ValueError):
        size = None
    return Domain(ELEMENTS, elements=value, size=size, shown=f"in {shown}")


def assumed(name: str, domain: Domain, assumptions: list[Any]) -> tuple[Domain, list[Any]]:
    """A variable's domain within what the session assumes, and the assumptions used.

    Those that are not understood are left to be looked at for each counterexample.
    """
    from dataclasses import replace

    from sage.all import AA

    used: list[Any] = []
    for one in assumptions:
        if hasattr(one, "_assumption"):
            if str(one._var) == name and one._assumption in (REAL, INTEGER, RATIONAL):  # noqa: SLF001
                order = [COMPLEX, REAL, RATIONAL, INTEGER]
                if domain.kind in order and order.index(one._assumption) > order.index(domain.kind):  # noqa: SLF001
                    domain = replace(domain, kind=one._assumption, shown=str(one._assumption))  # noqa: SLF001
                used.append(one)
            continue
        bound = _bound(one, name)
        if bound is None or domain.kind == ELEMENTS:
            continue
        relation, end = bound
        kind = REAL if domain.kind == COMPLEX else domain.kind
        domain = replace(domain, kind=kind, shown=kind if domain.kind == COMPLEX else domain.shown)
        strict = relation in "<>"
        if relation[0] == ">" and (domain.low is None or AA(end) >= domain.low):
            domain = replace(domain, low=AA(end), is_open_low=strict)
        elif relation[0] == "<" and (domain.high is None or AA(end) <= domain.high):
            domain = replace(domain, high=AA(end), is_open_high=strict)
        used.append(one)
    return domain, used


_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _bound(assumption: Any, name: str) -> tuple[str, Any] | None:
    """What an assumption says of one variable: a relation, and an exact number."""
    from sage.all import AA

    from .relations import relation_of

    relation = relation_of(assumption)
    left, right = assumption.lhs(), assumption.rhs()
    if str(right) == name:
        left, right, relation = right, left, _MIRRORED.get(relation, "")
    if str(left) != name or relation not in _MIRRORED:
        return None
    try:
        return relation, AA(right)
    except (TypeError, ValueError):
        return None
