"""`verify` on claims whose truth is known: none is wrongly proved or refuted, and nothing changes by it.

``tests/data/claims.json`` holds the claims: ``truth`` (null: there is none to be had), the ``verdict``
expected, ``domains`` of the variables, a ``setup`` that is run before, and ``as``: ``object`` where the
claim is given as an object instead of a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.docker.keeper_harness import MIB, SAGE, Kept, kept

pytestmark = [pytest.mark.docker, pytest.mark.sage]

CLAIMS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "claims.json").read_text(encoding="utf-8")
)
LIMITS: dict[str, Any] = {"keep": 3, "time_limit_s": 8.0, "memory_limit_bytes": 256 * MIB}
ENOUGH = 60
ENDLESS = '"all(power_mod(2, k, k + 1) >= 0 for k in (1..10^15))"'


@pytest.fixture(scope="module")
def shared(sage_image: str) -> Iterator[Kept]:
    with kept(sage_image, crash_limit=100, **SAGE) as session:
        session.await_status(state="running")
        yield session


def printed(session: Kept, code: str) -> str:
    answer = session.run(code)
    assert answer.status == "ok", answer
    return answer.out


@pytest.mark.parametrize("case", CLAIMS, ids=lambda case: case["claim"][:50])
def test_no_claim_is_wrongly_proved_or_refuted(shared: Kept, case: dict[str, Any]) -> None:
    shared.run("reset()")
    if "setup" in case:
        assert shared.run(case["setup"]).status == "ok"
    claim = case["claim"] if case.get("as") == "object" else repr(case["claim"])
    domains = ", ".join(f"{name!r}: {value}" for name, value in case.get("domains", {}).items())
    shown = printed(
        shared,
        f"try:\n    found = verify({claim}, {{{domains}}}, time_limit_s=100)\n"
        "    print(found.verdict, found, sep='\\n')\nexcept ValueError as error: print('error', error)",
    )
    verdict = shown.split()[0]
    assert verdict != "proved" or case["truth"] is True, shown
    assert verdict != "refuted" or case["truth"] is False, shown
    assert verdict == case["verdict"], shown


def test_there_are_enough_claims_of_each_kind() -> None:
    assert len({case["claim"] for case in CLAIMS}) >= ENOUGH
    assert {case["verdict"] for case in CLAIMS} == {
        "proved", "refuted", "supported", "undecided", "error",
    }  # fmt: skip


def test_a_counterexample_refutes_the_claim_it_is_for(shared: Kept) -> None:
    shown = printed(
        shared,
        "found = verify('is_prime(n^2 + n + 41)', n=NN)\n"
        "print(found.counterexample, is_prime(40^2 + 40 + 41))\n"
        "print(verify(lambda a, b: a*b == b*a, a=SymmetricGroup(3), b=SymmetricGroup(3)))",
    )
    lines = shown.splitlines()
    assert lines[0] == "{'n': 40} False"
    assert lines[1].startswith("refuted: <lambda>")
    assert lines[2].startswith("  counterexample: a = ")


def test_nothing_in_the_session_changes(shared: Kept) -> None:
    shared.run("reset(); assume(x > 0); set_random_seed(5); counted = []")
    before = "print(assumptions(), sorted(n for n in globals() if n[0] != '_'), counted)"
    state = "(initial_seed(), current_randstate().python_random().getstate()[1][:5])"
    shared.run("from sage.misc.randstate import current_randstate")
    seen = printed(shared, before), printed(shared, f"print({state})")
    shown = printed(
        shared,
        "print(verify(lambda n: counted.append(n) or random() < 2 and print(n) is None, n=[1..5]))",
    )
    assert shown.startswith("supported: <lambda>")
    printed(shared, "verify('q^2 + k >= q', q=RR, k=ZZ)")
    assert (printed(shared, before), printed(shared, f"print({state})")) == seen
    shared.run("forget()")


def test_its_name_is_no_variable_and_the_users_own_wins(shared: Kept) -> None:
    shared.run("reset()")
    assert printed(shared, "print(verify('1 == 1').verdict)") == "proved\n"
    listed = shared.inside("variables", "listing('verify')")
    assert "verify" not in {entry["name"] for entry in listed["variables"]}
    assert shared.run("def verify(z): return z + 1").status == "ok"
    assert printed(shared, "print(verify(1))") == "2\n"
    listed = shared.inside("variables", "listing('verify')")
    assert "verify" in {entry["name"] for entry in listed["variables"]}
    assert printed(shared, "del verify\nprint(verify('1 == 2').verdict)") == "refuted\n"


def test_the_time_is_kept_whatever_the_claim_computes(shared: Kept) -> None:
    for claim in (ENDLESS, "'factor((2^300).next_prime()*(2^305).next_prime()) == 1'"):
        shown = printed(
            shared,
            f"import time; began = time.monotonic()\nprint(verify({claim}, time_limit_s=1))\n"
            "print(time.monotonic() - began < 30)",
        )
        assert shown.startswith("undecided: ")
        assert "the time of 1 s was over" in shown
        assert shown.endswith("True\n")


def test_what_was_found_before_the_time_was_over_is_told(shared: Kept) -> None:
    shown = printed(
        shared,
        "print(verify(lambda n: factor((2^(140 + n)).next_prime()*(2^141).next_prime()) != 1 if n > 5"
        " else __import__('time').sleep(float(1/5)) is None, n=NN, time_limit_s=3))",
    )
    assert shown.startswith("supported: ")
    assert "the time of 3 s was over" in shown


def test_an_interrupt_stops_it_and_keeps_the_variables(shared: Kept) -> None:
    shared.run("kept = 17")
    cell = shared.send(f"print('begun', flush=True)\nverify({ENDLESS}, time_limit_s=1000)")
    shared.await_output("begun")
    assert shared.interrupted(cell).ename == "KeyboardInterrupt"
    assert printed(shared, "print(kept, verify('1 < 2').verdict)") == "17 proved\n"


def test_a_claim_that_harms_its_process_harms_nothing_else(shared: Kept) -> None:
    shown = printed(shared, "import os; print(verify(lambda n: os._exit(3), n=[1..5]))")
    assert shown.startswith("undecided: ")
    assert "ended early" in shown
    shown = printed(shared, "print(verify(lambda n: 1/(n - 2) < 5, n=[1..5]))")
    assert "1 cases left out, in which it has no value" in shown


def test_a_verdict_is_restored_with_the_other_variables(sage_image: str) -> None:
    with kept(sage_image, checkpoint=LIMITS, **SAGE) as session:
        session.await_status(state="running")
        session.run("found = verify('x^2 == 2'); other = verify")
        assert session.checkpoint_of(1)["missing"] == []
        session.ask_restore()
        session.replace()
        assert session.restored()["names"] == 2
        assert printed(session, "print(found.verdict, other('1 == 1').verdict)") == (
            "refuted proved\n"
        )


def test_what_cannot_be_understood_says_what_to_write(shared: Kept) -> None:
    shared.run("reset()")
    for call, said in {
        "verify('foo == 1')": "verify(claim, foo=RR)",
        "verify('x = 1')": "== for equality",
        "verify(x + 1)": "give a relation",
        "verify(lambda k: True)": "verify(f, k=[1..100])",
        "verify('x > 0', x=5)": "no domain for x",
        "verify('x > 0', x=(0.5, 1))": "must be exact",
        "bool(verify('1 == 1'))": "compare its .verdict",
    }.items():
        shown = printed(shared, f"try: {call}\nexcept (ValueError, TypeError) as e: print(e)")
        assert said in shown
