"""The store for asynchronous callers: one call at a time, each with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from tests.unit.store_rows import open_store, session_row

from sagebroker.errors import NameTakenError, StorageError
from sagebroker.store import store as store_module
from sagebroker.store.database import Database
from sagebroker.store.store import Store


class Disk:
    """A disk that answers when it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.is_asked = threading.Event()

    def hold(self, db: Database) -> None:
        """Let nobody else write."""
        db._sql.execute("BEGIN IMMEDIATE")

    def let_go(self, db: Database) -> None:
        db._sql.execute("ROLLBACK")
        db.close()

    def wait(self, _: Database) -> str:
        self.is_asked.set()
        self.answers.wait()
        return "answered"


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.answers.set()


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_call_returns_and_raises_what_the_database_does(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session) as store:
        await store.call(lambda db: db.add_session(session_row()))
        assert [row.id for row in await store.call(lambda db: db.sessions())] == ["aaaaaaaaaa"]
        with pytest.raises(NameTakenError):
            await store.call(lambda db: db.add_session(session_row("b", name="name-aaaaaaaaaa")))
    with pytest.raises(StorageError, match="is closed"):
        await store.call(lambda db: db.sessions())
    # The last one to leave empties the log.
    assert names_in(tmp_path) == ["store.db"]


async def test_a_store_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="damaged"):
        async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session):
            pass


async def test_calls_are_made_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(db: Database) -> None:
        inside.append(1)
        db.sessions()
        most.append(len(inside))
        inside.pop()

    async with (
        Store.open(tmp_path / "store.db", lambda session: tmp_path / session) as store,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(20):
            tasks.start_soon(store.call, work)
    assert most == [1] * 20


async def test_a_disk_that_does_not_answer_is_told_and_later_calls_wait_for_it(
    tmp_path: Path, disk: Disk
) -> None:
    ran: list[str] = []
    async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session) as store:
        with anyio.fail_after(30):
            with pytest.raises(StorageError, match="does not answer"):
                await store.call(disk.wait, limit_s=0.05)
            with pytest.raises(StorageError, match="does not answer"):
                await store.call(lambda _: ran.append("never"), limit_s=0.05)
            disk.answers.set()
            await store.call(lambda _: ran.append("now"))
    assert ran == ["now"]


async def test_work_that_has_begun_goes_on_to_its_end_when_its_caller_is_cancelled(
    tmp_path: Path, disk: Disk
) -> None:
    def work(db: Database) -> None:
        disk.wait(db)
        db.add_session(session_row())

    async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session) as store:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.call, work)
                await anyio.to_thread.run_sync(disk.is_asked.wait)
                tasks.cancel_scope.cancel()
            disk.answers.set()
            assert len(await store.call(lambda db: db.sessions())) == 1


async def test_closing_is_bounded_and_loses_nothing(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "CLOSE_LIMIT_S", 0.05)
    with anyio.fail_after(30):
        async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session) as store:
            await store.call(lambda db: db.add_session(session_row()))
            with pytest.raises(StorageError):
                await store.call(disk.wait, limit_s=0.05)
    assert "is closed later" in caplog.text
    disk.answers.set()
    with anyio.fail_after(30):
        while names_in(tmp_path) != ["store.db"]:  # its log is emptied by the thread that was stuck
            await anyio.sleep(0.01)
    again = open_store(tmp_path)
    assert len(again.sessions()) == 1
    again.close()


async def test_a_store_that_opens_too_late_is_closed_again(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("CALL_LIMIT_S", "CLOSE_LIMIT_S"):
        monkeypatch.setattr(store_module, limit, 0.05)
    other = open_store(tmp_path)
    disk.hold(other)
    with anyio.fail_after(30):
        with pytest.raises(StorageError, match="does not answer"):
            async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session):
                pass
        disk.let_go(other)
        while names_in(tmp_path) != ["store.db"]:
            await anyio.sleep(0.01)


async def test_the_store_is_closed_when_its_owner_is_cancelled(tmp_path: Path) -> None:
    with anyio.move_on_after(30) as scope:
        async with Store.open(tmp_path / "store.db", lambda session: tmp_path / session):
            scope.cancel()
            await anyio.sleep_forever()
    assert names_in(tmp_path) == ["store.db"]
