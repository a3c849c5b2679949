"""Cells out of the store are the cells that were stored."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store_rows import STREAM, cell_row, open_store, session_row

from sagebroker.config import SessionConfig
from sagebroker.errors import CellNotFoundError
from sagebroker.model import CellFailure, CellStatus, ExitCause, ExitReport, LadderOutcome, utcnow
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session import transcript
from sagebroker.session.cell import Cell
from sagebroker.session.recall import cell_of, recall
from sagebroker.store.records import CellRow, OutputRow

ID = "aaaaaaaaaa"
LIMITS = SessionConfig()
SLACK_S = 5.0
"""Between two looks at the clocks; an error of a whole boot time is meant to be seen, no more."""

any_text = st.text(alphabet=st.characters(exclude_categories=()))
integers = st.integers(-(2**70), 2**70)
failures = st.builds(
    CellFailure,
    ename=any_text,
    evalue=any_text,
    traceback=st.lists(any_text, max_size=3).map(tuple),
)
ladders = st.builds(
    LadderOutcome,
    rung=st.sampled_from(["sigint", "new_kernel", "new_container", "undelivered"]),
    elapsed_ms=st.floats(0, 1e9),
    variables_kept=st.booleans(),
)
exits = st.builds(
    ExitReport,
    cause=st.sampled_from(ExitCause),
    generation=st.integers(0, 2**53),
    signal=st.none() | integers,
    code=st.none() | integers,
    memory_limit_bytes=st.none() | integers,
    detail=any_text,
)
KEPT: dict[str, st.SearchStrategy[Any]] = {
    "number": st.integers(1, 2**53),
    "code": any_text,
    "time_limit_s": st.floats(0, 1e9),
    "author": any_text,
    "request_id": any_text,
    "msg_id": st.uuids().map(str),
    "generation": st.integers(0, 2**53),
    "failure": st.none() | failures,
    "execution_count": st.none() | st.integers(0, 2**53),
    "payload_text": any_text,
    "ladder": st.none() | ladders,
    "stop_reason": any_text,
    "exit": st.none() | exits,
    "notices": st.lists(any_text, max_size=3),
    "reply_lost": st.booleans(),
    "output_lost": st.booleans(),
    "told": st.booleans(),
}
"""Fields of a cell that are stored as they are, but for times and outputs."""

LOST = {
    "asks",
    "attempts",
    "is_stored",
    "on_change",
    "request",
    "_ended",
    "_moved_on",
    "outputs",
    "questions",
    "_settled",
    "status",
}
TIMES = {"queued_at", "started_at", "ended_at"}


def test_no_field_of_a_cell_is_forgotten_here() -> None:
    assert {field.name for field in fields(Cell)} == {*KEPT, *LOST, *TIMES}


cells = st.builds(
    Cell,
    outputs=st.builds(OutputFold),
    queued_at=st.floats(0, 1e6).map(lambda ago: time.monotonic() - ago),
    **KEPT,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store in it that knows a session."""
    path = tmp_path_factory.mktemp("store")
    store = open_store(path)
    store.add_session(session_row(ID))
    store.close()
    return path


@settings(max_examples=50)  # each is a transaction on disk
@given(cells, st.sampled_from(CellStatus), st.none() | st.floats(0, 1e5), st.floats(0, 1e5))
def test_a_cell_comes_back_as_it_was(
    folder: Path, cell: Cell, status: CellStatus, waited_s: float | None, ran_s: float
) -> None:
    cell.status = status
    if waited_s is not None:
        cell.started_at = cell.queued_at + waited_s
    if status.is_final:
        cell.ended_at = (cell.started_at or cell.queued_at) + ran_s
    store = open_store(folder)
    store.save(cells=[transcript.cell_row(ID, cell)])
    found = recall(store, ID, "work", cell.number, LIMITS)
    store.close()
    for name in (*KEPT, "status"):
        assert getattr(found, name) == getattr(cell, name), name
    for name in TIMES:
        kept, told = getattr(cell, name), getattr(found, name)
        assert (told is None) == (kept is None), name
        assert told is None or told == pytest.approx(kept, abs=SLACK_S), name
    if status.is_final:
        assert found.elapsed_s == pytest.approx(cell.elapsed_s, abs=0.5)
    assert found.is_stored


async def test_a_cell_that_has_ended_need_not_be_waited_for() -> None:
    assert await cell_of(cell_row(status=CellStatus.DIED), (), LIMITS).wait(3600)
    for status in (CellStatus.QUEUED, CellStatus.RUNNING):
        assert not await cell_of(cell_row(status=status), (), LIMITS).wait(0)


