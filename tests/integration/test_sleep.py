"""Sessions that sleep: at their broker's end or for want of use, and what they have when they wake."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from tests.cells import LIMIT_S, ended, result, started
from tests.integration.conftest import sleepy

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, CheckpointConfig, HibernationConfig
from sagebroker.errors import (
    CellNotFoundError,
    CheckpointNotFoundError,
    KernelStartError,
    SessionInUseError,
    SessionNotFoundError,
)
from sagebroker.model import CellStatus, SessionState
from sagebroker.session.session import Session
from sagebroker.testing.local_runtime import LocalRuntime

SWALLOWS_INTERRUPTS = """
import time
while True:
    try:
        time.sleep(100)
    except KeyboardInterrupt:
        pass
"""

IDLE_S = 1.0
"""The shortest that may be configured."""


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    return sleepy(config)


async def asleep(broker: Broker, session: Session) -> None:
    """Return when the session sleeps."""
    with anyio.fail_after(LIMIT_S):
        await session.wait_ended()
    (row,) = await broker.stored_sessions()
    assert row.state == "hibernated"


async def stays_awake(caplog: pytest.LogCaptureFixture) -> str:
    """Why a session was not let sleep, as soon as it was tried."""
    with anyio.fail_after(LIMIT_S):
        while True:
            for message in caplog.messages:
                if "stays awake" in message:
                    return message
            await anyio.sleep(0.02)


async def checkpointed(session: Session, number: int) -> None:
    with anyio.fail_after(LIMIT_S):
        while number not in [info.number for info in await session.checkpoints()]:
            await anyio.sleep(0.02)


def left_in(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.iterdir()]


async def test_a_session_sleeps_when_its_broker_ends_and_wakes_by_name_with_its_variables(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41; f = lambda n: n + x")
        await ended(session, "open('note', 'w').write('there')")
    assert runtime.containers == {}
    assert list(config.runtime_dir.iterdir()) == []
    async with Broker(config, runtime) as second:
        (row,) = await second.stored_sessions()
        assert (row.name, row.state) == ("default", "hibernated")
        session, created = await second.open_session("default")
        assert created
        assert result(await ended(session, "f(1), open('note').read()")) == "(42, 'there')"
        (notice,) = session.take_notices()
        assert "'default' was asleep and is awake again, with 2 variables" in notice
        assert session.take_notices() == []
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("default")
        assert len([n for n in session.take_notices() if "was asleep" in n]) == 1


async def test_what_nobody_was_told_before_the_sleep_is_told_after_it(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 1")
        await checkpointed(session, 1)
        await ended(session, "import os; os._exit(7)")
        with anyio.fail_after(LIMIT_S):
            while session.info().kernel_generation != 2:
                await anyio.sleep(0.01)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        notices = session.take_notices()
        assert len([n for n in notices if "code 7" in n and "1 variables" in n]) == 1
        assert len([n for n in notices if "was asleep" in n]) == 1
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("default")
        assert not [n for n in session.take_notices() if "code 7" in n]


async def test_a_session_that_nobody_used_is_closed_with_its_broker(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        await broker.open_session("default")
    assert left_in(config.state_dir / "sessions", config.runtime_dir) == []
    async with Broker(config, runtime) as broker:
        assert await broker.stored_sessions() == []
        with pytest.raises(SessionNotFoundError):
            await broker.awake("default")


async def test_a_private_session_is_closed_with_its_broker(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        await broker.open_session("default")
        session, _ = await broker.open_session("default", private=True)
        assert session.name == "default-2"
        await ended(session, "x = 1")
    assert left_in(config.state_dir / "sessions", config.runtime_dir) == []


async def test_an_idle_session_sleeps_and_its_next_use_wakes_it(
    impatient: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(impatient, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        await asleep(broker, session)
        assert broker.sessions() == []
        assert runtime.containers == {}
        woken = await broker.awake("default")
        assert woken is not session
        assert result(await ended(woken, "x + 1")) == "42"
        assert [n for n in woken.take_notices() if "was asleep" in n]


async def test_a_session_that_was_to_go_with_its_broker_is_not_lost_by_sleeping(
    impatient: BrokerConfig, runtime: LocalRuntime
) -> None:
    sleep = HibernationConfig(at_end=False, idle_s=IDLE_S)
    config = impatient.model_copy(update={"hibernation": sleep})
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        await asleep(broker, session)
        assert await broker._upkeep._sweep.run() == []
        woken = await broker.awake("default")
        assert result(await ended(woken, "x + 1")) == "42"


async def test_a_session_that_is_never_to_sleep_stays_and_so_does_one_that_computes(
    impatient: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(impatient, runtime) as broker:
        stays, _ = await broker.open_session("stays", hibernate="never")
        await ended(stays, "g = iter([1, 2])")
        computes, _ = await broker.open_session("computes")
        cell = await started(computes, "import time\nwhile True: time.sleep(1)")
        sleeps, _ = await broker.open_session("sleeps")
        await ended(sleeps, "x = 1")
        with anyio.fail_after(LIMIT_S):
            await sleeps.wait_ended()
        assert [s.name for s in broker.sessions()] == ["computes", "stays"]
        assert cell.status is CellStatus.RUNNING
        assert result(await ended(stays, "next(g)")) == "1"


@pytest.mark.parametrize(
    "code",
    [
        "bad = (n for n in range(3))",
        "import threading; bad = threading.Lock()",
        "import socket; bad = socket.socket()",
    ],
)
async def test_a_variable_that_cannot_be_saved_keeps_its_session_awake(
    impatient: BrokerConfig,
    runtime: LocalRuntime,
    caplog: pytest.LogCaptureFixture,
    code: str,
) -> None:
    caplog.set_level("INFO", logger="sagebroker")
    async with Broker(impatient, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, code)
        assert "some variables cannot be saved: bad (" in await stays_awake(caplog)
        assert not session.is_ending
        assert session.info().state is SessionState.READY
        assert result(await ended(session, "'bad' in globals()")) == "True"
        hindrance = await session.hibernate()
        assert "bad (" in hindrance
        await session.aclose()


async def test_a_session_that_is_always_to_sleep_names_what_it_has_lost_when_it_wakes(
    impatient: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(impatient, runtime) as broker:
        session, _ = await broker.open_session("default", hibernate="always")
        await ended(session, "x = 41; bad = (n for n in range(3))")
        await asleep(broker, session)
        woken = await broker.awake("default")
        (notice,) = woken.take_notices()
        assert "1 variables" in notice
        assert "Missing: bad (cannot pickle 'generator' object)." in notice
        assert result(await ended(woken, "x, 'bad' in globals()")) == "(41, False)"


async def test_a_running_cell_is_stopped_at_the_end_and_the_variables_are_saved(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await started(session, "x = 41\nimport time; time.sleep(100)")
        session.submit("never = 1")
    async with Broker(config, runtime) as second:
        stopped = await second.read_cell("default", 1)
        assert stopped.status is CellStatus.INTERRUPTED
        assert stopped.outputs.stdout.text() == "started\n"
        assert "was ended with its session" in stopped.notices[0]
        queued = await second.read_cell("default", 2)
        assert queued.status is CellStatus.INTERRUPTED
        assert queued.notices == ["The cell was not run."]
        session, _ = await second.open_session("default")
        assert result(await ended(session, "x, 'never' in globals()")) == "(41, False)"


async def test_a_cell_that_cannot_be_stopped_in_time_is_told_with_what_is_lost(
    config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagebroker.session.drain.END_STOP_LIMIT_S", 0.5)
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41")
        await checkpointed(session, 1)
        await started(session, "x = 42\n" + SWALLOWS_INTERRUPTS)
    assert runtime.containers == {}
    async with Broker(config, runtime) as second:
        assert (await second.read_cell("default", 2)).status is CellStatus.INTERRUPTED
        session, _ = await second.open_session("default")
        said = " ".join(session.take_notices())
        assert "a cell could not be stopped" in said
        assert "after In[1]" in said
        assert result(await ended(session, "x")) == "41"


async def test_changes_that_could_not_be_saved_before_the_sleep_are_told(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41")
        await checkpointed(session, 1)
        folder = config.state_dir / "sessions" / session.id / "checkpoints"
        folder.rename(folder.with_name("aside"))
        folder.write_text("in the way of every checkpoint")
        await ended(session, "x = 42")
    folder.unlink()
    folder.with_name("aside").rename(folder)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        said = " ".join(session.take_notices())
        assert "the last changes could not be saved" in said
        assert "after In[1]" in said
        assert result(await ended(session, "x")) == "41"


async def test_without_checkpoints_a_session_sleeps_at_the_end_only_and_that_costs_its_variables(
    impatient: BrokerConfig, runtime: LocalRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sagebroker")
    config = impatient.model_copy(update={"checkpoint": CheckpointConfig(enabled=False)})
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41; open('note', 'w').write('there')")
        assert "could not be saved" in await stays_awake(caplog)
        assert result(await ended(session, "x")) == "41"
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        said = " ".join(session.take_notices())
        assert "could not be saved" in said
        assert "has no variables" in said
        code = "'x' in globals(), open('note').read()"
        assert result(await ended(session, code)) == "(False, 'there')"


async def test_a_restart_restores_the_checkpoint_of_a_number(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        for value in (1, 2):
            await ended(session, f"x = {value}")
            await checkpointed(session, value)
        sentence = await session.restart(restore=await session.restore_order(1))
        assert "1 variables as they were after in[1]" in sentence.lower()
        assert result(await ended(session, "x")) == "1"
        sentence = await session.restart(restore=await session.restore_order(2))
        assert result(await ended(session, "x")) == "2"
        with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint 99.*There are: "):
            await session.restore_order(99)


async def test_a_restart_that_the_engine_refuses_does_not_cost_the_variables_later(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        await checkpointed(session, 1)
        runtime.fail("signal")
        with pytest.raises(KernelStartError, match="left as it is"):
            await session.restart()
        await ended(session, "import os; os._exit(7)")
        assert result(await ended(session, "x")) == "41"


async def test_a_labelled_checkpoint_outlives_others_and_sleep_and_is_restored(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 'labelled'")
        saved = await session.checkpoint("start")
        assert saved.hindrance == ""
        for value in range(config.checkpoint.keep + 2):
            await ended(session, f"x = {value}")
            await session.checkpoint()
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        assert result(await ended(session, "x")) == str(config.checkpoint.keep + 1)
        order = await session.restore_order("start")
        assert order == saved.number
        await session.restart(restore=order)
        assert result(await ended(session, "x")) == "'labelled'"


async def test_cells_are_read_while_their_session_sleeps_and_numbers_go_on(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "print('said'); 6 * 7")
        await ended(session, "1/0")
        await first.read_cell("default", 1)
    async with Broker(config, runtime) as second:
        for wakes in (False, True):
            if wakes:
                await second.open_session("default")
            good = await second.read_cell("default", 1)
            assert (good.code, good.status) == ("print('said'); 6 * 7", CellStatus.OK)
            assert (good.outputs.stdout.text(), result(good)) == ("said\n", "42")
            bad = await second.read_cell("default", 2)
            assert bad.status is CellStatus.ERROR
            assert bad.failure is not None
            assert bad.failure.ename == "ZeroDivisionError"
            with pytest.raises(CellNotFoundError, match="no cell 3"):
                await second.read_cell("default", 3)
            assert len(runtime.containers) == int(wakes)
        session = second.session("default")
        assert (await ended(session, "'next'")).number == 3


async def test_a_repeated_request_is_recognised_also_by_the_next_broker(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        cell = session.submit("n = globals().get('n', 0) + 1; n", request_id="once")
        assert await cell.wait(LIMIT_S)
        assert await session.cell_of_request("once") is cell
        assert await session.cell_of_request("") is None
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        found = await session.cell_of_request("once")
        assert found is not None
        assert (found.number, result(found)) == (1, "1")
        assert await session.cell_of_request("another") is None
        assert result(await ended(session, "n")) == "1"


async def test_closing_a_session_that_sleeps_leaves_nothing(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("default")
        await ended(session, "open('note', 'w').write('there')")
    async with Broker(config, runtime) as second:
        assert "are gone" in await second.close_session("default")
        assert await second.stored_sessions() == []
        assert left_in(config.state_dir / "sessions", config.runtime_dir) == []
        session, _ = await second.open_session("default")
        assert session.take_notices() == []
        assert (await ended(session, "1")).number == 1


async def test_a_name_that_another_process_serves_is_refused_or_gets_a_session_beside_it(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first, Broker(config, runtime) as second:
        theirs, _ = await first.open_session("default")
        await ended(theirs, "x = 'theirs'")
        with pytest.raises(SessionInUseError, match="served by another sagebroker process"):
            await second.open_session("default")
        session, created = await second.open_session("default", beside=True)
        assert created
        assert session.name == "default-2"
        assert second.session("default") is session
        assert await second.awake("default") is session
        assert await second.open_session("default") == (session, False)
        await ended(session, "x = 'ours'")
        assert (await second.read_cell("default", 1)).code == "x = 'ours'"
    async with Broker(config, runtime) as third:
        rows = await third.stored_sessions()
        assert [(row.name, row.state) for row in rows] == [
            ("default", "hibernated"),
            ("default-2", "hibernated"),
        ]
        session, _ = await third.open_session("default-2")
        assert result(await ended(session, "x")) == "'ours'"


async def test_a_session_that_fell_asleep_while_it_was_wanted_is_woken(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "x = 41")
        woken: list[Session] = []

        async def wake() -> None:
            woken.append(await broker.awake("default"))

        async with anyio.create_task_group() as tg:
            tg.start_soon(session.hibernate)
            with anyio.fail_after(LIMIT_S):
                while not session.is_ending:
                    await anyio.lowlevel.checkpoint()
            tg.start_soon(wake)
            tg.start_soon(wake)
        assert woken[0] is woken[1]
        assert woken[0] is not session
        assert result(await ended(woken[0], "x + 1")) == "42"
