"""What is written of cells while they run, on a real store that may refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.store_rows import LARGE
from tests.unit.transcripts import ID, SMALL, Scene, flood_by_size, message

from sagebroker.config import TranscriptConfig
from sagebroker.errors import SessionGoneError
from sagebroker.model import CellStatus
from sagebroker.protocol.execution import Execution
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session import transcript as transcript_module
from sagebroker.session.transcript import FORGET_INTERVAL, MAX_MESSAGES
from sagebroker.store.folders import StateFolder
from sagebroker.store.store import Store

LIMIT_S = 30.0
"""A hang is told within this; nothing is measured by it."""

RESULT: dict[str, Any] = {"data": {"text/plain": "2"}, "metadata": {}, "execution_count": 1}
ERROR: dict[str, Any] = {"ename": "E", "evalue": "why", "traceback": ["a", "b"]}


def shown(outputs: OutputFold) -> tuple[object, ...]:
    """What a caller sees of outputs."""
    return outputs.stdout.text(), outputs.stderr.text(), outputs.displays, outputs.failure


# As they come


async def test_a_cell_is_stored_as_soon_as_it_waits_and_again_before_it_is_sent(
    scene: Scene,
) -> None:
    cell = scene.queue.add("1 + 1", 5.0, author="mcp", request_id="r")
    before = cell.is_stored
    await scene.transcript.write()
    assert (before, cell.is_stored) == (False, True)
    waiting = await scene.recalled(cell)
    assert (waiting.status, waiting.msg_id, waiting.code) == (CellStatus.QUEUED, "", "1 + 1")
    assert (waiting.author, waiting.request_id, waiting.time_limit_s) == ("mcp", "r", 5.0)
    cell.start("m", 3)
    await scene.transcript.write()
    running = await scene.recalled(cell)
    assert (running.status, running.msg_id, running.generation) == (CellStatus.RUNNING, "m", 3)


async def test_outputs_are_stored_while_the_cell_runs(scene: Scene) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(scene.transcript.run)
        cell = scene.started()
        with anyio.fail_after(LIMIT_S):
            for n in range(3):
                scene.print(cell, f"{n}\n")
                while len(await scene.texts(cell)) <= n:
                    await anyio.sleep(0.01)
        assert await scene.texts(cell) == ["0\n", "1\n", "2\n"]
        assert not cell.status.is_final
        tg.cancel_scope.cancel()


async def test_neighbouring_texts_of_one_stream_are_stored_as_one_and_the_order_is_kept(
    scene: Scene,
) -> None:
    cell = scene.started()
    for text in "abc":
        scene.print(cell, text)
    for text in "de":
        scene.print(cell, text, "stderr")
    scene.print(cell, "f")
    scene.show(cell, "execute_result", RESULT)
    scene.print(cell, "g")
    scene.show(cell, "error", ERROR)
    scene.print(cell, "h")
    scene.print(cell, "i")
    await scene.end(cell)
    assert await scene.outputs(cell) == [
        ("stream", {"name": "stdout", "text": "abc"}),
        ("stream", {"name": "stderr", "text": "de"}),
        ("stream", {"name": "stdout", "text": "f"}),
        ("execute_result", RESULT),
        ("stream", {"name": "stdout", "text": "g"}),
        ("error", ERROR),
        ("stream", {"name": "stdout", "text": "hi"}),
    ]


async def test_what_is_no_output_is_not_stored(scene: Scene) -> None:
    cell = scene.started()
    scene.show(cell, "status", {"execution_state": "busy"})
    scene.show(cell, "execute_input", {"code": "1"})
    scene.show(cell, "comm_open", {})
    await scene.end(cell)
    assert await scene.outputs(cell) == []


async def test_cells_are_stored_apart(scene: Scene) -> None:
    cells = [scene.started() for _ in range(3)]
    for text in "ab":
        for cell in cells:
            scene.print(cell, f"{text}{cell.number}")
    await scene.transcript.write()
    assert [await scene.texts(cell) for cell in cells] == [["a1b1"], ["a2b2"], ["a3b3"]]


async def test_nothing_is_remembered_of_what_is_stored_of_ended_cells(scene: Scene) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    await scene.end(cell)
    assert scene.transcript._records == {}
    await scene.transcript.write()
    assert await scene.texts(cell) == ["a"]


async def test_that_somebody_was_told_is_stored_after_the_end(scene: Scene) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    await scene.end(cell)
    assert not (await scene.recalled(cell)).told
    cell.tell()
    await scene.transcript.write()
    told = await scene.recalled(cell)
    assert told.told
    assert told.outputs.stdout.text() == "a"


any_text = st.text(alphabet=st.characters(exclude_categories=()), max_size=5)
hostile = st.none() | st.integers() | any_text | st.lists(any_text | st.integers(), max_size=2)
streams = st.tuples(
    st.just("stream"),
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["stdout", "stderr"]) | hostile,
            "text": any_text | hostile,
            "more": hostile,
        },
    ),
)
others = st.tuples(
    st.sampled_from([*sorted(transcript_module.OUTPUT_TYPES - {"stream"}), "status"]),
    st.fixed_dictionaries(
        {},
        optional={
            "data": st.just({"text/plain": "x", "application/json": {"n": 2**70}}) | hostile,
            "metadata": st.just({"width": 3}) | hostile,
            "transient": st.just({"display_id": "d"}) | hostile,
            "wait": st.booleans() | hostile,
            "ename": any_text | hostile,
            "evalue": any_text | hostile,
            "traceback": st.lists(any_text, max_size=2) | hostile,
            "text": hostile,
        },
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(streams | others | st.none(), max_size=12))
async def test_whatever_a_kernel_publishes_comes_back_as_it_was_shown(
    known: Store, steps: list[tuple[str, dict[str, Any]] | None]
) -> None:
    scene = Scene(known, next_number=await known.call(lambda db: db.next_number(ID)))
    cell = scene.started()
    for step in steps:
        if step is None:
            await scene.transcript.write()
        else:
            scene.show(cell, *step)
    await scene.end(cell)
    recalled = await scene.recalled(cell)
    assert shown(recalled.outputs) == shown(cell.outputs)
    assert recalled.outputs.order == cell.outputs.order


async def test_numbers_that_no_honest_kernel_gives_keep_nothing_from_being_stored(
    scene: Scene,
) -> None:
    cell = scene.started()
    execution = Execution("m")
    for count in (2**63, -(2**63) - 1):
        content = {"status": "ok", "execution_count": count}
        execution.feed(replace(message("execute_input", content), parent_id="m"), 0.0)
    cell.execution_count = execution.execution_count
    scene.show(cell, "display_data", {"data": {"application/json": [2**70]}})
    await scene.end(cell)
    recalled = await scene.recalled(cell)
    assert (recalled.status, recalled.execution_count) == (CellStatus.OK, None)
    (display,) = recalled.outputs.displays
    assert display.data == {"application/json": [2**70]}


# Floods


def flood_by_count(scene: Scene) -> None:
    cell = scene.started()
    scene.show(cell, "display_data", {"data": {"text/plain": LARGE}, "metadata": {"width": 2}})
    for n in range(MAX_MESSAGES):
        scene.print(cell, f"{n}\n")
        scene.print(cell, ".", "stderr")


def flood_of_displays(scene: Scene) -> None:
    cell = scene.started()
    for n in range(300):
        transient = {"display_id": str(n)}
        data = {"text/plain": f"{n}", "image/png": "x" * 10_000}
        scene.show(cell, "display_data", {"data": data, "transient": transient})
    update = {"data": {"text/plain": "new"}, "transient": {"display_id": "3"}}
    scene.show(cell, "update_display_data", update)
    scene.show(cell, "execute_result", RESULT)
    scene.show(cell, "error", ERROR)


def flood_that_is_cleared(scene: Scene) -> None:
    cell = scene.started()
    for n in range(300):
        scene.show(cell, "clear_output", {"wait": True})
        scene.print(cell, f"{n} " + "x" * 5_000)
    scene.print(cell, "é" * 10_001 + "end")


@pytest.mark.parametrize(
    "flood", [flood_by_count, flood_by_size, flood_of_displays, flood_that_is_cleared]
)
async def test_a_flood_comes_back_as_it_was_shown_and_takes_no_more_than_that(
    known: Store, flood: Any
) -> None:
    scene = Scene(known, SMALL)
    flood(scene)
    cell = scene.queue.get(1)
    await scene.transcript.write()
    head = await scene.outputs(cell)
    assert head, "while it runs its head is stored"
    assert len(head) <= MAX_MESSAGES
    await scene.end(cell)
    recalled = await scene.recalled(cell)
    assert shown(recalled.outputs) == shown(cell.outputs)
    row = await known.call(lambda db: db.cell(ID, 1))
    assert row is not None
    assert row.output_bytes <= 2 * cell.outputs.kept_bytes + 10_000
    assert row.output_count <= 3 + SMALL.max_displays


async def test_a_flood_that_was_never_written_is_stored_once_at_its_end(known: Store) -> None:
    scene = Scene(known, SMALL)
    flood_by_size(scene)
    cell = scene.queue.get(1)
    await scene.end(cell)
    assert await scene.texts(cell) == [cell.outputs.stdout.text()]
    cell.tell()
    await scene.transcript.write()
    assert await scene.texts(cell) == [cell.outputs.stdout.text()]


# Outputs that come once more


async def test_outputs_that_come_once_more_take_the_place_of_the_old(
    known: Store, installation: StateFolder
) -> None:
    before = Scene(known)
    cell = before.started()
    before.print(cell, "old" + LARGE)
    await before.transcript.write()
    scene = Scene(known)
    left = await scene.recalled(cell)
    scene.queue.resume(left)
    left.outputs = OutputFold()
    scene.transcript.replace_outputs(left)
    scene.print(left, "old")
    scene.print(left, " and new")
    await scene.transcript.write()
    assert await scene.texts(left) == ["old and new"]
    scene.print(left, "!")
    await scene.end(left)
    assert await scene.texts(left) == ["old and new", "!"]
    assert list(installation.folder(ID).outputs.iterdir()) == []


async def test_outputs_that_come_once_more_and_are_none_leave_none(known: Store) -> None:
    before = Scene(known)
    cell = before.started()
    before.print(cell, "old")
    await before.transcript.write()
    scene = Scene(known)
    left = await scene.recalled(cell)
    scene.queue.resume(left)
    scene.transcript.replace_outputs(left)
    left.finish(CellStatus.INTERRUPTED)
    await scene.transcript.write()
    assert await scene.outputs(left) == []


# What is kept


async def test_the_oldest_cells_are_forgotten_beyond_what_is_kept(known: Store) -> None:
    scene = Scene(known, retention=TranscriptConfig(kept_cells=10))
    for _ in range(FORGET_INTERVAL + 5):
        cell = scene.started()
        scene.print(cell, "x")
        cell.finish(CellStatus.OK)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scene.transcript.run)
        with anyio.fail_after(LIMIT_S):
            while len(await known.call(lambda db: db.cells(ID))) != 10:
                await anyio.sleep(0.01)
        tg.cancel_scope.cancel()
    kept = await known.call(lambda db: db.cells(ID))
    assert [row.number for row in kept] == list(range(FORGET_INTERVAL - 4, FORGET_INTERVAL + 6))


async def test_writing_ends_when_the_session_is_removed(scene: Scene) -> None:
    cell = scene.started()
    await scene.store.call(lambda db: db.remove_session(ID))
    with anyio.fail_after(LIMIT_S):
        await scene.transcript.run()
    scene.print(cell, "a")
    with pytest.raises(SessionGoneError):
        await scene.transcript.write()
    assert scene.troubles == []