def test_an_end_that_was_stored_is_final() -> None:
    cell = cell_of(cell_row(status=CellStatus.DIED), (), LIMITS)
    cell.finish(CellStatus.OK)
    assert cell.status is CellStatus.DIED


def test_time_that_a_cell_ran_is_what_it_was_however_long_ago() -> None:
    now = utcnow().timestamp()
    started = now - 3e7
    row = cell_row(queued_at=started - 10, started_at=started, ended_at=started + 12.5)
    cell = cell_of(row, (), LIMITS)
    assert cell.elapsed_s == pytest.approx(12.5, abs=0.5)
    running = cell_of(replace(row, status=CellStatus.RUNNING, ended_at=None), (), LIMITS)
    assert running.elapsed_s == pytest.approx(3e7, abs=SLACK_S)
    never = cell_of(replace(row, status=CellStatus.INTERRUPTED, started_at=None), (), LIMITS)
    assert (never.elapsed_s, never.started_at) == (0.0, None)


def test_outputs_come_back_with_surrogates_and_numbers_of_any_size() -> None:
    outputs: list[tuple[str, dict[str, Any]]] = [
        ("stream", {"name": "stdout", "text": "a\ud83d"}),
        ("stream", {"name": "stdout", "text": "\ude00b"}),
        ("stream", {"name": "stderr", "text": "c\0"}),
        ("display_data", {"data": {"application/json": {"n": 2**200, "\ud800": [1.5]}}}),
        ("execute_result", {"data": {"text/plain": "2"}, "transient": {"display_id": "d"}}),
        ("update_display_data", {"data": {"text/plain": "3"}, "transient": {"display_id": "d"}}),
        ("error", {"ename": "E", "evalue": "\udfff", "traceback": ["t"]}),
    ]
    rows = [
        OutputRow(seq=seq, msg_type=msg_type, content=content)
        for seq, (msg_type, content) in enumerate(outputs, 1)
    ]
    found = cell_of(cell_row(), rows, LIMITS).outputs
    assert found.stdout.text() == "a\\ud83d\\ude00b"
    assert found.stderr.text() == "c\0"
    drawn, result = found.displays
    assert drawn.data == {"application/json": {"n": 2**200, "\\ud800": [1.5]}}
    assert (result.data, result.is_result) == ({"text/plain": "3"}, True)
    assert found.failure == CellFailure(ename="E", evalue="\\udfff", traceback=("t",))
    assert found.order == ["stdout", "stderr", "display", "display"]


def test_what_was_cut_already_is_not_cut_again() -> None:
    limits = SessionConfig(stream_bytes=10_000, max_displays=3)
    fold = OutputFold(10_000, 2**20, 3)
    fold.stdout.append("é" * 100_000)
    kept = fold.stdout.text()
    outputs = [
        OutputRow(seq=1, msg_type="stream", content={"name": "stdout", "text": kept}),
        *(
            OutputRow(seq=seq, msg_type="display_data", content={"data": {"text/plain": str(seq)}})
            for seq in (2, 3, 4)
        ),
    ]
    found = cell_of(cell_row(), outputs, limits).outputs
    assert found.stdout.text() == kept
    assert "characters omitted" in kept
    assert (found.stdout.omitted, len(found.displays)) == (0, 3)


def test_a_cell_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_session(session_row(ID))

    def said(number: int) -> str:
        with pytest.raises(CellNotFoundError) as caught:
            recall(store, ID, "work", number, LIMITS)
        return str(caught.value)

    assert "Session 'work' has no cell 1; it has none yet." in said(1)
    store.save(cells=[cell_row(n) for n in range(1, 6)], outputs={(ID, 5): [STREAM]})
    store.forget(ID, 3, 10**9)
    assert "Session 'work' has no cell 2; cells 3 to 5 are known." in said(2)
    assert "an earlier answer" in said(6)
    assert recall(store, ID, "work", 5, LIMITS).outputs.stdout.text() == "1\n"
    store.close()


def test_a_row_keeps_nothing_that_is_no_cells() -> None:
    stored = {field.name for field in fields(CellRow)}
    counted = {"session", "output_count", "output_bytes"}
    renamed = {"kernel_generation": "generation"}
    assert {renamed.get(name, name) for name in stored - counted} == {*KEPT, *TIMES, "status"}
