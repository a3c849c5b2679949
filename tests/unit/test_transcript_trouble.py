"""What is written of cells while the store refuses, hangs, or is given up."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
from tests.unit.left_sessions import refuse_writes
from tests.unit.transcripts import SMALL, Scene, flood_by_size

from sagebroker.config import MIB
from sagebroker.errors import StorageError
from sagebroker.model import CellStatus
from sagebroker.session import transcript as transcript_module
from sagebroker.store.database import Database
from sagebroker.store.folders import StateFolder
from sagebroker.store.store import Store

LIMIT_S = 30.0
"""A hang is told within this; nothing is measured by it."""

RESULT: dict[str, Any] = {"data": {"text/plain": "2"}, "metadata": {}, "execution_count": 1}


async def test_what_the_store_refuses_is_told_once_and_stored_once_when_it_takes_it(
    scene: Scene,
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    await scene.transcript.write()
    await refuse_writes(scene.store)
    for text in "bc":
        scene.print(cell, text)
        with pytest.raises(StorageError, match="cannot be written"):
            await scene.transcript.write()
    (trouble,) = scene.troubles
    assert trouble.startswith("Results cannot be stored at the moment, and are lost if sagebroker")
    assert await scene.texts(cell) == ["a"]
    scene.show(cell, "execute_result", RESULT)
    cell.finish(CellStatus.OK)
    await refuse_writes(scene.store, refusing=False)
    await scene.transcript.write()
    await scene.transcript.write()
    assert [kind for kind, _ in await scene.outputs(cell)] == ["stream", "stream", "execute_result"]
    recalled = await scene.recalled(cell)
    assert recalled.status is CellStatus.OK
    assert recalled.outputs.stdout.text() == "abc"
    assert len(scene.troubles) == 1
    later = scene.started()
    await refuse_writes(scene.store)
    with pytest.raises(StorageError):
        await scene.transcript.write()
    assert not later.is_stored
    assert len(scene.troubles) == 2, "a new trouble is told anew"


async def test_what_the_store_refuses_is_tried_again_by_itself(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_module, "RETRY_INTERVAL_S", 0.01)
    await refuse_writes(scene.store)
    async with anyio.create_task_group() as tg:
        tg.start_soon(scene.transcript.run)
        cell = scene.started()
        scene.print(cell, "a")
        with anyio.fail_after(LIMIT_S):
            while not scene.troubles:
                await anyio.sleep(0.01)
            scene.print(cell, "b")
            await refuse_writes(scene.store, refusing=False)
            while not cell.is_stored:
                await anyio.sleep(0.01)
        assert await scene.texts(cell) == ["ab"]
        assert len(scene.troubles) == 1
        tg.cancel_scope.cancel()


async def test_a_flood_while_the_store_refuses_is_kept_within_bounds_and_stored_at_its_end(
    known: Store,
) -> None:
    scene = Scene(known, SMALL)
    await refuse_writes(known)
    flood_by_size(scene)
    cell = scene.queue.get(1)
    with pytest.raises(StorageError):
        await scene.transcript.write()
    (record,) = scene.transcript._records.values()
    assert sum(len(content["text"]) for _, content in record.outputs) < 2 * MIB
    cell.finish(CellStatus.OK)
    with pytest.raises(StorageError):
        await scene.transcript.write()
    assert len(record.outputs) == 1
    await refuse_writes(known, refusing=False)
    await scene.transcript.write()
    assert await scene.texts(cell) == [cell.outputs.stdout.text()]


class Held:
    """A database in which somebody else is writing."""

    def __init__(self, installation: StateFolder) -> None:
        self._other = Database.open(installation.database, lambda _: installation.path)
        self._other._sql.execute("BEGIN IMMEDIATE")

    def let_go(self) -> None:
        self._other._sql.execute("ROLLBACK")
        self._other.close()


async def test_who_is_cancelled_while_writing_has_written_once(
    scene: Scene, installation: StateFolder
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    held = Held(installation)
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(scene.transcript.write)
            while not scene.store._in_use.locked():
                await anyio.sleep(0.01)
            tg.cancel_scope.cancel()
            held.let_go()
    assert await scene.texts(cell) == ["a"]
    await scene.end(cell)
    assert await scene.texts(cell) == ["a"]


async def test_what_comes_while_something_is_written_is_written_next(
    scene: Scene, installation: StateFolder
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    held = Held(installation)
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(scene.transcript.write)
            while not scene.store._in_use.locked():
                await anyio.sleep(0.01)
            scene.print(cell, "b")
            cell.finish(CellStatus.OK)
            held.let_go()
    assert await scene.texts(cell) == ["a"]
    await scene.transcript.write()
    assert await scene.texts(cell) == ["a", "b"]
    assert (await scene.recalled(cell)).status is CellStatus.OK


async def test_what_comes_while_a_write_fails_is_written_after_it(
    scene: Scene, installation: StateFolder
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    await scene.store.call(lambda db: db._sql.execute("PRAGMA busy_timeout = 200"))
    held = Held(installation)

    async def write() -> None:
        with pytest.raises(StorageError, match="held by another process"):
            await scene.transcript.write()

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(write)
            while not scene.store._in_use.locked():
                await anyio.sleep(0.01)
            scene.print(cell, "b")
    held.let_go()
    await scene.end(cell)
    assert await scene.texts(cell) == ["ab"]


async def write_to_no_answer(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin to write, and give up before the store has answered."""
    with monkeypatch.context() as patch:
        patch.setattr(scene.store, "call", partial(scene.store.call, limit_s=0.1))
        with pytest.raises(StorageError):
            await scene.transcript.write()


