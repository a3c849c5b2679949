"""The parts of checkpoints that need no kernel: decisions, records, the folder."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.inside_records import CannotReturn, Written

from sagebroker.inside import reviving
from sagebroker.inside.changes import deleted_names, may_change, user_names
from sagebroker.inside.experience import DEATHS_LIMIT, Experience
from sagebroker.inside.restore import Order, Report, Restorer, wanted
from sagebroker.inside.settings import CheckpointConfig, ConfigurationError, parse_configuration
from sagebroker.inside.shelf import (
    BUFFERS,
    DATA,
    MANIFEST,
    RESTORING,
    VERSION,
    DamagedError,
    Shelf,
    checksum,
)
from sagebroker.inside.wording import REASON_CHARACTERS, one_line, reason_of
from sagebroker.kernel.folders import KernelFolder, RestoreOrder

INTEGER = 5


@pytest.fixture(autouse=True)
def _nothing_stays_bound() -> Iterator[None]:
    yield
    reviving.bind({})


# Which cells are worth a checkpoint


@pytest.mark.parametrize(
    "cell",
    ["", "1", "# text", "a", "a + 1", "-a ** 2", "print(a, 'text')", "len('abc')", "a < 3", "pass"],
)
def test_cells_that_only_calculate_with_numbers_change_nothing(cell: str) -> None:
    assert not may_change(cell, {"a": INTEGER}, {})


@pytest.mark.parametrize(
    "cell",
    [
        "b = 1",
        "a += 1",
        "del a",
        "items",
        "items.append(1)",
        "items[0]",
        "f(a)",
        "print(items)",
        "print(a, file=a)",
        "len(a) if a else f()",
        "import os",
        "get_ipython().run_line_magic('display', 'latex')",
        "[a := 3]",
        "(a := 3)",
        "await a",
        "for _ in 'a': pass",
        "def g(): pass",
        "unknown",
        "lambda: 1",
        "f'{a}'",
        "not python",
    ],
)
def test_any_other_cell_may_change_something(cell: str) -> None:
    assert may_change(cell, {"a": INTEGER, "items": []}, {})


def test_a_cell_of_which_the_text_is_unknown_may_change_something() -> None:
    assert may_change(None, {}, {})


def test_a_harmless_function_that_was_bound_anew_may_change_something() -> None:
    assert may_change("print(1)", {"print": exec}, {})
    assert not may_change("Integer(1)", {"Integer": int}, {"Integer": int})


def test_the_users_names_are_those_that_are_new_or_bound_anew() -> None:
    baseline: dict[str, Any] = {"QQ": object(), "x": 1, "In": [], "gone": 1}
    namespace: dict[Any, Any] = {
        **baseline,
        "x": 2,
        "own": 1,
        "_own": 1,
        "_": 1,
        "_3": 1,
        "_i12": "",
        "__name__": "",
        5: 1,
    }
    del namespace["gone"]
    assert user_names(namespace, baseline) == ["x", "own", "_own"]
    assert deleted_names(namespace, baseline) == ["gone"]


# Reasons


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


def test_reasons_are_one_short_line() -> None:
    assert reason_of(TypeError("cannot\npickle \x1b[31mthis")) == "cannot pickle [31mthis"
    assert reason_of(ValueError("x")) == "ValueError: x"
    assert reason_of(UnspeakableError()) == "UnspeakableError"
    assert reason_of(RecursionError("deep")) == "it is nested too deeply"
    assert reason_of(MemoryError()) == "it needs more memory than there is"
    assert len(one_line("x" * 10_000)) == REASON_CHARACTERS


# The folder


def make_checkpoint(
    folder: Path,
    number: int,
    *,
    cell: int = 1,
    missing: tuple[dict[str, str], ...] = (),
    **variables: Any,
) -> Path:
    written = Written({})
    written.write(**variables)
    place = folder / str(number)
    place.mkdir()
    files = {}
    for name, file in zip((DATA, BUFFERS), written.files, strict=True):
        (place / name).write_bytes(file.getvalue())
        length, code = checksum(place / name)
        files[name] = {"bytes": length, "crc32": code}
    manifest = {
        "version": VERSION,
        "number": number,
        "cell": cell,
        "saved_at": 1000.0,
        "missing": list(missing),
        "files": files,
    }
    (place / MANIFEST).write_text(json.dumps(manifest))
    return place


def restorer(folder: Path, namespace: dict[str, Any]) -> Restorer:
    reviving.bind(namespace)
    return Restorer(namespace, CheckpointConfig(folder=str(folder)), generation=4)


def restored(folder: Path, namespace: dict[str, Any], order: Order = "newest") -> Report:
    return restorer(folder, namespace).run(order)


def test_a_checkpoint_appears_at_once_and_older_ones_go(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for number in (1, 2, 10):
        place = shelf.begin()
        (place / MANIFEST).write_text("{}")
        assert number not in shelf.numbers()
        shelf.publish(place, number)
    left_behind = shelf.begin()
    (tmp_path / "07").mkdir()
    (tmp_path / "text").write_text("")
    assert shelf.numbers() == [1, 2, 10]
    shelf.prune(keep=2)
    assert shelf.numbers() == [2, 10]
    assert not left_behind.exists()
    assert Shelf(tmp_path / "nowhere").numbers() == []


@pytest.mark.parametrize(
    "harm", ["flip", "cut", "remove", "manifest", "version", "shape", "no files"]
)
def test_damage_is_noticed_before_anything_is_read(tmp_path: Path, harm: str) -> None:
    place = make_checkpoint(tmp_path, 1, a="x" * 1000)
    data = place / DATA
    content = bytearray(data.read_bytes())
    manifest = json.loads((place / MANIFEST).read_text())
    if harm == "flip":
        content[500] ^= 1
        data.write_bytes(content)
    elif harm == "cut":
        data.write_bytes(content[:-1])
    elif harm == "remove":
        (place / BUFFERS).unlink()
    elif harm == "manifest":
        (place / MANIFEST).write_text("{")
    else:
        changes: dict[str, Any] = {
            "version": {"version": 99},
            "shape": {"files": []},
            "no files": {"files": {}},
        }
        (place / MANIFEST).write_text(json.dumps({**manifest, **changes[harm]}))
    with pytest.raises(DamagedError):
        Shelf(tmp_path).verify(1)


def test_the_newest_whole_checkpoint_is_restored(tmp_path: Path) -> None:
    missing = {"name": "gone", "type": "generator", "reason": "why"}
    make_checkpoint(tmp_path, 9, a=1)
    make_checkpoint(tmp_path, 10, cell=7, missing=(missing,), a=2, b=[3])
    damaged = make_checkpoint(tmp_path, 11, a=3)
    (damaged / DATA).write_bytes(b"")
    namespace: dict[str, Any] = {"there": 1}
    report = restored(tmp_path, namespace)
    assert namespace == {"there": 1, "a": 2, "b": [3]}
    assert (report.number, report.cell, report.names, report.generation) == (10, 7, 2, 4)
    assert report.missing == [missing]
    assert report.age_s > 0
    assert report.error == f"checkpoint 11 cannot be used: {DATA} is not as it was written"


def test_without_a_checkpoint_there_is_nothing_to_tell(tmp_path: Path) -> None:
    report = restored(tmp_path / "nowhere", {})
    assert (report.number, report.names, report.error) == (None, 0, "")
    assert not report.leaves_newest


def test_one_checkpoint_can_be_wanted_and_then_no_other_is_restored(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        make_checkpoint(tmp_path, number, a=number)
    namespace: dict[str, Any] = {}
    report = restored(tmp_path, namespace, 2)
    assert namespace == {"a": 2}
    assert (report.number, report.newest, report.error) == (2, 3, "")
    (tmp_path / "2" / DATA).write_bytes(b"")
    for number, reason in ((2, f"{DATA} is not as it was written"), (4, "it is not there")):
        namespace = {"there": 1}
        report = restored(tmp_path, namespace, number)
        assert namespace == {"there": 1}
        assert (report.number, report.names) == (None, 0)
        assert report.error == f"checkpoint {number} cannot be used: {reason}"


def test_a_kernel_that_did_not_restore_the_newest_checkpoint_is_told_so(tmp_path: Path) -> None:
    assert not restored(tmp_path, {}, "none").leaves_newest
    for number in (1, 2):
        make_checkpoint(tmp_path, number, a=number)
    assert not restored(tmp_path, {}, "newest").leaves_newest
    assert not restored(tmp_path, {}, 2).leaves_newest
    for order in ("none", 1, 3):
        assert restored(tmp_path, {}, order).leaves_newest
    (tmp_path / "2" / DATA).write_bytes(b"")
    report = restored(tmp_path, {}, "newest")
    assert (report.number, report.leaves_newest) == (1, True)


def test_when_no_checkpoint_can_be_used_the_namespace_is_as_new(tmp_path: Path) -> None:
    place = make_checkpoint(tmp_path, 1, a=1)
    content = (place / DATA).read_bytes()[:-3]
    (place / DATA).write_bytes(content)
    manifest = json.loads((place / MANIFEST).read_text())
    length, code = checksum(place / DATA)
    manifest["files"][DATA] = {"bytes": length, "crc32": code}
    (place / MANIFEST).write_text(json.dumps(manifest))
    namespace = {"there": 1}
    report = restored(tmp_path, namespace)
    assert namespace == {"there": 1}
    assert report.number is None
    assert report.error.startswith("checkpoint 1 cannot be used")


def test_a_variable_that_cannot_be_made_again_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1, a=1, bad=CannotReturn(), b=2)
    namespace: dict[str, Any] = {}
    report = restored(tmp_path, namespace)
    assert namespace == {"a": 1, "b": 2}
    reason = "could not be restored: ValueError: no way back"
    assert report.missing == [{"name": "bad", "type": "", "reason": reason}]
    assert report.names == 2


def test_a_start_after_a_death_leaves_out_what_was_being_restored(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5, a=1, deadly=random.Random(5), b=2)
    shelf = Shelf(tmp_path)
    shelf.write_note(RESTORING, {"trying": 5, "checkpoints": {}})
    (tmp_path / "restoring.name").write_text("deadly")
    for _ in range(2):  # the second without a death before it
        namespace: dict[str, Any] = {}
        report = restored(tmp_path, namespace)
        assert namespace == {"a": 1, "b": 2}
        assert [entry["name"] for entry in report.missing] == ["deadly"]
        assert shelf.read_note(RESTORING)["trying"] is None


# What earlier starts have learnt


def test_deaths_make_a_checkpoint_be_given_up_in_the_end() -> None:
    note: dict[str, Any] = {}
    for name in ("one", "two", "three"):
        experience = Experience(note, name)
        assert not experience.given_up(7)
        note = experience.note(7, [7])
    assert DEATHS_LIMIT == 3
    assert Experience(note, "four").given_up(7)


def test_a_death_at_the_same_place_twice_gives_the_checkpoint_up() -> None:
    first = Experience({"trying": 7}, "")
    assert not first.given_up(7)
    second = Experience(first.note(7, [7]), "")
    assert second.given_up(7)
    assert not second.given_up(6)


def test_what_was_learnt_of_pruned_checkpoints_is_forgotten() -> None:
    learnt = Experience({"trying": 7}, "x").note(None, [8])
    assert learnt == {"trying": None, "checkpoints": {}}


@pytest.mark.parametrize(
    "note",
    [
        {"trying": "x"},
        {"checkpoints": []},
        {"checkpoints": {"7": 1}},
        {"checkpoints": {"7": {"skip": 1}}},
        {"checkpoints": {"7": {"skip": [], "deaths": "many"}}},
    ],
)
def test_a_note_of_somebody_else_counts_as_nothing(note: dict[str, Any]) -> None:
    experience = Experience(note, "x")
    assert not experience.given_up(7)
    assert experience.skip(7) == {}


# The broker's wish, and its configuration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"mode": "newest"}', "newest"),
        ('{"mode": "none"}', "none"),
        ('{"mode": "number", "number": 12}', 12),
        ('{"mode": "number", "number": 0}', "none"),
        ('{"mode": "number", "number": true}', "none"),
        ('{"mode": "number"}', "none"),
        ("[]", "none"),
        ("{", "none"),
    ],
)
def test_the_brokers_wish_is_read(tmp_path: Path, text: str, expected: Order) -> None:
    order = tmp_path / "restore.json"
    assert wanted(order) == "none"
    order.write_text(text)
    assert wanted(order) == expected


@pytest.mark.parametrize("order", ["newest", "none", 7])
def test_what_the_broker_asks_for_is_what_the_kernel_reads(
    short_dir: Path, order: RestoreOrder
) -> None:
    folder = KernelFolder(short_dir / "run", "aaaaaaaaaa")
    folder.create(os.geteuid(), os.getegid(), {}, restore="none")
    folder.ask_restore(order)
    assert wanted(folder.control / "restore.json") == order
    folder.delete()


def test_checkpoints_are_configured_by_an_object() -> None:
    config = parse_configuration('{"checkpoint": {"keep": 5, "time_limit_s": 3, "newer": 1}}')
    assert config.checkpoint == CheckpointConfig(keep=5, time_limit_s=3.0)
    for nothing in ("{}", '{"checkpoint": null}', '{"checkpoint": {}}'):
        assert parse_configuration(nothing).checkpoint is None


@pytest.mark.parametrize("value", ["1", '"x"', '{"keep": "3"}', '{"keep": -1}', '{"folder": 1}'])
def test_a_wrong_configuration_of_checkpoints_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_configuration(f'{{"checkpoint": {value}}}')


def test_a_note_is_replaced_at_once_and_not_through_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    (tmp_path / "note.json").symlink_to(elsewhere)
    shelf = Shelf(tmp_path)
    shelf.write_note("note.json", {"a": 1})
    assert elsewhere.read_text() == "kept"
    assert shelf.read_note("note.json") == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "note.json"]
    assert shelf.read_note("nothing.json") == {}
