"""Labels of checkpoints, and when a kernel owes one: without a kernel, and without a fork."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sagebroker.inside import checkpoint
from sagebroker.inside.settings import CheckpointConfig
from sagebroker.inside.shelf import LABEL_RULE, LABELLED_LIMIT, LABELS, Shelf
from sagebroker.inside.wording import TYPE_CHARACTERS, type_name


def made_shelf(folder: Path, *numbers: int, **labels: int) -> Shelf:
    for number in numbers:
        (folder / str(number)).mkdir()
    shelf = Shelf(folder)
    for label, number in labels.items():
        shelf.label(number, label)
    return shelf


# The folder


def test_checkpoints_with_a_label_stay_beside_the_newest_ones(tmp_path: Path) -> None:
    shelf = made_shelf(tmp_path, *range(1, 9), first=1, middle=5)
    shelf.prune(keep=3)
    assert shelf.numbers() == [1, 5, 6, 7, 8]
    assert shelf.labels() == {1: "first", 5: "middle"}


def test_the_newest_checkpoint_stays_whatever_is_kept(tmp_path: Path) -> None:
    shelf = made_shelf(tmp_path, 1, 2, 3, first=1)
    shelf.prune(keep=0)
    assert shelf.numbers() == [1, 3]


def test_a_newest_checkpoint_with_a_label_takes_no_place_of_others(tmp_path: Path) -> None:
    shelf = made_shelf(tmp_path, 1, 2, 3, 4, newest=4)
    shelf.prune(keep=2)
    assert shelf.numbers() == [2, 3, 4]


def test_a_label_goes_over_to_the_checkpoint_that_gets_it_anew(tmp_path: Path) -> None:
    shelf = made_shelf(tmp_path, 1, 2, 3, good=1, other=2)
    assert shelf.label(3, "good") == ""
    assert shelf.labels() == {2: "other", 3: "good"}
    assert json.loads((tmp_path / LABELS).read_text()) == {"2": "other", "3": "good"}


def test_one_label_too_many_makes_the_oldest_checkpoint_ordinary_and_tells_its_label(
    tmp_path: Path,
) -> None:
    shelf = made_shelf(tmp_path, *range(1, LABELLED_LIMIT + 2))
    told = [shelf.label(number, f"n{number}") for number in shelf.numbers()]
    assert told == [*[""] * LABELLED_LIMIT, "n1"]
    assert list(shelf.labels()) == shelf.numbers()[1:]
    # One that is taken over needs no further place.
    assert shelf.label(6, "n2") == ""


def test_labels_of_checkpoints_that_somebody_removed_take_no_place(tmp_path: Path) -> None:
    shelf = made_shelf(tmp_path, *range(1, LABELLED_LIMIT + 1))
    for number in shelf.numbers():
        shelf.label(number, f"n{number}")
    (tmp_path / "1").rmdir()
    written = shelf.begin()
    shelf.publish(written, 6)
    assert shelf.label(6, "new") == ""
    assert 1 not in shelf.labels()


def test_a_number_that_comes_again_does_not_inherit_a_label(tmp_path: Path) -> None:
    shelf = made_shelf(tmp_path, 1, 2, old=2)
    (tmp_path / "2").rmdir()
    shelf.publish(shelf.begin(), 2)
    assert shelf.labels() == {}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"1": 5}',
        '{"1": ""}',
        '{"1": "a b"}',
        '{"one": "a"}',
        '{"01": "a"}',
        '{"9": "a"}',
    ],
)
def test_a_file_of_labels_that_is_not_ours_gives_none(tmp_path: Path, content: str) -> None:
    shelf = made_shelf(tmp_path, 1)
    (tmp_path / LABELS).write_text(content)
    assert shelf.labels() == {}


# The kernel's part


class Loop:
    """A kernel that does nothing by itself; what it is to do later is remembered."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []
        self.io_loop = self
        self.events = SimpleNamespace(register=lambda *_: None)
        self.shell = SimpleNamespace(events=self.events, user_ns={})

    def pre_handler_hook(self) -> None:
        """As ipykernel has it."""

    def call_later(self, _: float, call: Callable[[], None]) -> None:
        self.later.append(call)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """With checkpoints installed."""
    monkeypatch.setattr(checkpoint, "_installed", None)
    made = Loop()
    checkpoint.install(made, CheckpointConfig(folder=str(tmp_path)), 1, {})
    return made


def state(**asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(checkpoint.state(**asked))
    return found


NOTHING_TO_DO = {"number": 0, "error": "", "settled": True, "pending": False}


def test_a_checkpoint_that_is_owed_is_due_after_the_first_request(kernel: Loop) -> None:
    assert checkpoint._installed is not None
    checkpoint._installed.owe()
    assert state() == {**NOTHING_TO_DO, "settled": False, "pending": True}
    assert not kernel.later
    kernel.pre_handler_hook()
    assert len(kernel.later) == 1
    assert state()["pending"]


@pytest.mark.parametrize("label", ["-a", ".a", "a b", "é", "a" * 41, "a/b", "a\n"])
def test_a_label_that_may_not_be_is_refused_and_nothing_written(kernel: Loop, label: str) -> None:
    assert state(write=True, label=label) == {**NOTHING_TO_DO, "error": LABEL_RULE}
    assert state() == NOTHING_TO_DO
    assert not kernel.later


@pytest.mark.parametrize("label", ["a", "9", "Before_the.2nd-try", "a" * 40])
def test_a_label_that_may_be_is_taken(kernel: Loop, label: str) -> None:
    assert state(label=label) == {**NOTHING_TO_DO, "settled": False, "pending": True}
    assert len(kernel.later) == 1


def test_a_checkpoint_that_is_due_gets_no_second_label(kernel: Loop) -> None:
    state(write=True, label="one")
    assert "will have the label one" in state(write=True, label="two")["error"]
    assert state(write=True, label="one")["error"] == ""
    assert state(write=True)["error"] == ""


def test_where_checkpoints_are_off_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_installed", None)
    off = {"number": 0, "error": "checkpoints are off", "settled": False, "pending": False}
    assert state() == state(write=True, label="a") == off


# Types


class Name(str):
    __slots__ = ()

    def __getitem__(self, at: Any) -> str:
        raise AssertionError("runs code of the user's")


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise AssertionError("runs code of the user's")


class Nameless(metaclass=Meta):
    pass


def test_the_name_of_a_type_is_told_whatever_the_type_does() -> None:
    own = type("Own", (), {})
    own.__name__ = Name("Renamed")
    long = type("L" * 1000, (), {})
    assert [type_name(value) for value in (1, own(), Nameless())] == ["int", "Renamed", "Nameless"]
    assert len(type_name(long())) == TYPE_CHARACTERS
