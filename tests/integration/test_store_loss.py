"""The store fails while sessions run, or is not what it was: no crash, no silent loss, and a clear word."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from tests.cells import LIMIT_S, ended, result
from tests.disks import fill_up, mount_small_disk
from tests.integration.conftest import sleepy

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.errors import StorageError
from sagebroker.model import CellStatus
from sagebroker.session.session import Session
from sagebroker.store import schema
from sagebroker.store.database import Database
from sagebroker.testing.local_runtime import LocalRuntime

SMALL_DISK_BYTES = 8 * 2**20
"""Room for the store, the checkpoints and some cells."""

HOLDER = """
import sqlite3, sys
sql = sqlite3.connect(sys.argv[1], isolation_level=None)
sql.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
"""Another process's transaction, until its input ends."""


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    return sleepy(config)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is waited for briefly."""
    monkeypatch.setattr("sagebroker.session.transcript.RETRY_INTERVAL_S", 0.1)
    monkeypatch.setattr("sagebroker.store.sqlite_file.BUSY_LIMIT_S", 0.2)


@pytest.fixture
def small_disk(config: BrokerConfig) -> Iterator[Path]:
    """The state folder on a file system of its own."""
    folder = config.state_dir
    mount_small_disk(folder, SMALL_DISK_BYTES)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@contextmanager
def held(place: Path) -> Iterator[None]:
    """Another process has begun a transaction on the store."""
    command = [sys.executable, "-c", HOLDER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with what is in it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


async def opened(broker: Broker) -> Session:
    """A session with a variable, all of it stored."""
    session, _ = await broker.open_session("default")
    cell = await ended(session, "x = 41")
    await stored(broker, session, cell.number)
    return session


async def stored(broker: Broker, session: Session, number: int) -> None:
    """Return when the store has the end of the cell."""
    with anyio.fail_after(LIMIT_S):
        while True:
            row = await broker._store.call(lambda db: db.cell(session.id, number))
            if row is not None and row.status.is_final:
                return
            await anyio.sleep(0.02)


async def told(session: Session, *parts: str) -> None:
    """Return when the session's notices have told of the trouble; they do once."""
    with anyio.fail_after(LIMIT_S):
        while not (notices := session.take_notices()):
            await anyio.sleep(0.02)
    (notice,) = notices
    assert "Results cannot be stored at the moment, and are lost if sagebroker ends now" in notice
    for part in parts:
        assert part in notice


async def goes_on_through(broker: Broker, session: Session, *parts: str) -> None:
    """A session's cells run though nothing can be stored, and that is said once."""
    assert result(await ended(session, "x + 1")) == "42"
    await told(session, *parts)
    assert result(await ended(session, "x + 2")) == "43"
    cell = await ended(session, "1/0")
    assert cell.status is CellStatus.ERROR
    assert session.take_notices() == []


async def all_is_stored(broker: Broker, session: Session) -> None:
    """The cells of `goes_on_through` are in the store, and the next one is."""
    await stored(broker, session, 4)
    rows = await broker._store.call(lambda db: db.cells(session.id))
    assert [row.number for row in rows] == [1, 2, 3, 4]
    outputs = await broker._store.call(lambda db: db.outputs(session.id, 2))
    assert [o.content["data"]["text/plain"] for o in outputs] == ["42"]
    assert result(await ended(session, "x")) == "41"
    await stored(broker, session, 5)
    assert session.take_notices() == []


async def is_whole_for_the_next(config: BrokerConfig, runtime: LocalRuntime) -> None:
    """The next broker finds the session asleep with all there was."""
    async with Broker(config, runtime) as broker:
        assert result(await broker.read_cell("default", 2)) == "42"
        session, _ = await broker.open_session("default")
        assert result(await ended(session, "x")) == "41"
        assert len([n for n in session.take_notices() if "was asleep" in n]) == 1
        await broker.close_session("default")


async def kill_left(runtime: LocalRuntime) -> None:
    """End the containers that a broker without a store could not write anything of."""
    for container in list(runtime.containers):
        await runtime.vanish(container)


