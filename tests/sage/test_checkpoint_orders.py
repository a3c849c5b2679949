"""Which checkpoint a Sage kernel begins with, and what it saves when that is not the newest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.docker.keeper_harness import SAGE, Kept, kept, until

pytestmark = [pytest.mark.docker, pytest.mark.sage]

KEEP = 2


@pytest.fixture
def session(sage_image: str) -> Iterator[Kept]:
    with kept(sage_image, checkpoint={"keep": KEEP}, **SAGE) as session:
        session.await_status(state="running")
        yield session


def settle(session: Kept) -> dict[str, Any]:
    """The newest manifest, once everything is saved."""
    until(lambda: session.state()["settled"], what=f"a checkpoint; {session.state()}")
    return session.manifests()[-1]


def test_a_state_that_was_left_gives_way_to_an_empty_one(session: Kept) -> None:
    session.run("R.<z> = QQ[]; old = z^2")
    left = settle(session)["number"]
    session.ask_restore("none")
    session.replace()
    fresh = settle(session)
    assert (fresh["number"], fresh["names"], fresh["cell"]) == (left + 1, [], 0)
    session.ask_restore()
    session.replace()
    report = session.restored()
    assert (report["number"], report["names"], report["missing"]) == (left + 1, 0, [])
    assert session.run("'old' in globals(), 2^3").text == "(False, 8)"


def test_an_earlier_state_with_a_label_can_be_gone_back_to(session: Kept) -> None:
    session.run("a = matrix(QQ, 2); a.set_immutable()")
    assert session.state(label="matrix")["pending"]
    until(lambda: session.state()["settled"])
    told = session.state()
    assert (told["label"], told["unlabelled"], told["error"]) == ("matrix", "", "")
    for value in range(KEEP + 1):
        session.run(f"a = [{value}]")
        settle(session)
    session.ask_restore(told["number"])
    session.replace()
    report = session.restored()
    assert (report["number"], report["error"]) == (told["number"], "")
    assert session.run("a.nrows()").text == "2"
    fresh = settle(session)
    assert dict(zip(fresh["names"], fresh["types"], strict=True)) == {"a": "Matrix_rational_dense"}
