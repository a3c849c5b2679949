"""Cells and outputs in the store: what comes back, and what is forgotten."""

from __future__ import annotations

import json
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store_rows import LARGE, STREAM, cell_row, fill, open_store, session_row

from sagebroker.errors import SessionGoneError, StorageError
from sagebroker.model import CellStatus, new_session_id
from sagebroker.store.cell_table import FILE_ABOVE_BYTES, Weight, which_to_forget
from sagebroker.store.database import Database
from sagebroker.store.records import CellRow

ID = "aaaaaaaaaa"

any_text = st.text(alphabet=st.characters(exclude_categories=()))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
contents = st.dictionaries(any_text, json_values, max_size=4)
messages = st.lists(st.tuples(st.sampled_from(["stream", "display_data", "error"]), contents))
times = st.none() | st.floats(0, 2e9)
cells = st.builds(
    CellRow,
    session=st.just(ID),
    number=st.integers(1, 5),
    code=any_text,
    author=any_text,
    request_id=any_text,
    time_limit_s=st.floats(0, 1e6),
    status=st.sampled_from(CellStatus),
    msg_id=st.uuids().map(str),
    kernel_generation=st.integers(0, 2**40),
    queued_at=times,
    started_at=times,
    ended_at=times,
    execution_count=st.none() | st.integers(0, 2**40),
    stop_reason=any_text,
    failure=st.none() | contents,
    ladder=st.none() | contents,
    exit=st.none() | contents,
    notices=st.lists(any_text, max_size=3).map(tuple),
    payload_text=any_text,
    reply_lost=st.booleans(),
    output_lost=st.booleans(),
    told=st.booleans(),
)


@contextmanager
def a_store() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder))
        (Path(folder) / "sessions").mkdir()
        store.add_session(session_row())
        yield store
        store.close()


@pytest.fixture
def store() -> Iterator[Database]:
    with a_store() as store:
        yield store


def files_of(store: Database) -> list[Path]:
    return sorted(store.path.parent.glob("sessions/*/*"))


def contents_of(store: Database, number: int = 1) -> list[tuple[str, dict[str, Any]]]:
    return [(row.msg_type, row.content) for row in store.outputs(ID, number)]


@pytest.fixture(scope="module")
def shared_store() -> Iterator[Database]:
    """One for all examples of a test, each with a session of its own."""
    with a_store() as store:
        yield store


@settings(max_examples=25)  # each is some transactions on disk
@given(st.lists(st.tuples(cells, messages), max_size=4))
def test_cells_and_outputs_come_back_and_an_upsert_loses_no_output(
    shared_store: Database, saves: list[tuple[CellRow, list[tuple[str, dict[str, Any]]]]]
) -> None:
    store, session = shared_store, new_session_id()
    store.add_session(session_row(session))
    newest: dict[int, CellRow] = {}
    shown: dict[int, list[tuple[str, dict[str, Any]]]] = {}
    for drawn, added in saves:
        cell = replace(drawn, session=session)
        store.save(cells=[cell], outputs={(session, cell.number): added})
        newest[cell.number] = cell
        shown.setdefault(cell.number, []).extend(added)
    for number, cell in newest.items():
        found = store.cell(session, number)
        assert found is not None
        assert replace(found, output_count=0, output_bytes=0) == cell
        assert found.output_count == len(shown[number])
        outputs = store.outputs(session, number)
        assert [(row.msg_type, row.content) for row in outputs] == shown[number]
        assert [row.seq for row in outputs] == [*range(1, len(outputs) + 1)]


def test_two_halves_of_a_surrogate_pair_stay_two(store: Database) -> None:
    halves = "\ud83d" + "\ude00"
    store.save(
        cells=[cell_row(code=halves)], outputs={(ID, 1): [("stream", {"text": halves, halves: 1})]}
    )
    found = store.cell(ID, 1)
    assert found is not None
    assert found.code == halves
    assert contents_of(store) == [("stream", {"text": halves, halves: 1})]


