"""Tries a claim at points: all of a finite domain, else the telling ones and random ones."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from .enclosing import Enclosing, RoundedError, UnknownError, agree, compare_balls
from .relations import settle
from .verdict import PROVED, REFUTED, SUPPORTED, ClaimError, Verdict, undecided

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .domains import Domain

POINT_BITS = 256
"""Precision at a point."""

TELL_S = 0.3
"""Between two words on how far it is."""

UNDEFINED = (ZeroDivisionError, ValueError, ArithmeticError, RuntimeError)
"""What Sage raises of a value that does not exist; the last one of infinity less infinity."""


@dataclass
class Search:
    """What a search goes by, and how it tells how far it is.

    Attributes:
        samples: Points where there is no end of them.
        seed: Of the random ones.
        tell: Is given the verdict as it stands now and then.
        conditions: Assumptions that a counterexample must meet: functions of the values.
    """

    samples: int
    seed: int
    tell: Callable[[Verdict], None]
    conditions: list[Callable[[dict[str, Any]], bool]] = field(default_factory=list)

    def allows(self, values: dict[str, Any]) -> bool:
        """Whether values are certain to meet all assumptions."""
        return all(condition(values) for condition in self.conditions)


def total(domains: dict[str, Domain]) -> int | None:
    """How many points a domain has; None if there is no end, or nobody knows."""
    count = 1
    for domain in domains.values():
        size = domain.finite_size
        if size is None:
            return None
        count *= size
    return count


def points(domains: dict[str, Domain], search: Search) -> Iterator[dict[str, Any]]:
    """Exact points: all, if there is an end; else small ones together, then random ones."""
    random = Random(search.seed)
    names = list(domains)
    if total(domains) is not None:
        for values in itertools.product(*(list(domains[n].points(random)) for n in names)):
            yield dict(zip(names, values, strict=True))
        return
    if len(names) == 1:
        for value in itertools.islice(domains[names[0]].points(random), search.samples):
            yield {names[0]: value}
        return
    each = max(2, int((search.samples / 2) ** (1 / len(names))))
    small = [list(itertools.islice(domains[n].points(random), each)) for n in names]
    for values in itertools.product(*small):
        yield dict(zip(names, values, strict=True))
    pools = [list(itertools.islice(domains[n].points(random), search.samples)) for n in names]
    for _ in range(search.samples // 2):
        yield {name: random.choice(pool) for name, pool in zip(names, pools, strict=True)}


def check_cases(
    decide: Callable[[dict[str, Any]], Verdict], domains: dict[str, Domain], search: Search
) -> Verdict:
    """The verdict on a claim about single points, each of which is decided by itself."""
    count = total(domains)
    proved, skipped = 0, 0
    doubtful: list[tuple[dict[str, Any], Verdict]] = []
    methods: dict[str, None] = {}
    told = time.monotonic()
    for values in points(domains, search):
        if not search.allows(values):
            continue
        try:
            found = decide(values)
        except ClaimError:
            raise
        except UNDEFINED:
            skipped += 1
            continue
        if found.verdict == REFUTED:
            found.counterexample = values
            return found
        if found.verdict == PROVED:
            proved += 1
            methods[found.method] = None
        else:
            doubtful.append((values, found))
        if time.monotonic() > told + TELL_S:
            told = time.monotonic()
            search.tell(_support(proved, len(doubtful), count, search, doubtful))
    notes = [f"{skipped} cases left out, in which it has no value"] if skipped else []
    if not proved and not doubtful:
        return undecided("no case was found in which it is defined", *notes)
    if count is not None and not doubtful:
        kinds = ", ".join(methods)
        return Verdict(PROVED, method=f"all {proved} cases, each by {kinds}", details=notes)
    found = _support(proved, len(doubtful), count, search, doubtful)
    found.details += notes
    return found


def _support(
    proved: int,
    unsure: int,
    count: int | None,
    search: Search,
    doubtful: list[tuple[dict[str, Any], Verdict]],
) -> Verdict:
    of_all = f" of {count}" if count is not None else ""
    seed = "" if count is not None else f", seed {search.seed}"
    weak = [one for _, one in doubtful if one.verdict != SUPPORTED]
    details = [detail for _, one in doubtful[:1] for detail in one.details]
    if weak:
        values, _ = next((v, one) for v, one in doubtful if one.verdict != SUPPORTED)
        shown = ", ".join(f"{name} = {value}" for name, value in values.items())
        return undecided(
            f"{proved} cases{of_all} hold, {len(weak)} could not be decided, as {shown}", *details
        )
    how = "hold exactly" if not unsure else f"hold, {unsure} of them by rounded numbers"
    return Verdict(
        SUPPORTED, method=f"{proved + unsure} cases{of_all} {how}{seed}", details=details
    )


def check_points(
    left: Any, right: Any, relation: str, domains: dict[str, Domain], search: Search
) -> Verdict:
    """The verdict on a symbolic relation, by enclosures at exact points."""
    from sage.all import ComplexBallField

    balls = ComplexBallField(POINT_BITS)
    agreeing, skipped = 0, 0
    told = time.monotonic()
    for values in points(domains, search):
        if not search.allows(values):
            continue
        how = ""
        try:
            at = Enclosing(balls, values)
            one, other = at.of(left), at.of(right)
            found = compare_balls(one, other, relation)
            is_near = relation in ("==", "<=", ">=") and agree(one, other)
            how = "ball arithmetic at an exact point"
        except RoundedError as error:
            return undecided(f"{error}: write exact numbers such as 1/10")
        except UnknownError:
            found, is_near = None, False
        if found is None and not is_near:
            found, how = _exactly(left, right, relation, values), "exact value"
        if found is False:
            return Verdict(REFUTED, method=how, counterexample=values)
        if found or is_near:
            agreeing += 1
        else:
            skipped += 1
        if time.monotonic() > told + TELL_S:
            told = time.monotonic()
            search.tell(_agreement(agreeing, skipped, search))
    return _agreement(agreeing, skipped, search)


def at_point(expression: Any, values: dict[str, Any]) -> Any:
    """A symbolic expression with values in the place of its variables."""
    from sage.all import SR

    return expression.subs({SR.symbol(name): value for name, value in values.items()})


def _exactly(left: Any, right: Any, relation: str, values: dict[str, Any]) -> bool | None:
    """Whether a relation holds at a point at which the enclosures overlap; None if that is not known."""
    try:
        found = settle(at_point(left, values), at_point(right, values), relation)
    except (*UNDEFINED, TypeError, NotImplementedError):
        return None
    return {PROVED: True, REFUTED: False}.get(found.verdict)


def _agreement(agreeing: int, skipped: int, search: Search) -> Verdict:
    notes = (
        [f"{skipped} points left out: undefined there, not real, or not enclosed"]
        if skipped
        else []
    )
    if not agreeing:
        return undecided("no point was found at which both sides can be enclosed", *notes)
    plural = "point" if agreeing == 1 else "points"
    method = f"holds at {agreeing} exact {plural}, {POINT_BITS} bits, seed {search.seed}"
    return Verdict(SUPPORTED, method=method, details=notes)
