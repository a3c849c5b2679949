"""What checkpoints and silent requests say, read on the host as hostile input."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.unit.manifests import MANIFEST, write

from sagebroker.inside import shelf
from sagebroker.kernel import checkpoints as host
from sagebroker.kernel.checkpoints import (
    expression_text,
    parse_state,
    parse_variables,
    read_checkpoints,
    state_expression,
    variables_expression,
)


def numbers(folder: Path) -> list[int]:
    return [info.number for info in read_checkpoints(folder)]


# The folder


def test_checkpoints_are_listed_with_what_they_hold(tmp_path: Path) -> None:
    write(tmp_path, 12, cell=9)
    write(tmp_path, 7)
    (tmp_path / "labels.json").write_text('{"7": "good", "3": "gone", "12": "no label"}')
    (tmp_path / "journal").write_text("")
    (tmp_path / ".writing-1-abc").mkdir()
    first, second = read_checkpoints(tmp_path)
    assert first == host.CheckpointInfo(
        number=7,
        saved_at=1000.5,
        cell=4,
        generation=2,
        names=2,
        variables=(("a", "int"), ("b", "list")),
        missing=(("g", "why"),),
        missing_total=1,
        bytes=2000,
        label="good",
    )
    assert (second.number, second.cell, second.label) == (12, 9, "")
    assert read_checkpoints(tmp_path / "nowhere") == []


def test_a_checkpoint_from_before_types_were_saved_is_listed_without_them(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    old = {key: value for key, value in MANIFEST.items() if key not in ("count", "types")}
    path.write_text(json.dumps(old))
    (info,) = read_checkpoints(tmp_path)
    assert (info.names, info.variables) == (2, (("a", ""), ("b", "")))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"names": None},
        {"names": [1]},
        {"count": -1},
        {"count": True},
        {"cell": "4"},
        {"generation": 10**30},
        {"saved_at": float("nan")},
        {"saved_at": float("inf")},
        {"saved_at": 1e12},
        {"saved_at": "now"},
        {"missing": {}},
        {"missing": [["a", "b"]]},
        {"missing": [{"name": "a"}]},
        {"bytes": None},
    ],
)
def test_a_manifest_that_no_kernel_writes_is_left_out(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, **changes)
    assert numbers(tmp_path) == [1]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\x00", '{"version": 1}'])
def test_nonsense_is_left_out(tmp_path: Path, text: str) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2).write_text(text)
    (tmp_path / "labels.json").write_text(text)
    assert numbers(tmp_path) == [1]


def test_links_pipes_and_folders_are_left_out(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    good = write(elsewhere, 1)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "1").symlink_to(good.parent)
    for number in (2, 3, 4):
        (folder / str(number)).mkdir()
    (folder / "2" / "manifest.json").symlink_to(good)
    os.mkfifo(folder / "3" / "manifest.json")
    (folder / "4" / "manifest.json").mkdir()
    os.mkfifo(folder / "5")
    (folder / "6").write_text("")
    write(folder, 7)
    os.mkfifo(folder / "labels.json")
    assert numbers(folder) == [7]
    (tmp_path / "link").symlink_to(folder)
    assert numbers(tmp_path / "link") == []


def test_a_manifest_that_is_too_large_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, more="x" * host.MANIFEST_LIMIT_BYTES)
    assert numbers(tmp_path) == [1]


def test_what_is_read_and_told_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"v{n}" for n in range(600)]
    missing = [{"name": "n" * 9000, "reason": "r" * 9000}] * 150
    write(tmp_path, 1, names=many, types=["t" * 9000], count=600, missing=missing)
    (info,) = read_checkpoints(tmp_path)
    assert (info.names, len(info.variables), info.missing_total) == (600, 500, 150)
    assert (len(info.missing), *map(len, info.missing[0])) == (100, 100, 300)
    assert info.variables[:2] == (("v0", "t" * 80), ("v1", ""))
    for number in (2, 3, 4):
        write(tmp_path, number, more="x" * 1000)
    monkeypatch.setattr(host, "MANIFESTS_LIMIT_BYTES", 3000)
    assert numbers(tmp_path) == [3, 4]  # the newest first
    monkeypatch.setattr(host, "CHECKPOINTS_LIMIT", 1)
    assert numbers(tmp_path) == [4]


def test_texts_are_one_line_that_every_encoder_takes(tmp_path: Path) -> None:
    write(tmp_path, 1, missing=[{"name": "a\x1b[31m\ud800", "reason": "b\nc"}])
    (info,) = read_checkpoints(tmp_path)
    assert info.missing == (("a [31m ", "b c"),)


def test_host_and_kernel_agree_on_the_labels() -> None:
    assert host.LABELLED_LIMIT == shelf.LABELLED_LIMIT
    assert host._LABEL.pattern == shelf.LABEL.pattern
    assert host.VERSION == shelf.VERSION


# What silent requests say

STATE: dict[str, Any] = {"number": 3, "error": "", "settled": True, "pending": False}


def test_a_state_is_read() -> None:
    state = parse_state(json.dumps(STATE))
    assert state == host.CheckpointState(**STATE, label="", unlabelled="")
    state = parse_state(json.dumps({**STATE, "label": "new", "unlabelled": "old"}))
    assert state is not None
    assert (state.label, state.unlabelled) == ("new", "old")


@pytest.mark.parametrize(
    "changes",
    [
        {"number": -1},
        {"number": True},
        {"number": "3"},
        {"error": None},
        {"settled": 1},
        {"pending": None},
        {"unlabelled": 5},
    ],
)
def test_a_state_that_no_kernel_tells_is_none(changes: dict[str, Any]) -> None:
    assert parse_state(json.dumps({**STATE, **changes})) is None


VARIABLES: list[dict[str, Any]] = [
    {"name": "a", "type": "int", "bytes": 28, "repr": "5"},
    {"name": "b", "type": "Odd", "bytes": None, "repr": None},
]


def test_variables_are_read() -> None:
    found = parse_variables(json.dumps({"variables": VARIABLES, "total": 7}))
    assert found == host.VariableList(
        variables=(
            host.Variable(name="a", type="int", bytes=28, repr="5"),
            host.Variable(name="b", type="Odd", bytes=None, repr=None),
        ),
        total=7,
    )
    long = [{**VARIABLES[0], "repr": "x" * 5000}] * 600
    found = parse_variables(json.dumps({"variables": long, "total": 600}))
    assert found is not None
    assert (len(found.variables), len(found.variables[0].repr or "")) == (500, 200)


@pytest.mark.parametrize(
    "answer",
    [
        {"total": 1},
        {"variables": [], "total": None},
        {"variables": [1], "total": 1},
        {"variables": [{"name": "a"}], "total": 1},
        {"variables": [{**VARIABLES[0], "bytes": "28"}], "total": 1},
        {"variables": [{**VARIABLES[0], "type": None}], "total": 1},
    ],
)
def test_variables_that_no_kernel_tells_are_none(answer: dict[str, Any]) -> None:
    assert parse_variables(json.dumps(answer)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000])
def test_nonsense_is_no_answer(text: str) -> None:
    assert parse_state(text) is None
    assert parse_variables(text) is None


@pytest.mark.parametrize(
    "text", ["", "plain", "it's", "both ' and \"", "é\n\t\\\x07", "\ud800😀\u2028"]
)
def test_the_string_of_an_answer_is_read(text: str) -> None:
    answer = {"status": "ok", "data": {"text/plain": repr(text)}, "metadata": {}}
    assert expression_text(answer) == text


@pytest.mark.parametrize(
    "literal",
    [
        "5",
        "'open",
        "'a' 'b'",
        "'a', 'b'",
        "'a' + 'b'",
        "b'a'",
        "f'{a}'",
        "'''a'''",
        "'a\nb'",
        r"'\q'",
        r"'\N{BEL}'",
        r"'\U00ffffff'",
        r"'\x1'",
        "'a\x00b'",
        "(" * 100_000,
        "",
        5,
        None,
        "'" + "x" * host.ANSWER_LIMIT_CHARACTERS + "'",
    ],
)
def test_anything_but_one_string_is_no_answer(literal: object) -> None:
    assert expression_text({"status": "ok", "data": {"text/plain": literal}}) is None


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "ok",
        {},
        {"status": "error", "ename": "NameError", "data": {"text/plain": "'a'"}},
        {"status": "ok"},
        {"status": "ok", "data": None},
        {"status": "ok", "data": {"text/html": "'a'"}},
    ],
)
def test_what_is_no_answer_is_none(answer: object) -> None:
    assert expression_text(answer) is None


def test_expressions_pass_their_arguments_on_whatever_these_are() -> None:
    assert state_expression() == (
        '__import__("sagebroker_inside.checkpoint", fromlist=["state"]).state()'
    )
    assert state_expression(write=True).endswith(".state(write=True)")
    assert state_expression(write=True, label="a").endswith(".state(write=True, label='a')")
    hostile = "'), __import__('os')._exit(1) #\n\"\ud800"
    (call,) = ast.parse(variables_expression(hostile, 20)).body
    assert isinstance(call, ast.Expr)
    assert isinstance(call.value, ast.Call)
    assert [ast.literal_eval(argument) for argument in call.value.args] == [hostile, 20]