def test_very_long_code_comes_back(store: Database) -> None:
    code = "x = 'ä\0'\n" * 2_000_000
    assert len(code.encode()) >= 20 * 2**20 - 2**20
    store.save(cells=[cell_row(code=code)])
    found = store.cell(ID, 1)
    assert found is not None
    assert found.code == code


def test_outputs_are_appended_and_counted_by_the_store(store: Database) -> None:
    store.save(cells=[cell_row(output_count=99, output_bytes=99)])
    store.save(outputs={(ID, 1): [STREAM, STREAM]})
    store.save(cells=[cell_row(output_count=99)], outputs={(ID, 1): [STREAM]})
    found = store.cell(ID, 1)
    assert found is not None
    assert found.output_count == 3
    assert found.output_bytes == 3 * len(json.dumps(STREAM[1], separators=(",", ":")))
    assert [output.seq for output in store.outputs(ID, 1)] == [1, 2, 3]


def test_only_outputs_alone_are_stored_without_waiting_for_the_disk(store: Database) -> None:
    said: list[str] = []
    store._sql.set_trace_callback(said.append)
    store.save(cells=[cell_row()], outputs={(ID, 1): [STREAM]})
    store.save(outputs={(ID, 1): [STREAM]})
    store.change_session(ID, 0)
    begun = [said[n - 1] for n, statement in enumerate(said) if statement == "BEGIN IMMEDIATE"]
    assert begun == [f"PRAGMA synchronous = {how}" for how in ("FULL", "NORMAL", "FULL")]


def test_all_of_a_save_is_stored_or_nothing(store: Database) -> None:
    store.save(cells=[cell_row(1)])
    with pytest.raises(StorageError, match="has no cell 7"):
        store.save(
            cells=[cell_row(1, status=CellStatus.ERROR), cell_row(2)],
            outputs={(ID, 1): [("stream", {"text": LARGE})], (ID, 7): [STREAM]},
        )
    assert [(c.number, c.status, c.output_count) for c in store.cells(ID)] == [(1, "ok", 0)]
    assert files_of(store) == []


def large(text: str) -> tuple[str, dict[str, Any]]:
    return "stream", {"name": "stdout", "text": text + LARGE}


def test_outputs_anew_take_the_place_of_the_old_with_their_files(store: Database) -> None:
    store.save(
        cells=[cell_row(1), cell_row(2)],
        outputs={(ID, 1): [STREAM, large("a"), large("b")], (ID, 2): [large("c")]},
    )
    store.save(outputs={(ID, 1): [large("d"), STREAM], (ID, 2): [STREAM]}, anew={(ID, 1)})
    assert contents_of(store) == [large("d"), STREAM]
    assert contents_of(store, 2) == [large("c"), STREAM], "only of the cells that are meant"
    found = store.cell(ID, 1)
    assert found is not None
    assert found.output_count == 2
    (new, other) = files_of(store)
    assert found.output_bytes == new.stat().st_size + len('{"name":"stdout","text":"1\\n"}')
    assert other.name == "2-1.json"


def test_a_place_is_not_given_again_to_outputs_that_come_anew(store: Database) -> None:
    # A file of the new ones would take the place of one that is needed if this is not stored after all.
    store.save(cells=[cell_row()], outputs={(ID, 1): [STREAM, large("a")]})
    store.save(outputs={(ID, 1): [large("b")]}, anew={(ID, 1)})
    store.save(outputs={(ID, 1): [STREAM]})
    store.save(cells=[cell_row()], outputs={(ID, 1): [STREAM, STREAM]}, anew=[(ID, 1)])
    assert [row.seq for row in store.outputs(ID, 1)] == [5, 6]
    assert files_of(store) == []


def test_outputs_anew_that_are_none_leave_none(store: Database) -> None:
    store.save(cells=[cell_row()], outputs={(ID, 1): [STREAM, large("a")]})
    store.save(outputs={(ID, 1): []}, anew={(ID, 1)})
    assert contents_of(store) == []
    found = store.cell(ID, 1)
    assert found is not None
    assert (found.output_count, found.output_bytes) == (0, 0)
    assert files_of(store) == []


