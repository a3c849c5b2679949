"""Calls that cross each other, are cancelled or meet a session that ends: each comes back, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from tests.cells import LIMIT_S, ended, result
from tests.integration.conftest import sleepy
from tests.integration.moments import Doomed, Held, files_of, until

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.errors import SessionInUseError
from sagebroker.model import CellStatus, SessionState
from sagebroker.session import session as session_module
from sagebroker.session import wishes
from sagebroker.session.ending import Ending
from sagebroker.session.life import Life
from sagebroker.session.opener import Opener
from sagebroker.session.runner import CellRunner
from sagebroker.session.saving import RowKeeper
from sagebroker.session.session import Session
from sagebroker.session.wishes import Wishes
from sagebroker.store.folders import SessionFolder
from sagebroker.testing.local_runtime import LocalRuntime

BESIDE = "Another client uses the session 'default': here that name means 'default-2'."


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    return sleepy(config)


@asynccontextmanager
async def two_brokers(
    config: BrokerConfig, runtime: LocalRuntime
) -> AsyncIterator[tuple[Broker, Broker]]:
    async with Broker(config, runtime) as first, Broker(config, runtime) as second:
        yield first, second


def left_in(config: BrokerConfig) -> list[Path]:
    folders = (config.state_dir / "sessions", config.runtime_dir)
    return [path for folder in folders for path in folder.iterdir()]


async def states(broker: Broker) -> list[tuple[str, str]]:
    return [(row.name, row.state) for row in await broker.stored_sessions()]


# Opening and waking


async def test_a_call_that_is_cancelled_just_before_its_session_is_ready_holds_nobody_up(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker(config, runtime) as broker:
        with anyio.fail_after(LIMIT_S), monkeypatch.context() as patch:
            last_step = Held(patch, Wishes, "return_to_newest", at_end=True)
            async with anyio.create_task_group() as tg:
                tg.start_soon(broker.open_session, "default")
                await last_step.reached()
                tg.cancel_scope.cancel()
                last_step.go_on.set()
        assert runtime.containers == {}
        assert left_in(config) == []
        with anyio.fail_after(LIMIT_S):
            session, created = await broker.open_session("default")
        assert created
        assert result(await ended(session, "6 * 7")) == "42"


async def test_a_wake_that_is_cancelled_leaves_the_session_asleep(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        await session.hibernate()
        with anyio.fail_after(LIMIT_S), monkeypatch.context() as patch:
            last_step = Held(patch, Wishes, "return_to_newest")
            async with anyio.create_task_group() as tg:
                tg.start_soon(broker.open_session, "default")
                await last_step.reached()
                tg.cancel_scope.cancel()
        assert await states(broker) == [("default", "hibernated")]
        assert runtime.containers == {}
        session, _ = await broker.open_session("default")
        (notice,) = session.take_notices()
        assert "was asleep and is awake again, with 1 variables" in notice
        assert result(await ended(session, "x + 1")) == "42"


async def test_a_broker_that_ends_while_it_takes_sessions_over_ends_and_leaves_them_to_the_next(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with doomed() as first:
        for name in ("one", "two"):
            session, _ = await first.open_session(name)
            await ended(session, "x = 41")
    with anyio.fail_after(LIMIT_S), monkeypatch.context() as patch:
        finding = Held(patch, Opener, "find", only=lambda _, name: name == "two", at_end=True)
        leave = Session.leave

        async def find_meanwhile(session: Session) -> None:
            finding.go_on.set()
            await leave(session)

        patch.setattr(Session, "leave", find_meanwhile)
        async with Broker(config, runtime, adopt=True) as second:
            await finding.reached()
            assert [session.name for session in second.sessions()] == ["one"]
    assert second.sessions() == []
    async with Broker(config, runtime) as third:
        for name in ("one", "two"):
            session, _ = await third.open_session(name)
            assert result(await ended(session, "x + 1")) == "42"


# Names that mean a session beside another client's


async def test_a_session_beside_another_clients_says_so_and_is_the_one_that_its_alias_closes(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as ours:
        async with Broker(config, runtime) as theirs:
            session, _ = await theirs.open_session("default")
            await ended(session, "x = 'theirs'")
            beside, _ = await ours.open_session("default", beside=True)
            assert beside.take_notices() == [BESIDE]
            await ended(beside, "x = 'ours'")
            await beside.hibernate()
        assert "is closed" in await ours.close_session("default")
        assert await states(ours) == [("default", "hibernated")]
        session, _ = await ours.open_session("default")
        assert result(await ended(session, "x")) == "'theirs'"


async def test_two_calls_by_both_names_of_a_session_wake_it_once(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with two_brokers(config, runtime) as (theirs, ours):
        await theirs.open_session("default")
        beside, _ = await ours.open_session("default", beside=True)
        await ended(beside, "x = 41")
        await beside.hibernate()
        woken: list[Session] = []

        async def wake(name: str) -> None:
            woken.append((await ours.open_session(name, beside=True))[0])

        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tg:
                for name in ("default-2", "default"):
                    tg.start_soon(wake, name)
        assert woken[0] is woken[1]
        assert ours.sessions() == [woken[0]]
        assert result(await ended(woken[0], "x + 1")) == "42"


async def test_a_broker_that_starts_while_another_falls_asleep_waits_and_goes_on_with_its_session(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    lock = SessionFolder.lock

    def watched(folder: SessionFolder, *, sign: bool = True) -> None:
        try:
            lock(folder, sign=sign)
        except SessionInUseError:
            refused.append(folder.id)
            raise

    async with Broker(config, runtime) as second:
        async with anyio.create_task_group() as tg:
            lying_down = Held(monkeypatch, session_module, "drain")
            opened: list[Session] = []

            async def serve() -> None:
                async with Broker(config, runtime) as first:
                    session, _ = await first.open_session("default")
                    await ended(session, "x = 41")

            async def go_on() -> None:
                opened.append((await second.open_session("default", beside=True))[0])

            tg.start_soon(serve)
            await lying_down.reached()
            monkeypatch.setattr(SessionFolder, "lock", watched)
            tg.start_soon(go_on)
            await until(lambda: refused)
            lying_down.go_on.set()
        (session,) = opened
        assert session.name == "default"
        assert result(await ended(session, "x + 1")) == "42"
        (notice,) = session.take_notices()
        assert "was asleep and is awake again" in notice


# Falling asleep and closing


async def test_a_wish_to_sleep_comes_back_when_the_session_is_closed_meanwhile(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        saving = Held(monkeypatch, wishes, "save")
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tg:
                tg.start_soon(session.hibernate)
                await saving.reached()
                assert "are gone" in await broker.close_session("default")
        assert await broker.stored_sessions() == []
        assert left_in(config) == []


async def test_a_wish_to_sleep_comes_back_when_the_session_fails_meanwhile(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = config.session.model_copy(update={"crash_limit": 1})
    config = config.model_copy(update={"session": limits})
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        giving_up = Held(monkeypatch, Life, "_can_go_on")
        session.submit("import os; os._exit(1)")
        await giving_up.reached()
        hindrances: list[str] = []

        async def sleep() -> None:
            hindrances.append(await session.hibernate())

        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tg:
                tg.start_soon(sleep)
                await until(lambda: session._desk.sleep)
                giving_up.go_on.set()
        assert hindrances == ["it has no kernel"]
        assert session.info().state is SessionState.FAILED
        assert await session.hibernate() == "it has no kernel"
        await session.restart()
        assert result(await ended(session, "6 * 7")) == "42"


async def test_a_session_that_is_closed_while_it_falls_asleep_is_closed(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        falling = Held(monkeypatch, Ending, "_write")
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tg:
                tg.start_soon(session.hibernate)
                await falling.reached()
                tg.start_soon(broker.close_session, "default")
                await anyio.wait_all_tasks_blocked()
                falling.go_on.set()
        assert await broker.stored_sessions() == []
        assert left_in(config) == []


# Cells


@pytest.mark.parametrize("moment", ["taken", "sent"])
async def test_a_cell_that_is_cancelled_just_before_it_is_sent_is_never_run(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        await session.hibernate()
        session, _ = await broker.open_session("default")
        # That they were told is written down before the next cell.
        assert session.take_notices()
        if moment == "taken":
            last_step = Held(
                monkeypatch, RowKeeper, "change", only=lambda _, **fields: [*fields] == ["notices"]
            )
        else:
            last_step = Held(monkeypatch, CellRunner, "_is_noted")
        cell = session.submit("open('ran', 'w').close()")
        await last_step.reached()
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tg:
                tg.start_soon(session.cancel, cell, "cancelled")
                await until(lambda: cell.status.is_final or session._desk.stop)
                last_step.go_on.set()
        assert cell.status is CellStatus.INTERRUPTED
        assert cell.notices == ["The cell was not run."]
        assert result(await ended(session, "x + 1")) == "42"
        assert not (files_of(config, session) / "ran").exists()
        again = await broker.read_cell("default", cell.number)
        assert again.status is CellStatus.INTERRUPTED
