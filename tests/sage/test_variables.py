"""The list of variables, with objects that do not want to be shown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.docker.keeper_harness import SAGE, Kept, kept

pytestmark = [pytest.mark.docker, pytest.mark.sage]

HOSTILE = """
import os, time, ctypes
class Loops:
    def __repr__(self):
        while True: pass
class Stubborn:
    def __repr__(self):
        while True:
            try: time.sleep(1000)
            except BaseException: pass
class Exits:
    def __repr__(self): os._exit(0)
class Crashes:
    def __repr__(self): ctypes.string_at(int(1))
class Raises:
    def __repr__(self): raise SystemExit
class Prints:
    def __repr__(self): print('hello'); os.system('echo hello'); return 'quiet'
class Eats:
    def __repr__(self): return 'x' * 2^40
class Changes:
    def __repr__(self): globals()['changed'] = True; return 'once'
class Meta(type):
    @property
    def __name__(self): raise ValueError
class Nameless(metaclass=Meta): pass
class Sized:
    nbytes = 'many'
"""


@pytest.fixture(scope="module")
def shared(sage_image: str) -> Iterator[Kept]:
    with kept(sage_image, crash_limit=100, **SAGE) as session:
        session.await_status(state="running")
        yield session


@pytest.fixture
def session(shared: Kept) -> Kept:
    shared.replace()
    return shared


def listed(session: Kept, call: str = "listing()") -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in session.inside("variables", call)["variables"]}


def test_variables_are_listed_with_type_size_and_value(session: Kept) -> None:
    session.run(
        "a = 2^100; R.<x> = QQ[]; f = x^2 - 1; words = ['a'] * 1000; import numpy as np;"
        " m = np.zeros(1000); text = 'line\\nline' * 100; M = matrix(ZZ, 2)"
    )
    found = listed(session)
    assert set(found) == {"a", "R", "x", "f", "words", "np", "m", "text", "M"}
    assert (found["a"]["type"], found["a"]["repr"]) == (
        "Integer",
        "1267650600228229401496703205376",
    )
    assert found["f"]["repr"] == "x^2 - 1"
    assert found["M"]["repr"] == "[0 0] [0 0]"
    assert found["m"]["bytes"] == 8000
    assert found["words"]["bytes"] > 8000
    assert all(len(entry["repr"]) <= 120 and "\n" not in entry["repr"] for entry in found.values())


def test_names_can_be_chosen(session: Kept) -> None:
    session.run("alpha = 1; beta = 2; alpine = 3")
    assert list(listed(session, "listing('al*')")) == ["alpha", "alpine"]
    answer = session.inside("variables", "listing('*', 1)")
    assert (len(answer["variables"]), answer["total"]) == (1, 3)


def test_hostile_objects_are_listed_without_their_value(session: Kept) -> None:
    kinds = ["Loops", "Stubborn", "Exits", "Crashes", "Raises", "Eats", "Nameless", "Sized"]
    session.run(HOSTILE)
    session.run("; ".join(f"_{kind} = {kind}()" for kind in kinds) + "; last = 5")
    found = listed(session)
    for kind in kinds[:6]:
        assert (found[f"_{kind}"]["type"], found[f"_{kind}"]["repr"]) == (kind, None)
    assert found["_Nameless"]["type"] == "Nameless"
    assert found["last"]["repr"] == "5"
    assert session.run("last").text == "5"


def test_looking_changes_and_prints_nothing(session: Kept) -> None:
    session.run(HOSTILE)
    session.run("_loud = Prints(); changing = Changes(); before = 1")
    assert listed(session)["_loud"]["repr"] == "quiet"
    answer = session.run(
        "print('changed' in globals(), _, len(Out), os.path.exists('/checkpoint/1'))"
    )
    assert answer.out == "False  0 False\n"
    assert session.run(
        "import os\ntry: os.wait()\nexcept ChildProcessError: print('none')"
    ).out == ("none\n")
