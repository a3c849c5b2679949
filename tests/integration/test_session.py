"""Sessions over real ipykernels: order, ends, stops, deaths, restarts."""

from __future__ import annotations

import anyio
import pytest
from tests.cells import ended, result, started

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, SessionConfig
from sagebroker.errors import (
    CellNotFoundError,
    KernelStartError,
    QueueFullError,
    SessionClosedError,
    SessionNameError,
    SessionNotFoundError,
    TooManySessionsError,
)
from sagebroker.model import CellStatus, ExitCause, SessionState
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


async def test_variables_last_from_cell_to_cell_and_cells_are_numbered(broker: Broker) -> None:
    session, created = await broker.open_session("default")
    assert created
    first = await ended(session, "x = 6")
    second = await ended(session, "x * 7")
    assert (first.number, second.number) == (1, 2)
    assert second.status is CellStatus.OK
    assert result(second) == "42"


async def test_opening_a_session_again_gives_the_same_one(broker: Broker) -> None:
    session, _ = await broker.open_session("a")
    again, created = await broker.open_session("a")
    assert again is session
    assert not created


async def test_two_callers_opening_one_name_at_once_get_one_session(broker: Broker) -> None:
    found: list[Session] = []

    async def open_it() -> None:
        found.append((await broker.open_session("a"))[0])

    async with anyio.create_task_group() as tg:
        tg.start_soon(open_it)
        tg.start_soon(open_it)
    assert found[0] is found[1]


async def test_an_unknown_session_is_told_with_the_open_ones(broker: Broker) -> None:
    await broker.open_session("a")
    with pytest.raises(SessionNotFoundError, match="'b'; open sessions: 'a'"):
        broker.session("b")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "x" * 41, "a b", "a\n"])
async def test_a_name_that_could_be_misread_is_refused(broker: Broker, name: str) -> None:
    with pytest.raises(SessionNameError, match="letters, digits"):
        await broker.open_session(name)