def test_outputs_anew_that_are_refused_leave_the_old_ones_whole(store: Database) -> None:
    store.save(cells=[cell_row()], outputs={(ID, 1): [large("a"), STREAM]})
    before = store.cell(ID, 1)
    with pytest.raises(StorageError, match="has no cell 7"):
        store.save(outputs={(ID, 1): [large("b")], (ID, 7): [STREAM]}, anew={(ID, 1), (ID, 7)})
    assert contents_of(store) == [large("a"), STREAM]
    assert store.cell(ID, 1) == before
    assert [path.name for path in files_of(store)] == ["1-1.json"]


def test_nothing_is_saved_of_a_session_that_is_gone(store: Database) -> None:
    with pytest.raises(SessionGoneError, match="closed meanwhile"):
        store.save(cells=[cell_row(1), cell_row(1, "bbbbbbbbbb")])
    assert store.cells(ID) == []


def test_cells_are_found_by_number_and_by_the_clients_request(store: Database) -> None:
    store.save(cells=[cell_row(1, request_id="r\ud800"), cell_row(2), cell_row(3)])
    found = store.cell_of_request(ID, "r\ud800")
    assert found is not None
    assert found.number == 1
    assert store.cell_of_request(ID, "other") is None
    assert store.cell_of_request(ID, "") is None
    assert store.cell_of_request("bbbbbbbbbb", "r\ud800") is None
    assert store.cell(ID, 4) is None


def test_a_request_that_was_sent_twice_after_all_is_its_newest_cell(store: Database) -> None:
    store.save(cells=[cell_row(1, request_id="r"), cell_row(2, request_id="r")])
    found = store.cell_of_request(ID, "r")
    assert found is not None
    assert found.number == 2


def test_a_part_of_the_cells_is_read_the_newest_last(store: Database) -> None:
    store.save(cells=[cell_row(n) for n in range(1, 7)])

    def numbers(**limits: int) -> list[int]:
        return [cell.number for cell in store.cells(ID, **limits)]

    assert numbers() == [1, 2, 3, 4, 5, 6]
    assert numbers(most=2) == [5, 6]
    assert numbers(first=2, last=4) == [2, 3, 4]
    assert numbers(last=4, most=1) == [4]
    assert numbers(first=9) == numbers(most=0) == []


def test_unfinished_cells_come_in_order(store: Database) -> None:
    statuses = [CellStatus.OK, CellStatus.RUNNING, CellStatus.DIED, CellStatus.QUEUED]
    store.save(cells=[cell_row(n, status=s) for n, s in reversed([*enumerate(statuses, 1)])])
    assert [cell.number for cell in store.unfinished_cells(ID)] == [2, 4]


def test_a_number_is_never_given_twice(store: Database) -> None:
    assert store.next_number(ID) == 1
    store.save(cells=[cell_row(n) for n in (1, 2, 5)])
    assert store.next_number(ID) == 6
    store.forget(ID, 0, 0)
    assert store.next_number(ID) == 6


def test_a_large_output_lies_in_a_file_for_its_owner_only(store: Database) -> None:
    large = ("display_data", {"data": {"text/plain": LARGE + "\ud800\0"}})
    store.save(cells=[cell_row()], outputs={(ID, 1): [STREAM, large]})
    store.save(outputs={(ID, 1): [large]})
    assert [path.name for path in files_of(store)] == ["1-2.json", "1-3.json"]
    for path in files_of(store):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size > FILE_ABOVE_BYTES
    assert contents_of(store) == [STREAM, large, large]


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b'"\xff"', b"[" * 1_000_000])
def test_a_large_output_that_is_lost_is_said_in_its_place(
    store: Database, damage: bytes | None
) -> None:
    store.save(
        cells=[cell_row()], outputs={(ID, 1): [STREAM, ("error", {"evalue": LARGE}), STREAM]}
    )
    (path,) = files_of(store)
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    first, lost, last = contents_of(store)
    assert first == last == STREAM
    assert lost[0] == "stream"
    assert lost[1]["name"] == "stderr"
    assert "(error) is lost" in lost[1]["text"]


