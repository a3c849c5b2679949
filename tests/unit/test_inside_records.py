"""Records of a checkpoint: written with what they share, read back strictly and around losses."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.inside_records import MIB, Buffered, CannotReturn, HalfReturns, Refuses, Written

from sagebroker.inside import pickling, reviving, unpickling
from sagebroker.inside.pickling import LimitError

READERS: list[Callable[[Written], dict[str, Any]]] = [
    lambda written: written.read(),
    lambda written: written.read(skip={}),
]
BOTH_WAYS = pytest.mark.parametrize("read", READERS, ids=["strictly", "around"])


@BOTH_WAYS
def test_an_object_of_two_variables_is_one_again(read: Callable[[Written], dict[str, Any]]) -> None:
    shared = [1, {2: "x"}]
    written = Written({})
    written.write(a=shared, b={"in": shared}, c=(shared[1], {3}, frozenset({4}), b"bytes"))
    found = read(written)
    assert found["a"] == shared
    assert found["b"]["in"] is found["a"]
    assert found["c"][0] is found["a"][1]
    assert found["c"][1:] == ({3}, frozenset({4}), b"bytes")


@BOTH_WAYS
def test_a_record_that_fails_leaves_no_trace(read: Callable[[Written], dict[str, Any]]) -> None:
    shared = ["text", [1]]
    written = Written({})
    written.write(a=shared)
    before = written.budget[0]
    inner = ["only in the one that fails"]
    with pytest.raises(TypeError, match="generator"):
        written.write(bad=[shared, inner, Refuses(inner)])
    assert written.budget[0] == before
    written.write(c=[shared, inner], d=inner)
    found = read(written)
    assert list(found) == ["a", "c", "d"]
    assert found["c"] == [shared, inner]
    assert found["c"][0] is found["a"]
    assert found["c"][1] is found["d"]


@BOTH_WAYS
def test_large_buffers_go_to_their_own_file(read: Callable[[Written], dict[str, Any]]) -> None:
    large = Buffered(bytearray(b"x" * 2 * MIB))
    small = Buffered(bytearray(b"y"))
    written = Written({})
    written.write(large=large, small=small, again=[large])
    lengths = [len(file.getvalue()) for file in written.files]
    assert lengths[0] < MIB < lengths[1] == 2 * MIB + pickling.LENGTH_BYTES
    found = read(written)
    assert (found["large"].content, found["small"].content) == (b"x" * 2 * MIB, b"y")
    assert found["again"][0] is found["large"]


def test_what_exceeds_the_budget_is_taken_back() -> None:
    written = Written({}, budget=MIB)
    written.write(a="x" * 1000)
    for value in ("y" * 2 * MIB, pickle.PickleBuffer(bytearray(2 * MIB))):
        with pytest.raises(LimitError):
            written.write(b=value)
    written.write(c="z" * 1000)
    assert written.read() == {"a": "x" * 1000, "c": "z" * 1000}


@BOTH_WAYS
def test_the_namespace_itself_becomes_that_of_the_reader(
    read: Callable[[Written], dict[str, Any]],
) -> None:
    namespace: dict[str, Any] = {"a": 1}
    namespace["own"] = namespace
    written = Written(namespace)
    written.write(**namespace)
    found = read(written)
    assert found["own"] is reviving.live_namespace()


@BOTH_WAYS
def test_closures_go_on_sharing_their_variables(read: Callable[[Written], dict[str, Any]]) -> None:
    if not pickling.BY_VALUE:
        pytest.skip("needs cloudpickle")
    namespace: dict[str, Any] = {"__name__": "__main__", "factor": 2}
    exec(
        "def counter():\n"
        "    n = 0\n"
        "    def up():\n"
        "        nonlocal n\n"
        "        n += factor\n"
        "        return n\n"
        "    return up, lambda: n\n"
        "up, look = counter()\n",
        namespace,
    )
    written = Written(namespace)
    written.write(up=namespace["up"], look=namespace["look"])
    found = read(written)
    reviving.live_namespace()["factor"] = 10
    assert (found["up"](), found["look"]()) == (10, 10)


@pytest.mark.parametrize("kind", [CannotReturn, HalfReturns])
def test_what_cannot_be_made_again_is_read_around(kind: Any) -> None:
    shared = [1]
    bad = kind(shared)
    written = Written({})
    written.write(a=1, bad=bad, holds=[bad, 2], keyed={"k": bad}, b=shared, c=[shared])
    with pytest.raises(ValueError, match="no way back"):
        written.read()
    found = written.read(skip={})
    lost = {name for name, value in found.items() if isinstance(value, unpickling.Lost)}
    assert lost == {"bad", "holds", "keyed"}
    assert found["holds"].reason == "ValueError: no way back"
    assert (found["a"], found["b"]) == (1, [1])
    assert found["c"][0] is found["b"]


def test_nothing_of_a_skipped_record_is_made() -> None:
    written = Written({})
    written.write(a=1, bad=[CannotReturn(), random.Random(5)], b=2)
    found = written.read(skip={"bad": "it killed"})
    assert found["bad"].reason == "it killed"
    assert (found["a"], found["b"]) == (1, 2)


def test_a_plain_value_in_a_skipped_record_can_still_be_shared() -> None:
    shared = ["shared"]
    written = Written({})
    written.write(bad=[CannotReturn(), shared], good=shared)
    found = written.read(skip={"bad": "it killed"})
    assert isinstance(found["bad"], unpickling.Lost)
    assert found["good"] == ["shared"]