async def test_cells_run_in_order_one_at_a_time(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    cells = [session.submit(f"order = globals().get('order', []) + [{n}]") for n in range(8)]
    assert await cells[-1].wait(30)
    assert result(await ended(session, "order")) == str(list(range(8)))


async def test_an_error_does_not_stop_the_cells_behind_it(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    bad, good = session.submit("1/0"), session.submit("2 + 2")
    assert await good.wait(30)
    assert bad.status is CellStatus.ERROR
    assert bad.failure is not None
    assert bad.failure.ename == "ZeroDivisionError"
    assert result(good) == "4"


async def test_a_full_queue_refuses_further_cells_and_loses_none(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    small = config.model_copy(update={"session": SessionConfig(max_queued_cells=2)})
    async with Broker(small, runtime) as broker:
        session, _ = await broker.open_session("default")
        running = await started(session, "import time; time.sleep(60)")
        queued = [session.submit("1"), session.submit("2")]
        with pytest.raises(QueueFullError, match="sage_wait"):
            session.submit("3")
        await session.interrupt()
        assert await queued[-1].wait(30)
        assert running.status is CellStatus.INTERRUPTED
        assert [c.status for c in queued] == [CellStatus.OK, CellStatus.OK]


async def test_the_time_limit_stops_a_cell_and_keeps_the_variables(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 12345")
    cell = await ended(session, "import time; time.sleep(60)", time_limit_s=0.3)
    assert cell.status is CellStatus.INTERRUPTED
    assert cell.stop_reason == "time_limit"
    assert cell.ladder is not None
    assert cell.ladder.rung == "sigint"
    assert "variables are kept" in cell.notices[0]
    assert result(await ended(session, "keep")) == "12345"


async def test_a_cell_that_swallows_interrupts_costs_its_kernel_and_what_is_back_is_said(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 12345")
    cell = await started(session, SWALLOWS_INTERRUPTS)
    outcome = await session.interrupt()
    assert outcome is not None
    assert (outcome.rung, outcome.variables_kept) == ("new_kernel", False)
    assert cell.status is CellStatus.INTERRUPTED
    assert "1 variables as they were after In[1]" in cell.notices[0]
    assert result(await ended(session, "keep")) == "12345"


async def test_cancelling_a_queued_cell_leaves_the_running_one_alone(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    running = await started(session, "import time; time.sleep(0.5); done = True")
    queued = session.submit("never = 1")
    await session.cancel(queued, "cancelled")
    assert queued.status is CellStatus.INTERRUPTED
    assert queued.started_at is None
    assert await running.wait(30)
    assert running.status is CellStatus.OK
    assert result(await ended(session, "('never' in globals(), done)")) == "(False, True)"


async def test_two_wishes_to_stop_one_cell_climb_one_ladder(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await started(session, "import time; time.sleep(60)")
    outcomes = []

    async def interrupt() -> None:
        outcomes.append(await session.interrupt())

    async with anyio.create_task_group() as tg:
        tg.start_soon(interrupt)
        tg.start_soon(interrupt)
    assert outcomes[0] == outcomes[1]


async def test_an_interrupt_does_not_hit_the_next_cell(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    for round_number in range(15):
        cell = session.submit("import time; time.sleep(0.02)")
        after = session.submit(f"sum(range(200000)), {round_number}")
        with anyio.move_on_after(0.002 * round_number):
            await cell.wait(1)
        await session.cancel(cell, "request")
        assert await after.wait(30)
        assert after.status is CellStatus.OK


async def test_interrupting_an_idle_session_does_nothing(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    assert await session.interrupt() is None
    assert result(await ended(session, "1 + 1")) == "2"


@pytest.mark.parametrize(
    ("code", "cause", "detail"),
    [
        ("import os; os._exit(3)", ExitCause.EXIT, "code 3"),
        ("import os; os.kill(os.getpid(), 9)", ExitCause.SIGNAL, "SIGKILL"),
        ("import ctypes; ctypes.string_at(0)", ExitCause.SIGNAL, "SIGSEGV"),
    ],
)
async def test_the_death_of_a_kernel_ends_its_cell_with_the_cause(
    broker: Broker, code: str, cause: ExitCause, detail: str
) -> None:
    session, _ = await broker.open_session("default")
    other, _ = await broker.open_session("other")
    await ended(other, "x = 1")
    cell = await ended(session, code)
    assert cell.status is CellStatus.DIED
    assert cell.exit is not None
    assert cell.exit.cause is cause
    assert detail in cell.notices[0]
    assert "variables are lost" in cell.notices[0]
    assert result(await ended(session, "1 + 1")) == "2"
    assert result(await ended(other, "x")) == "1"


async def test_a_death_while_idle_is_told_once(broker: Broker, runtime: LocalRuntime) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "import threading, os; threading.Timer(0.2, os._exit, [7]).start()")
    with anyio.fail_after(10):
        while session.info().kernel_generation != 2:
            await anyio.sleep(0.01)
    (notice,) = session.take_notices()
    assert "code 7" in notice
    assert session.take_notices() == []
    assert result(await ended(session, "1 + 1")) == "2"


async def test_a_container_that_vanishes_is_replaced_and_that_is_said(
    broker: Broker, runtime: LocalRuntime
) -> None:
    session, _ = await broker.open_session("default")
    cell = await started(session, "import time; time.sleep(60)")
    assert session.container is not None
    await runtime.vanish(session.container)
    with anyio.fail_after(5):
        assert await cell.wait(5)
    assert cell.status is CellStatus.DIED
    assert cell.exit is not None
    assert cell.exit.cause is ExitCause.CONTAINER_GONE
    assert result(await ended(session, "1 + 1")) == "2"


async def test_files_survive_the_kernel(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "open('note.txt', 'w').write('hello')")
    await ended(session, "import os; os._exit(1)")
    assert result(await ended(session, "open('note.txt').read()")) == "'hello'"


async def test_a_crash_loop_ends_in_a_clear_state_and_a_restart_gets_out_of_it(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    for _ in range(3):
        await ended(session, "import os; os._exit(1)")
    with anyio.fail_after(10):
        while session.info().state is not SessionState.FAILED:
            await anyio.sleep(0.01)
    with pytest.raises(KernelStartError, match=r"died 3 times.*sage_restart"):
        session.submit("1")
    assert "new kernel" in await session.restart()
    assert result(await ended(session, "1 + 1")) == "2"


async def test_restart_gives_a_new_kernel_whatever_runs(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "x = 1")
    running = await started(session, SWALLOWS_INTERRUPTS)
    queued = session.submit("2")
    sentence = await session.restart()
    assert "1 queued cells were dropped" in sentence
    assert running.status is CellStatus.INTERRUPTED
    assert queued.status is CellStatus.INTERRUPTED
    cell = await ended(session, "'x' in globals()")
    assert result(cell) == "False"


async def test_closing_a_session_ends_its_cells_and_removes_everything(
    broker: Broker, runtime: LocalRuntime, config: BrokerConfig
) -> None:
    session, _ = await broker.open_session("default")
    running = await started(session, "import time; time.sleep(60)")
    queued = session.submit("1")
    await broker.close_session("default")
    assert running.status is CellStatus.INTERRUPTED
    assert queued.status is CellStatus.INTERRUPTED
    with pytest.raises(SessionClosedError):
        session.submit("1")
    assert broker.sessions() == []
    assert list((config.state_dir / "sessions").iterdir()) == []
    assert list(config.runtime_dir.iterdir()) == []


async def test_no_more_sessions_are_opened_than_allowed(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    small = config.model_copy(update={"session": SessionConfig(max_sessions=1)})
    async with Broker(small, runtime) as broker:
        await broker.open_session("a")
        with pytest.raises(TooManySessionsError, match="sage_close"):
            await broker.open_session("b")
        assert len(runtime.containers) == 1


async def test_a_cell_that_is_not_there_is_told_with_those_that_are(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    with pytest.raises(CellNotFoundError, match="none yet"):
        session.cell(1)
    await ended(session, "1")
    with pytest.raises(CellNotFoundError, match="cells 1 to 1"):
        session.cell(2)


async def test_a_failed_start_says_why_and_leaves_nothing(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    runtime.images.clear()
    async with Broker(config, runtime) as broker:
        with pytest.raises(Exception, match="sagebroker image build"):
            await broker.open_session("default")
        assert broker.sessions() == []
    assert list((config.state_dir / "sessions").iterdir()) == []


async def test_a_kept_session_is_found_again_with_its_variables(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("work", keep=True)
        await ended(session, "x = 41")
    assert len(runtime.containers) == 1
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("work")
        cell = await ended(session, "x + 1")
        assert result(cell) == "42"
        assert cell.number == 2
        await second.close_session("work")


async def test_a_kept_session_whose_kernel_ended_meanwhile_says_so(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("work", keep=True)
        await ended(session, "open('f', 'w').write('there')")
        container = session.container
    assert container is not None
    await runtime.vanish(container)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("work")
        assert "variables are lost" in session.take_notices()[0]
        assert result(await ended(session, "open('f').read()")) == "'there'"
        await second.close_session("work")


async def test_files_beyond_their_limit_stop_the_cell(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    container = config.container.model_copy(update={"files_bytes": 2**20})
    async with Broker(config.model_copy(update={"container": container}), runtime) as broker:
        session, _ = await broker.open_session("default")
        cell = await ended(
            session, "open('big', 'wb').write(bytes(4 * 2**20))\nimport time; time.sleep(60)"
        )
        assert cell.stop_reason == "files_full"
        assert "exceed their limit" in cell.notices[0]
        removed = await ended(session, "import os; os.remove('big'); 1")
        assert result(removed) == "1"


async def test_a_loss_that_nobody_was_told_of_is_said_with_the_next_answer(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    cell = await ended(session, "import os; os._exit(3)")
    (notice,) = session.take_notices()
    assert notice.startswith("Cell 1: The kernel exited by itself with code 3.")
    cell = await ended(session, "import os; os._exit(4)")
    cell.told = True
    assert session.take_notices() == []


async def test_a_kept_session_survives_an_opening_that_is_cancelled(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("work", keep=True)
        await ended(session, "x = 41; open('f', 'w').write('there')")
    for moment in (0.0, 0.02, 0.1):
        async with Broker(config, runtime) as second:
            with anyio.move_on_after(moment):
                await second.open_session("work")
    async with Broker(config, runtime) as last:
        session, _ = await last.open_session("work")
        assert result(await ended(session, "x, open('f').read()")) == "(41, 'there')"
        await last.close_session("work")


async def test_a_kept_session_computes_on_from_broker_to_broker(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("work", keep=True)
        await started(session, "import time\nprint('begun', flush=True)\ntime.sleep(4)\nx = 41\nx")
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("work")
        assert session.cell(1).status is CellStatus.RUNNING
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("work")
        cell = session.cell(1)
        assert await cell.wait(30)
        assert (cell.status, cell.notices) == (CellStatus.OK, [])
        assert (result(cell), cell.outputs.stdout.text()) == ("41", "started\nbegun\n")
        assert result(await ended(session, "x")) == "41"
        await third.close_session("work")


async def test_an_engine_that_passes_no_signal_on_costs_no_kernel(
    broker: Broker, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagebroker.session.runner.STOP_RETRY_S", 0.2)
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 5")
    runtime.fail("signal", times=4)
    cell = await ended(session, "import time; time.sleep(100)", time_limit_s=0.2)
    assert cell.status is CellStatus.INTERRUPTED
    assert any("engine does not answer" in notice for notice in cell.notices)
    assert cell.ladder is not None
    assert cell.ladder.rung == "sigint"
    assert result(await ended(session, "keep")) == "5"


async def test_channels_that_break_burn_no_queued_cells(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 5")
    kernel = session._desk.kernel
    assert kernel is not None
    kernel._line.channels.sever("by the test")
    cells = [session.submit(f"keep + {n}") for n in range(4)]
    assert await cells[-1].wait(30)
    assert [result(cell) for cell in cells] == ["5", "6", "7", "8"]
    assert session.info().kernel_generation == 1


async def test_a_session_closed_while_it_starts_is_told_so(broker: Broker) -> None:
    async def open_it() -> None:
        with pytest.raises(SessionClosedError, match="while it started"):
            await broker.open_session("a")

    async with anyio.create_task_group() as tg:
        tg.start_soon(open_it)
        with anyio.fail_after(10):
            while not broker.sessions():
                await anyio.sleep(0.001)
        await broker.close_session("a")


async def test_the_limit_of_sessions_holds_for_callers_at_once(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    small = config.model_copy(update={"session": SessionConfig(max_sessions=2)})
    refused = 0
    async with Broker(small, runtime) as broker:

        async def open_it(name: str) -> None:
            nonlocal refused
            try:
                await broker.open_session(name)
            except TooManySessionsError:
                refused += 1

        async with anyio.create_task_group() as tg:
            for name in "abcdef":
                tg.start_soon(open_it, name)
        assert len(broker.sessions()) == 2
        assert refused == 4


async def test_a_session_that_cannot_be_removed_now_is_said_to_be_so_and_swept_later(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        await broker.open_session("work", keep=True)
        runtime.fail("remove", times=1)
        with anyio.fail_after(10):
            sentence = await broker.close_session("work")
        assert "could not be removed now" in sentence
    assert len(runtime.containers) == 1
    async with Broker(config, runtime) as broker:
        await broker.runtime()
        with anyio.fail_after(10):
            while runtime.containers:
                await anyio.sleep(0.02)