@pytest.mark.root
async def test_on_a_full_disk_cells_run_and_are_stored_when_there_is_room(
    config: BrokerConfig, runtime: LocalRuntime, small_disk: Path
) -> None:
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        fill_up(small_disk)
        await goes_on_through(broker, session, "cannot grow", "Free some disk")
        with pytest.raises(StorageError, match="Free some disk"):
            await broker.open_session("other")
        assert len(runtime.containers) == 1
        assert [p.name for p in (small_disk / "sessions").iterdir()] == [session.id]
        (small_disk / "ballast").unlink()
        await all_is_stored(broker, session)
    await is_whole_for_the_next(config, runtime)


@pytest.mark.root
async def test_on_a_full_disk_a_session_can_be_closed(
    config: BrokerConfig, runtime: LocalRuntime, small_disk: Path
) -> None:
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        await ended(session, "open('large', 'wb').write(bytes(2**20))")
        fill_up(small_disk)
        await broker.close_session("default")
        assert runtime.containers == {}
        assert list((small_disk / "sessions").iterdir()) == []
        (small_disk / "ballast").unlink()
        again, _ = await broker.open_session("default")
        assert again.id != session.id


async def test_a_store_that_becomes_read_only_is_told_and_caught_up_with(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async def read_only(broker: Broker, value: str) -> None:
        def switch(db: Database) -> None:
            db._sql.execute(f"PRAGMA query_only = {value}")

        await broker._store.call(switch)

    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        await read_only(broker, "ON")
        await goes_on_through(broker, session, "cannot be written", "SAGEBROKER_STATE_DIR")
        with pytest.raises(StorageError, match="cannot be written"):
            await broker.open_session("other")
        await read_only(broker, "OFF")
        await all_is_stored(broker, session)
    await is_whole_for_the_next(config, runtime)


async def test_a_store_that_another_process_holds_is_told_and_caught_up_with(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        with held(config.state_dir / "store.sqlite"):
            await goes_on_through(broker, session, "held by another process", "fuser")
        await all_is_stored(broker, session)
    await is_whole_for_the_next(config, runtime)


async def test_a_store_that_is_moved_away_is_told_and_caught_up_with_when_it_is_back(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    place = config.state_dir / "store.sqlite"
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        place.rename(place.with_name("elsewhere"))
        await goes_on_through(broker, session, "moved or removed", "Put it back")
        assert not place.exists()
        place.with_name("elsewhere").rename(place)
        await all_is_stored(broker, session)
    await is_whole_for_the_next(config, runtime)


async def test_a_cell_that_the_store_has_as_waiting_is_not_sent_while_that_cannot_be_changed(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    place = config.state_dir / "store.sqlite"
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        running = session.submit(
            "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)"
        )
        waiting = session.submit("x += 1")
        with anyio.fail_after(LIMIT_S):
            while not waiting.is_stored:
                await anyio.sleep(0.01)
        place.rename(place.with_name("elsewhere"))
        (config.state_dir / "sessions" / session.id / "files" / "go").touch()
        assert await waiting.wait(LIMIT_S)
        # Else it would run a second time after the broker's death.
        assert running.status is CellStatus.OK
        assert waiting.status is CellStatus.INTERRUPTED
        assert "was not run" in waiting.notices[0]
        assert "Put it back" in waiting.notices[0]
        assert "Send it again" in waiting.notices[0]
        assert result(await ended(session, "x")) == "41"
        place.with_name("elsewhere").rename(place)
        await stored(broker, session, waiting.number)


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty"])
async def test_a_store_that_is_damaged_under_a_running_broker_ends_no_session(
    config: BrokerConfig, runtime: LocalRuntime, damage: str
) -> None:
    place = config.state_dir / "store.sqlite"
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        files = config.state_dir / "sessions" / session.id / "files"
        await ended(session, "open('note', 'w').write('there')")
        with place.open("r+b") as file:
            if damage == "garbage":
                file.write(b"\xa5" * place.stat().st_size)
            else:
                file.truncate(4096 + 50 if damage == "cut" else 0)
        for n in range(3):
            cell = await ended(session, f"x + {n}")
            if cell.status is CellStatus.OK:
                assert result(cell) == str(41 + n)
            else:
                assert "was not run" in cell.notices[0]
                assert "damaged" in cell.notices[0]
        assert [s.name for s in broker.sessions()] == ["default"]
        with anyio.fail_after(LIMIT_S):
            await broker.close_session("default")
        assert runtime.containers == {}
        assert not files.exists()


async def test_a_broker_whose_store_was_removed_ends_and_leaves_the_sessions_files(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        session = await opened(broker)
        await ended(session, "open('note', 'w').write('there')")
        for path in config.state_dir.glob("store.sqlite*"):
            path.unlink()
        assert result(await ended(session, "x + 1")) == "42"
        await told(session, "moved or removed", "start sagebroker anew")
        folder = config.state_dir / "sessions" / session.id
    assert (folder / "files" / "note").read_text() == "there"
    assert [p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    await kill_left(runtime)


def cut(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:5000])


def overwrite(place: Path) -> None:
    place.write_bytes(b"This is no database. " * 1000)


def make_newer(place: Path) -> None:
    with sqlite3.connect(place) as sql:
        sql.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    sql.close()


def make_foreign(place: Path) -> None:
    place.unlink()
    with sqlite3.connect(place) as sql:
        sql.execute("CREATE TABLE theirs (x)")
    sql.close()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "is damaged.*untouched beside it.*move it away"),
        (overwrite, "is damaged.*untouched beside it.*move it away"),
        (make_newer, "later sagebroker.*Nothing was changed"),
        (make_foreign, "another program.*Nothing was changed"),
    ],
)
async def test_a_broker_does_not_start_over_a_store_that_it_cannot_use_and_changes_nothing(
    config: BrokerConfig, runtime: LocalRuntime, harm: object, said: str
) -> None:
    async with Broker(config, runtime) as broker:
        await opened(broker)
    assert callable(harm)
    harm(config.state_dir / "store.sqlite")
    before = content(config.state_dir)
    assert [name for name in before if "checkpoints" in name]
    with pytest.raises(StorageError, match=said):
        async with Broker(config, runtime):
            pytest.fail("it started")
    assert content(config.state_dir) == before


@pytest.mark.root
async def test_a_broker_does_not_start_on_a_disk_that_it_can_only_read(
    config: BrokerConfig, runtime: LocalRuntime, small_disk: Path
) -> None:
    async with Broker(config, runtime) as broker:
        await opened(broker)
        await ended(broker.session("default"), "x + 1")
    before = content(small_disk)
    remount(small_disk, "ro")
    with pytest.raises(StorageError, match=r"cannot be written.*SAGEBROKER_STATE_DIR"):
        async with Broker(config, runtime):
            pytest.fail("it started")
    assert content(small_disk) == before
    remount(small_disk, "rw")
    await is_whole_for_the_next(config, runtime)


async def test_what_lies_in_the_folders_of_a_lost_store_is_never_swept_away(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagebroker.session.orphans.GRACE_S", -1.0)
    async with Broker(config, runtime) as broker:
        await opened(broker)
        await ended(broker.session("default"), "open('note', 'w').write('there')")
    for path in config.state_dir.glob("store.sqlite*"):
        path.unlink()
    sessions = config.state_dir / "sessions"
    blank = sessions / "aaaaaaaaaa"
    for folder in (blank / "files", blank / "checkpoints"):
        folder.mkdir(parents=True)
    (blank / "lock").touch()
    before = content(sessions)
    async with Broker(config, runtime) as broker:
        # The broker's own search may be quicker.
        await broker._upkeep._sweep.run()
        with anyio.fail_after(LIMIT_S):
            while blank.exists():
                await anyio.sleep(0.02)
        assert await broker._upkeep._sweep.run() == []
        session = await opened(broker)
        assert await broker._upkeep._sweep.run({session.id}) == []
        await broker.close_session("default")
    del before["aaaaaaaaaa/lock"]
    assert content(sessions) == before
