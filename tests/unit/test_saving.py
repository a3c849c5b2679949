"""A session's row, changed by the process that serves it."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.unit.left_sessions import change, refuse_writes, stored
from tests.unit.store_rows import session_row

from sagebroker.errors import SessionGoneError, StorageError
from sagebroker.session.saving import RowKeeper
from sagebroker.store.database import Database
from sagebroker.store.folders import StateFolder
from sagebroker.store.records import SessionRow
from sagebroker.store.store import Store

ID = "aaaaaaaaaa"


@pytest.fixture
async def keeper(store: Store) -> RowKeeper:
    row = session_row(ID)
    await store.call(lambda db: db.add_session(row))
    return RowKeeper(store, row)


async def test_a_change_is_stored_and_known(store: Store, keeper: RowKeeper) -> None:
    await keeper.change(state="busy", notices=("One.",))
    await keeper.change(note="why")
    assert keeper.row == await stored(store, ID)
    assert (keeper.row.state, keeper.row.notices, keeper.row.note) == ("busy", ("One.",), "why")


async def test_changes_at_the_same_time_are_all_stored(store: Store, keeper: RowKeeper) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(partial(keeper.change, state="busy"))
        tg.start_soon(partial(keeper.change, note="why"))
        tg.start_soon(partial(keeper.change, kernel_generation=3))
    row = await stored(store, ID)
    assert keeper.row == row
    assert (row.state, row.note, row.kernel_generation, row.revision) == ("busy", "why", 3, 3)


async def test_a_change_that_is_refused_changes_nothing(store: Store, keeper: RowKeeper) -> None:
    before = keeper.row
    await refuse_writes(store)
    with pytest.raises(StorageError):
        await keeper.change(state="busy")
    assert keeper.row == before
    await refuse_writes(store, refusing=False)
    await keeper.change(note="why")
    assert (await stored(store, ID)).state == before.state


async def test_a_change_that_was_given_up_and_made_after_all_is_no_hindrance(
    store: Store,
    keeper: RowKeeper,
    installation: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Database.open(installation.database, lambda _: installation.path)
    other._sql.execute("BEGIN IMMEDIATE")
    began = threading.Event()
    write = keeper._write

    def begin(db: Database, fields: dict[str, Any]) -> SessionRow:
        began.set()
        return write(db, fields)

    monkeypatch.setattr(keeper, "_write", begin)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            tg.start_soon(partial(keeper.change, state="busy"))
            await anyio.to_thread.run_sync(began.wait)
            tg.cancel_scope.cancel()
    assert keeper.row.state != "busy"
    other._sql.execute("ROLLBACK")
    other.close()
    await keeper.change(note="why")
    assert keeper.row == await stored(store, ID)
    assert (keeper.row.state, keeper.row.note, keeper.row.revision) == ("busy", "why", 2)


async def test_a_session_that_is_removed_is_told(store: Store, keeper: RowKeeper) -> None:
    await keeper.remove()
    with pytest.raises(SessionGoneError):
        await keeper.change(state="busy")
    await keeper.remove()


async def test_a_row_that_was_changed_elsewhere_is_read_again_and_changed(
    store: Store, keeper: RowKeeper
) -> None:
    await change(store, ID, note="elsewhere")
    await keeper.change(state="busy")
    assert (keeper.row.note, keeper.row.state) == ("elsewhere", "busy")
