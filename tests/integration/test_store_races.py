"""What a broker finds that another has left in disorder, or another configuration: nothing is lost by that."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.cells import LIMIT_S, ended, result
from tests.integration.conftest import sleepy
from tests.integration.moments import Doomed, files_of, folder_of, shown, stored, until

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.errors import KernelStartError, StorageError
from sagebroker.model import CellStatus
from sagebroker.session.session import Session
from sagebroker.store.database import Database
from sagebroker.testing.local_runtime import LocalRuntime

WAITS = """
import os, time
print("started", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
"""

LIMIT_OF_CELL_S = 60.0
BEGAN_S = 10_000.0
"""How long ago a cell is made to have begun."""

ENDED_S = 9_990.0
"""How long ago it is made to have ended."""


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    return sleepy(config)


def journal_of(config: BrokerConfig, session: Session) -> Path:
    return folder_of(config, session) / "checkpoints" / "journal"


async def ended_unseen(doomed: Doomed, config: BrokerConfig, code: str) -> Session:
    """A session whose second cell has ended long ago, its limit long over, while nobody was connected."""
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41")
        cell = session.submit(WAITS + code, time_limit_s=LIMIT_OF_CELL_S)
        await shown(cell, "started")
        await stored(cell)
    (files_of(config, session) / "go").touch()
    journal = journal_of(config, session)
    await until(lambda: b'"idle"' in journal.read_bytes())
    with closing(sqlite3.connect(config.state_dir / "store.sqlite")) as sql, sql:
        sql.execute("UPDATE cells SET started_at = started_at - ? WHERE number = 2", (BEGAN_S,))
    ended_at = journal.stat().st_mtime - ENDED_S
    os.utime(journal, (ended_at, ended_at))
    return session


@pytest.mark.parametrize(
    ("code", "status"), [("x + 1", CellStatus.OK), ("raise ValueError(x)", CellStatus.ERROR)]
)
async def test_a_cell_that_ended_long_before_it_was_followed_keeps_its_own_end_and_time(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, code: str, status: CellStatus
) -> None:
    await ended_unseen(doomed, config, code)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(2)
        assert await cell.wait(LIMIT_S)
        assert (cell.status, cell.notices, cell.ladder) == (status, [], None)
        if status is CellStatus.OK:
            assert result(cell) == "42"
        else:
            assert cell.failure is not None
            assert (cell.failure.ename, cell.failure.evalue) == ("ValueError", "41")
        assert BEGAN_S - ENDED_S <= cell.elapsed_s < ENDED_S
        assert session.info().kernel_generation == 1
        assert result(await ended(session, "x")) == "41"


def mark_broken(data: bytes) -> bytes:
    """As the kernel does when it cannot write."""
    return data[:4] + b"!" + data[5:]


def cut_and_mark(data: bytes) -> bytes:
    return mark_broken(data)[: 2 * len(data) // 3]


def spoil_end(data: bytes) -> bytes:
    return data[: len(data) // 2] + b"\xff" * (len(data) // 2)


def spoil(data: bytes) -> bytes:
    return b"\xff" * len(data)


@pytest.mark.parametrize("harm", [mark_broken, cut_and_mark, spoil_end, spoil])
async def test_a_cell_with_a_damaged_journal_costs_no_variable_and_is_told_as_unknown(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, harm: object
) -> None:
    journal = journal_of(config, await ended_unseen(doomed, config, "y = 1"))
    assert callable(harm)
    journal.write_bytes(harm(journal.read_bytes()))
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(2)
        assert await cell.wait(LIMIT_S)
        if harm is mark_broken:
            # All of it can be read still.
            assert cell.status is CellStatus.OK
            assert cell.output_lost
        else:
            assert cell.status is CellStatus.INTERRUPTED
            (notice,) = cell.notices
            assert "How the cell ended is not known" in notice
        assert session.info().kernel_generation == 1
        assert result(await ended(session, "x, y")) == "(41, 1)"


async def test_a_kernel_whose_sockets_are_in_another_runtime_folder_is_not_ended_but_told(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, short_dir: Path
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41")
        await session._transcript.write()
    containers = set(runtime.containers)
    other = config.model_copy(update={"runtime_dir": short_dir / "other"})
    async with Broker(other, runtime) as second:
        with pytest.raises(KernelStartError, match=f"SAGEBROKER_RUNTIME_DIR={config.runtime_dir}"):
            await second.open_session("default")
    assert set(runtime.containers) == containers
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("default")
        assert session.container in containers
        assert result(await ended(session, "x + 1")) == "42"
        assert session.take_notices() == []


async def test_an_idle_session_whose_results_cannot_be_stored_stays_awake_with_them(
    impatient: BrokerConfig,
    runtime: LocalRuntime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_: Database, **__: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr("sagebroker.session.transcript.RETRY_INTERVAL_S", 0.1)
    caplog.set_level("INFO", logger="sagebroker")
    async with Broker(impatient, runtime) as broker:
        session, _ = await broker.open_session("default", hibernate="always")
        await stored(await ended(session, "x = 41"))
        with monkeypatch.context() as patch:
            patch.setattr(Database, "save", refuse)
            cell = await ended(session, "print('important'); x + 1")
            await until(lambda: [m for m in caplog.messages if "stays awake" in m])
            assert not session.is_ending
        (message,) = [m for m in caplog.messages if "stays awake" in m]
        assert "its results cannot be stored: The disk is full." in message
        await stored(cell)
        await session.hibernate()
        kept = await broker.read_cell("default", 2)
        assert (kept.outputs.stdout.text(), result(kept)) == ("important\n", "42")


async def test_what_could_not_be_saved_is_told_also_where_the_broker_is_killed_just_after_waking(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default", hibernate="always")
        await ended(session, "x = 41; bad = (n for n in range(3))")
        await session.hibernate(force=True)
    async with doomed() as second:
        await second.open_session("default")
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("default")
        (notice,) = session.take_notices()
        assert "Missing: bad (cannot pickle 'generator' object)." in notice
        assert result(await ended(session, "x, 'bad' in globals()")) == "(41, False)"


async def test_one_lock_that_cannot_be_read_ends_no_broker_and_keeps_no_other_session_back(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    sessions: dict[str, Session] = {}
    async with doomed() as first:
        for name in ("one", "two"):
            sessions[name], _ = await first.open_session(name)
            await ended(sessions[name], f"x = {name!r}")
    damaged = folder_of(config, sessions["one"])
    lock = damaged / "lock"
    aside = lock.rename(damaged / "aside")
    lock.mkdir()
    async with Broker(config, runtime, adopt=True) as second:
        await until(lambda: [session.name for session in second.sessions()] == ["two"])
        for use in (second.open_session, second.close_session):
            with pytest.raises(StorageError, match="lock of session"):
                await use("one")
        session, _ = await second.open_session("two")
        assert result(await ended(session, "x")) == "'two'"
        await session.hibernate()
        assert "are gone" in await second.close_session("two")
        lock.rmdir()
        aside.rename(lock)
        session, _ = await second.open_session("one")
        assert result(await ended(session, "x")) == "'one'"
