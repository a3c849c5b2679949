"""What `verify` answers: a verdict, the method that gave it, and what else was tried."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .wording import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROVED, REFUTED, SUPPORTED, UNDECIDED = "proved", "refuted", "supported", "undecided"

CLAIM_CHARACTERS = 300
"""Most characters of a claim that are shown."""

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class ClaimError(ValueError):
    """The claim cannot be understood; says why and what to write instead."""


@dataclass
class Verdict:
    """The answer to a claim.

    Attributes:
        verdict: ``proved``, ``refuted``, ``supported`` or ``undecided``.
        claim: What was looked at, as text.
        method: What gave the verdict; empty where nothing did.
        details: What is assumed, and what was tried besides.
        counterexample: Values of the variables that refute the claim; None where there are none.
        seconds: What it took.
    """

    verdict: str
    claim: str = ""
    method: str = ""
    details: list[str] = field(default_factory=list)
    counterexample: dict[str, Any] | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        lines = [f"{self.verdict}: {one_line(self.claim, CLAIM_CHARACTERS)}"]
        if self.method:
            lines[0] += f"  (method: {self.method})"
        if self.counterexample:
            values = ", ".join(f"{name} = {v}" for name, v in self.counterexample.items())
            lines.append(f"  counterexample: {values}")
        return "\n".join([*lines, *(f"  {detail}" for detail in self.details)])

    def __bool__(self) -> bool:
        """Refuse: four verdicts do not fit into two."""
        raise TypeError("a verdict is none of True and False; compare its .verdict with 'proved'")


def undecided(*details: str) -> Verdict:
    """Nothing was found out."""
    return Verdict(UNDECIDED, details=list(details))


def conjunction(parts: Sequence[Verdict]) -> Verdict:
    """The verdict on all of several claims together.

    One that is refuted refutes them all; the weakest of the others is that of all.
    """
    if len(parts) == 1:
        return parts[0]
    methods = list(dict.fromkeys(part.method for part in parts if part.method))
    for wanted in (REFUTED, UNDECIDED, SUPPORTED):
        for part in parts:
            if part.verdict == wanted:
                where = f"the part {part.claim}" if part.claim else "a part"
                part.details.insert(0, f"{where} is {wanted}")
                return part
    details = list(dict.fromkeys(detail for part in parts for detail in part.details))
    return Verdict(PROVED, method="; ".join(methods), details=details)