async def test_what_a_slow_disk_has_stored_after_all_is_not_stored_twice(
    scene: Scene, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    held = Held(installation)
    await write_to_no_answer(scene, monkeypatch)
    scene.print(cell, "b")
    held.let_go()
    await scene.end(cell)
    assert "".join(await scene.texts(cell)) == "ab"
    assert len(scene.troubles) == 1


async def test_outputs_that_come_once_more_while_the_disk_is_slow_are_the_only_ones(
    scene: Scene, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    held = Held(installation)
    await write_to_no_answer(scene, monkeypatch)
    scene.transcript.replace_outputs(cell)
    scene.print(cell, "new")
    held.let_go()
    await scene.end(cell)
    assert await scene.texts(cell) == ["new"]


async def test_a_write_that_does_not_end_holds_up_the_next_and_no_more_than_that(
    scene: Scene, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = scene.started()
    held = Held(installation)
    for text in "ab":
        scene.print(cell, text)
        await write_to_no_answer(scene, monkeypatch)
    held.let_go()
    await scene.end(cell)
    assert "".join(await scene.texts(cell)) == "ab"
    assert len(scene.troubles) == 1


async def test_what_a_slow_disk_has_not_stored_is_stored_later(
    scene: Scene, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = scene.started()
    scene.print(cell, "a")
    held = Held(installation)
    await scene.store.call(lambda db: db._sql.execute("PRAGMA busy_timeout = 200"))
    await write_to_no_answer(scene, monkeypatch)
    await scene.store.call(lambda db: db.sessions())  # let in when the other has come to its end
    scene.print(cell, "b")
    held.let_go()
    await scene.end(cell)
    assert await scene.texts(cell) == ["ab"]


async def test_outputs_that_wait_too_long_are_let_go_the_oldest_first_and_that_is_noted(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_module, "MAX_WAITING_BYTES", 5_000)
    await scene.transcript.write()
    await refuse_writes(scene.store)
    cells = []
    for _ in range(3):
        cell = scene.started()
        scene.print(cell, "x" * 2_000)
        cell.finish(CellStatus.OK)
        cells.append(cell)
        with pytest.raises(StorageError):
            await scene.transcript.write()
    await refuse_writes(scene.store, refusing=False)
    await scene.transcript.write()
    recalled = [await scene.recalled(cell) for cell in cells]
    assert [cell.output_lost for cell in recalled] == [True, False, False]
    assert [cell.outputs.stdout.total for cell in recalled] == [0, 2_000, 2_000]
    assert all(cell.status is CellStatus.OK for cell in recalled)
