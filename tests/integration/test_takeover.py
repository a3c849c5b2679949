"""What the next broker makes of the sessions of one that was killed: running cells, waiting ones, dead kernels."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from tests.cells import LIMIT_S, ended, result
from tests.integration.conftest import sleepy
from tests.integration.moments import Doomed, files_of, shown, stored

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.kernel.channels import ChannelSet
from sagebroker.model import CellStatus, ExitCause
from sagebroker.testing.local_runtime import LocalRuntime

SAYS_AND_WAITS = """
import os, time
x = 41
print("before", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
print("after", flush=True)
"""


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    return sleepy(config)


async def over(runtime: LocalRuntime, trace: Path) -> None:
    """Return when the kernel has left its trace, be it dead or alive."""
    with anyio.fail_after(LIMIT_S):
        while not await anyio.Path(trace).exists():
            await anyio.sleep(0.01)


@pytest.mark.parametrize("goes_on", ["before", "after"])
async def test_a_running_cell_is_followed_to_its_end_with_all_its_output(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, goes_on: str
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        cell = session.submit(SAYS_AND_WAITS + "open('done', 'w').close(); x + 1")
        waiting = [session.submit("x + 2"), session.submit("print(x)")]
        await shown(cell, "before")
        await stored(*waiting)
    files = files_of(config, session)
    if goes_on == "before":
        (files / "go").touch()
        await over(runtime, files / "done")
    (container,) = runtime.containers
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        assert session.container == container
        if goes_on == "after":
            await shown(session.cell(1), "before")
            # What was stored is there before the kernel is followed.
            with anyio.fail_after(LIMIT_S):
                while session.current is not session.cell(1):
                    await anyio.sleep(0.01)
            (files / "go").touch()
        for number in (1, 2, 3):
            assert await session.cell(number).wait(LIMIT_S)
        followed = await second.read_cell("default", 1)
        assert followed.status is CellStatus.OK
        assert followed.outputs.stdout.text() == "before\nafter\n"
        assert not followed.output_lost
        assert result(followed) == "42"
        assert result(session.cell(2)) == "43"
        assert session.cell(3).outputs.stdout.text() == "41\n"
        assert session.info().kernel_generation == 1
        assert (await ended(session, "x")).number == 4
    async with Broker(config, runtime) as third:
        again = await third.read_cell("default", 1)
        assert again.outputs.stdout.text() == "before\nafter\n"
        assert (again.status, result(again)) == (CellStatus.OK, "42")


@pytest.mark.parametrize("is_answered", [False, True])
async def test_a_question_is_asked_on_by_the_next_broker_unless_it_was_answered(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, is_answered: bool
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        cell = session.submit("a = input('First? ')\n" + SAYS_AND_WAITS + "a + input('Second? ')")
        await cell.wait_settled(LIMIT_S)
        if is_answered:
            await session.answer(cell, "x")
            await shown(cell, "before")
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(1)
        if is_answered:
            await shown(cell, "before")
            assert cell.asks is None
        else:
            await cell.wait_settled(LIMIT_S)
            assert cell.asks is not None
            assert cell.asks.prompt == "First? "
            await session.answer(cell, "x")
        (files_of(config, session) / "go").touch()
        with anyio.fail_after(LIMIT_S):
            while cell.asks is None or cell.asks.prompt != "Second? ":
                await anyio.sleep(0.01)
        await session.answer(cell, "y")
        assert await cell.wait(LIMIT_S)
        assert result(cell) == "'xy'"


async def test_who_has_answered_a_followed_cell_hears_of_its_end(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await session.submit("input()").wait_settled(LIMIT_S)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(1)
        await cell.wait_settled(LIMIT_S)
        await session.answer(cell, "x")
        with anyio.fail_after(LIMIT_S):
            await cell.wait_settled(2 * LIMIT_S)
        assert result(cell) == "'x'"


async def test_a_followed_cell_can_be_stopped_and_costs_no_variable(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await shown(session.submit(SAYS_AND_WAITS), "before")
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        with anyio.fail_after(LIMIT_S):
            while session.current is None:
                await anyio.sleep(0.01)
        outcome = await session.interrupt()
        assert outcome is not None
        assert (outcome.rung, outcome.variables_kept) == ("sigint", True)
        assert session.cell(1).status is CellStatus.INTERRUPTED
        assert result(await ended(session, "x")) == "41"


async def test_two_kills_during_one_cell_lose_none_of_its_output(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await shown(session.submit(SAYS_AND_WAITS), "before")
    async with doomed() as second:
        session, _ = await second.open_session("default")
        await shown(session.cell(1), "before")
    (files_of(config, session) / "go").touch()
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("default")
        assert await session.cell(1).wait(LIMIT_S)
        assert session.cell(1).status is CellStatus.OK
        assert session.cell(1).outputs.stdout.text() == "before\nafter\n"
        assert result(await ended(session, "x")) == "41"


async def test_a_cell_that_the_kernel_never_began_was_not_run_and_is_not_run_again(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(*_: object, **__: object) -> None:
        await anyio.sleep_forever()

    async with doomed() as first:
        session, _ = await first.open_session("default")
        await ended(session, "n = 0")
        monkeypatch.setattr(ChannelSet, "send", stuck)
        cell = session.submit("n += 1")
        with anyio.fail_after(LIMIT_S):
            while not cell.msg_id:
                await anyio.sleep(0.01)
        await session._transcript.write()
    monkeypatch.undo()
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(2)
        assert await cell.wait(LIMIT_S)
        assert cell.status is CellStatus.INTERRUPTED
        assert "was not run: its broker was killed before" in cell.notices[0]
        assert result(await ended(session, "n")) == "0"


async def test_a_kernel_that_died_meanwhile_ends_its_cell_with_cause_output_and_fate(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await ended(session, "keep = 12345")
        with anyio.fail_after(LIMIT_S):
            while not await session.checkpoints():
                await anyio.sleep(0.01)
        # Larger than what is read of a journal at a time.
        huge = "display({'text/plain': 'y' * (3 * 2**20)}, raw=True)\n"
        await shown(session.submit(SAYS_AND_WAITS + huge + "os._exit(7)"), "before")
        waiting = session.submit("keep")
        await stored(waiting)
    files = files_of(config, session)
    (files / "go").touch()
    status = config.runtime_dir / session.id / "s" / "status.json"
    with anyio.fail_after(LIMIT_S):
        while '"generation": 2' not in status.read_text():
            await anyio.sleep(0.01)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(2)
        assert await cell.wait(LIMIT_S)
        assert cell.status is CellStatus.DIED
        assert cell.exit is not None
        assert (cell.exit.cause, cell.exit.code) == (ExitCause.EXIT, 7)
        said = " ".join(cell.notices)
        assert "exited by itself with code 7" in said
        assert "1 variables as they were after In[1]" in said
        assert cell.outputs.stdout.text() == "before\nafter\n"
        assert len(cell.outputs.displays) == 1
        assert await session.cell(3).wait(LIMIT_S)
        assert result(session.cell(3)) == "12345"
        assert len([n for n in session.take_notices() if "code 7" in n]) == 1
    async with Broker(config, runtime) as third:
        session, _ = await third.open_session("default")
        assert not [n for n in session.take_notices() if "code 7" in n]


async def test_a_kernel_that_died_while_idle_and_unwatched_is_told(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        code = "import os, threading; x = 1; threading.Timer(1, os._exit, [7]).start()"
        await ended(session, code)
        await session._transcript.write()
    status = config.runtime_dir / session.id / "s" / "status.json"
    with anyio.fail_after(LIMIT_S):
        while '"generation": 2' not in status.read_text():
            await anyio.sleep(0.01)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        assert [n for n in session.take_notices() if "kernel ended" in n]


async def test_a_container_that_is_gone_meanwhile_leaves_its_cells_output_in_the_journal(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await ended(session, "keep = 12345")
        with anyio.fail_after(LIMIT_S):
            while not await session.checkpoints():
                await anyio.sleep(0.01)
        await shown(
            session.submit(SAYS_AND_WAITS + "open('done', 'w').close()\n" * 2 + "time.sleep(99)"),
            "before",
        )
    files = files_of(config, session)
    (files / "go").touch()
    await over(runtime, files / "done")
    await runtime.vanish(next(iter(runtime.containers)))
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(2)
        assert await cell.wait(LIMIT_S)
        assert cell.status is CellStatus.DIED
        assert cell.exit is not None
        assert cell.exit.cause is ExitCause.CONTAINER_GONE
        assert cell.outputs.stdout.text() == "before\nafter\n"
        said = " ".join(cell.notices)
        assert "while nobody was connected" in said
        assert "1 variables as they were after In[1]" in said
        assert result(await ended(session, "keep")) == "12345"


async def test_a_cell_that_had_ended_before_its_container_went_has_its_own_end(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await shown(session.submit(SAYS_AND_WAITS + "x + 1"), "before")
    (files_of(config, session) / "go").touch()
    journal = config.state_dir / "sessions" / session.id / "checkpoints" / "journal"
    with anyio.fail_after(LIMIT_S):
        while b"execute_reply" not in journal.read_bytes():
            await anyio.sleep(0.01)
    await runtime.vanish(next(iter(runtime.containers)))
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("default")
        cell = session.cell(1)
        assert await cell.wait(LIMIT_S)
        assert cell.status is CellStatus.OK
        assert cell.outputs.stdout.text() == "before\nafter\n"
        assert result(cell) == "42"
        with anyio.fail_after(LIMIT_S):
            notices: list[str] = []
            while not notices:
                notices = session.take_notices()
                await anyio.sleep(0.01)
        assert "After cell 1: The kernel disappeared with its container" in notices[0]


async def test_a_broker_that_adopts_takes_over_what_was_left_without_being_asked(
    doomed: Doomed, config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with doomed() as first:
        session, _ = await first.open_session("default")
        await ended(session, "x = 41")
        kept, _ = await first.open_session("kept", keep=True)
        await ended(kept, "x = 1")
    async with Broker(config, runtime, adopt=True) as second:
        with anyio.fail_after(LIMIT_S):
            while not second.sessions():
                await anyio.sleep(0.01)
        session, _ = await second.open_session("default")
        assert result(await ended(session, "x + 1")) == "42"
        assert session.take_notices() == []
        assert [s.name for s in second.sessions()] == ["default"]
        await second.close_session("kept")
