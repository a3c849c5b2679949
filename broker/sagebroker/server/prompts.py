"""Prompts that a client's user can pick: ways of working with Sage that models do not take by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from sagebroker.server.product import DEFAULT_SESSION

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from sagebroker.users import Users

Session = Annotated[str, Field(description="Session to work in")]


def add_prompts(server: MCPServer[Users]) -> None:
    """Register the prompts."""
    server.prompt(
        "solve_and_check",
        title="Solve and check",
        description="Solve a problem with Sage and check the answer by a second way.",
    )(solve_and_check)
    server.prompt(
        "explore_object",
        title="Explore an object",
        description="Compute what can be known about a mathematical object.",
    )(explore_object)
    server.prompt(
        "prove_claim",
        title="Test or prove a claim",
        description="Look for a counterexample, then for a proof, and say which it is.",
    )(prove_claim)
    server.prompt(
        "verify",
        title="Verify a claim",
        description="Have the session's own verify() check a formula, and read its verdict honestly.",
    )(verify)


def solve_and_check(
    problem: Annotated[str, Field(description="The problem, in words or formulas")],
    session: Session = DEFAULT_SESSION,
) -> str:
    """Solve, then check."""
    return f"""\
Solve this problem with SageMath, in session {session!r}:

{problem}

1. Say in one or two sentences how it is modelled, and what is assumed.
2. Compute with sage_run. Use exact rings (ZZ, QQ, number fields, polynomial rings) where there is a choice; \
numbers with a decimal point are approximate from then on.
3. Check the answer in a way that does not repeat the computation: put it back into the problem, use another \
algorithm, compare with a brute-force count for small cases, or with numerical values of high precision.
4. Answer with the result, the check and the cells' numbers in which both are. If the check fails, say so and \
begin again; if it could not be done, say that the answer is unchecked."""


def explore_object(
    thing: Annotated[str, Field(description="A Sage expression, or a description of the object")],
    session: Session = DEFAULT_SESSION,
) -> str:
    """Find out what can be known."""
    return f"""\
Explore this object with SageMath, in session {session!r}:

{thing}

1. Make it in a cell, give it a name, and show its parent and type: they tell what can be asked of it.
2. Compute its invariants, the cheap ones first. Give cells that may be long a time_limit_s, and go on without \
those that do not end.
3. Look at what is special: symmetries, factorisations, automorphisms, a plot where one says something.
4. Compare with a smaller or a better known object of the same kind.
5. Sum up in a table: invariant, value, cell. Say what is computed exactly, what is a bound or numerical, and \
what was not found out."""


def prove_claim(
    claim: Annotated[str, Field(description="The claim, in words or formulas")],
    session: Session = DEFAULT_SESSION,
) -> str:
    """Refute, support or prove."""
    return f"""\
Find out with SageMath, in session {session!r}, whether this claim is true:

{claim}

1. State it precisely: what is quantified over which set. If it can be read in several ways, name the one you take.
2. Look for a counterexample first: small cases exhaustively, then random and extreme ones. One that is found and \
checked exactly refutes the claim.
3. Only then look for a proof. For an identity, reduce the difference to zero in an exact ring; for a finite \
statement, check every case; for an inequality use interval or ball arithmetic (RIF, RBF), not floating point.
4. End with one word of these and its reason: refuted (with the counterexample), proved (by which exact \
computation or argument), supported (tested on which cases, not proved), undecided. Numerical agreement and tested \
cases are never a proof."""


def verify(
    claim: Annotated[str, Field(description="The claim: a formula, or what can be written as one")],
    session: Session = DEFAULT_SESSION,
) -> str:
    """Check by the kernel's helper."""
    return f"""\
Check this claim with the function verify() that every Sage session has, in session {session!r}:

{claim}

1. Write it as one Sage expression with == for equality, and say where each variable lives: RR, CC, ZZ, NN, \
(low, high), RealSet(0, oo), a list such as [1..100], GF(7). What is left open is complex, in inequalities real. If the \
claim can be read in several ways, name the one you take. Objects that it is about are made in the session first.
2. Call it by sage_run, for example verify("sqrt(x^2) == abs(x)", x=RR), or for a predicate \
verify(lambda n: is_prime(n^2 + n + 41), n=[0..39]). A string is better than a relation: Sage simplifies a relation \
before verify sees it. Use exact numbers: 1/10, not 0.1.
3. Read the verdict with its method and details, and report it as it is:
   proved: by exact arithmetic or rigorous enclosures, for the domain shown, where both sides are defined;
   refuted: put the counterexample into the claim yourself, and show both sides;
   supported: it holds at the points tried, no more; never call it proved;
   undecided: nothing is known, which is no sign that it is false.
4. Unless it is proved or refuted, try other means: a smaller domain or a stronger assumption, a larger \
time_limit_s, steps that are verified one by one, a substitution that makes it polynomial, an ideal membership or \
a Groebner basis, a search for a counterexample of your own. Say which steps are proved and which are not.
5. End with the verdict, the exact claim with its domain, the method, and the numbers of the cells."""