def test_an_output_that_is_no_json_is_said_and_the_others_stay(store: Database) -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    added = [STREAM, ("display_data", {"n": 10**5000}), ("display_data", deep), STREAM]
    store.save(cells=[cell_row()], outputs={(ID, 1): added})
    found = contents_of(store)
    assert [found[0], found[3]] == [STREAM, STREAM]
    assert all("(display_data) is lost" in content["text"] for _, content in found[1:3])
    while deep:  # step by step: freeing it at once would use up the C stack
        deep = deep["x"]


def test_the_folder_of_a_removed_session_is_not_made_anew(store: Database) -> None:
    (store.path.parent / "sessions").rmdir()
    with pytest.raises(StorageError, match="cannot be stored"):
        store.save(cells=[cell_row()], outputs={(ID, 1): [("stream", {"text": LARGE})]})
    assert store.cells(ID) == []
    assert not (store.path.parent / "sessions").exists()


def test_forgotten_cells_take_their_outputs_and_files_along(store: Database) -> None:
    large = ("stream", {"text": LARGE})
    numbers = range(1, 5)
    store.save(
        cells=[cell_row(n) for n in numbers],
        outputs={(ID, n): [STREAM, large] for n in numbers},
    )
    assert store.forget(ID, 2, 10**9) == 2
    assert [cell.number for cell in store.cells(ID)] == [3, 4]
    assert store.outputs(ID, 1) == []
    assert [path.name for path in files_of(store)] == ["3-2.json", "4-2.json"]
    assert store.forget(ID, 2, 400_000) == 1
    assert store.forget(ID, 2, 400_000) == 0
    assert contents_of(store, 4) == [STREAM, large]


def test_a_file_that_cannot_be_deleted_is_logged_and_the_cell_is_forgotten(
    store: Database, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(cells=[cell_row(1), cell_row(2)], outputs={(ID, 1): [("stream", {"text": LARGE})]})
    (path,) = files_of(store)
    path.unlink()
    path.mkdir()
    assert store.forget(ID, 1, 0) == 1
    assert "stays on disk" in caplog.text


def test_the_code_of_cells_counts_too(store: Database) -> None:
    store.save(cells=[cell_row(n, code="x" * 1000) for n in (1, 2, 3)])
    assert store.forget(ID, 10, 2500) == 1


weights = st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=8).map(
    lambda pairs: [
        Weight(number=n, size_bytes=size, is_finished=done)
        for n, (size, done) in enumerate(pairs, 1)
    ]
)


@given(weights, st.integers(0, 8), st.integers(0, 300))
def test_what_is_forgotten_is_old_and_finished_and_no_more_than_needed(
    stored: list[Weight], keep_cells: int, keep_bytes: int
) -> None:
    gone = which_to_forget(stored, keep_cells, keep_bytes)
    may_go = [cell.number for cell in stored[:-1] if cell.is_finished]
    assert gone == may_go[: len(gone)]

    def keeps(numbers: list[int]) -> bool:
        left = [cell for cell in stored if cell.number not in numbers]
        return len(left) <= keep_cells and sum(cell.size_bytes for cell in left) <= keep_bytes

    assert keeps(gone) or gone == may_go
    assert not gone or not keeps(gone[:-1])


def test_a_store_that_is_opened_again_has_everything(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, tmp_path)
    store.close()
    store.close()
    assert stat.S_IMODE((tmp_path / "store.db").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"store.db", "sessions"}
    again = open_store(tmp_path)
    assert len(again.cells(ID)) == 3
    assert again.outputs(ID, 3)[0].content == STREAM[1]
    again.close()
