"""Decides symbolic relations over the variables' domains: by a proof, a counterexample, or samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .domains import COMPLEX, REAL, Domain, assumed, domain_of
from .enclosing import UnknownError, holds_at
from .inequalities import proves
from .normalform import vanishes
from .relations import relation_of, settle
from .roots import counterpoint
from .searching import Search, at_point, check_cases, check_points
from .signs import Signs
from .verdict import PROVED, REFUTED, SUPPORTED, Verdict
from .wording import TooSlowError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .alarm import Alarm

STEP_SHARE = 0.4
"""Of the whole time, for one attempt at a proof."""

WHERE_DEFINED = "where both sides are defined"


@dataclass
class Question:
    """A claim with all that is needed to decide it.

    Attributes:
        claim: String, symbolic relation, function, or a list of them.
        domains: What the caller says of the variables.
        namespace: The session's global variables; a copy.
        baseline: Those at the kernel's start.
        search: How points are chosen.
        limit_s: The whole time.
        alarm: Ends an attempt.
    """

    claim: Any
    domains: dict[str, Any]
    namespace: dict[str, Any]
    baseline: Mapping[str, Any]
    search: Search
    limit_s: float
    alarm: Alarm
    known: dict[str, Domain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {name: domain_of(value, name) for name, value in self.domains.items()}


def decide_relation(question: Question, left: Any, right: Any, relation: str) -> Verdict:
    """The verdict on a relation of symbolic expressions."""
    from sage.all import SR

    left, right = SR(left), SR(right)
    variables = {str(one) for one in (*left.variables(), *right.variables())}
    if not variables:
        return settle(left, right, relation)
    default = COMPLEX if relation in ("==", "!=") else REAL
    domains, notes = domains_of(question, variables, default)
    if any(not domain.is_number_line for domain in domains.values()):
        found = check_cases(
            lambda values: settle(at_point(left, values), at_point(right, values), relation),
            domains,
            question.search,
        )
    else:
        found = _decide_on_lines(question, (left, right, relation), domains)
    if found.counterexample is None:
        found.details = [*notes, *found.details]
    return found


def domains_of(
    question: Question, names: set[str], default: str
) -> tuple[dict[str, Domain], list[str]]:
    """The variables' domains, the session's assumptions included, and how that is said."""
    from sage.symbolic.assumptions import assumptions

    standing = [one for one in assumptions() if _is_about(one, names)]
    domains, used = {}, []
    for name in sorted(names):
        domain = question.known.get(name) or _declared(name, default)
        domains[name], these = assumed(name, domain, standing)
        used += these
    question.search.conditions = [_condition(one) for one in standing if hasattr(one, "lhs")]
    notes = [f"for all {', '.join(f'{name} {domain.shown}' for name, domain in domains.items())}"]
    if standing:
        notes.append(f"assuming {', '.join(map(str, standing))}")
    return domains, notes


def _is_about(assumption: Any, names: set[str]) -> bool:
    about = [assumption._var] if hasattr(assumption, "_var") else assumption.variables()  # noqa: SLF001
    return any(str(one) in names for one in about)


def _declared(name: str, default: str) -> Domain:
    """The domain that a symbol was declared with, or the usual one."""
    from sage.all import SR, ZZ

    symbol = SR.symbol(name)
    if symbol.is_positive():
        return Domain(REAL, low=ZZ(0), is_open_low=True, shown="positive")
    if symbol.is_integer():
        return Domain("integer", shown="integer")
    if symbol.is_real():
        return Domain(REAL, shown="real")
    return Domain(default, shown=default)


def _condition(assumption: Any) -> Callable[[dict[str, Any]], bool]:
    relation = relation_of(assumption)

    def is_met(values: dict[str, Any]) -> bool:
        return holds_at(assumption.lhs(), assumption.rhs(), relation, values) is True

    return is_met


def _decide_on_lines(
    question: Question, claim: tuple[Any, Any, str], domains: dict[str, Domain]
) -> Verdict:
    """The verdict where all variables are numbers: a proof, a counterexample, or samples."""
    left, right, relation = claim
    share = question.limit_s * STEP_SHARE
    tried = []
    quick = Search(50, question.search.seed, lambda _: None, question.search.conditions)
    found = check_points(left, right, relation, domains, quick)
    if found.verdict == REFUTED:
        return found
    question.search.tell(found)
    try:
        with question.alarm.within(share):
            method = _proof(left, right, relation, domains)
    except TooSlowError:
        method = ""
        tried.append(f"the attempt at a proof was ended after {share:.3g} s")
    if method:
        return Verdict(PROVED, method=method, details=[WHERE_DEFINED])
    point = _exact_counterexample(claim, domains) if not question.search.conditions else None
    if point is not None:
        return Verdict(REFUTED, method="real roots isolated exactly", counterexample=point)
    found = check_points(left, right, relation, domains, question.search)
    if found.verdict == SUPPORTED:
        found.details.append("no exact proof was found; points are no proof")
    found.details += tried
    return found


def _exact_counterexample(
    claim: tuple[Any, Any, str], domains: dict[str, Domain]
) -> dict[str, Any] | None:
    """Where a rational function of one real variable has the wrong sign; None if nowhere is known."""
    left, right, relation = claim
    if len(domains) != 1 or relation in ("==", "!="):
        return None
    ((name, domain),) = domains.items()
    difference = left - right if relation in (">", ">=") else right - left
    if domain.kind != REAL:
        return None
    point = counterpoint(difference, domain, strict=relation in "<>")
    return None if point is None else {name: point}


def _proof(left: Any, right: Any, relation: str, domains: dict[str, Domain]) -> str:
    """How a relation is proved; empty if it is not."""
    difference = left - right
    if relation == "==":
        return "exact normal form" if vanishes(difference, Signs(domains)) else ""
    if not all(domain.is_real for domain in domains.values()):
        return ""
    try:
        signs = Signs(domains)
        if relation in (">", ">="):
            return proves(difference, domains, strict=relation == ">")
        if relation in ("<", "<="):
            return proves(-difference, domains, strict=relation == "<")
        if not signs.is_real(difference):
            return ""
        above = proves(difference, domains, strict=True)
        return above or proves(-difference, domains, strict=True)
    except UnknownError:
        return ""
