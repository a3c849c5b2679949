"""One cell or one notice that the broker is killed over, and what the next broker makes of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from tests.cells import LIMIT_S, ended, result
from tests.chaos.remains import remove_all

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.model import CellStatus

pytestmark = [pytest.mark.sage, pytest.mark.docker]

PROGRAM = """
import anyio, os, sys
from pathlib import Path
from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig

async def main():
    state, runtime, code, until = sys.argv[1:]
    async with Broker(BrokerConfig(state_dir=Path(state), runtime_dir=Path(runtime))) as broker:
        session, _ = await broker.open_session("default")
        cell = session.submit(code)
        with anyio.fail_after(60):
            while not eval(until):
                cell.tell()
                await anyio.sleep(0.01)
        os.kill(os.getpid(), 9)

anyio.run(main)
"""
"""A broker that is killed when something has happened in its session."""

LINES = 60
PRINTING = f"""
import time
for i in range({LINES}):
    print('line', i, flush=True)
    time.sleep(float(0.1))
print('run', file=open('/files/runs', 'a'))
done = 5
"""
WHOLE = "".join(f"line {i}\n" for i in range(LINES))

DYING = """
import os, threading
lost = (i for i in range(3))
threading.Timer(float(1), os._exit, [int(3)]).start()
"""
"""The kernel ends after the cell, and with it a variable that no checkpoint can have."""


@pytest.fixture
def config(config: BrokerConfig, short_dir: Path, sage_image: str) -> Iterator[BrokerConfig]:
    """Afterwards nothing is left of what brokers with this configuration have made."""
    yield config
    remove_all(short_dir)


async def killed(config: BrokerConfig, code: str, *, until: str) -> None:
    """A broker opens the session ``default``, sends ``code``, and is killed when ``until`` is true."""
    folders = [str(config.state_dir), str(config.runtime_dir)]
    with anyio.fail_after(LIMIT_S):
        done = await anyio.run_process(
            [sys.executable, "-c", PROGRAM, *folders, code, until], check=False
        )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


async def test_a_printing_cell_goes_on_without_a_broker_and_none_of_its_output_is_lost(
    config: BrokerConfig,
) -> None:
    await killed(config, PRINTING, until="'line 20' in cell.outputs.stdout.text()")
    await anyio.sleep(2)
    async with Broker(config, adopt=True) as broker:
        session, _ = await broker.open_session("default")
        cell = session.cell(1)
        assert cell.status is CellStatus.RUNNING
        assert await cell.wait(LIMIT_S)
        assert (cell.status, cell.notices, cell.output_lost) == (CellStatus.OK, [], False)
        assert cell.outputs.stdout.text() == WHOLE
        assert result(await ended(session, "open('/files/runs').read()")) == "'run\\n'"
        assert session.take_notices() == []
        await broker.close_session("default")


async def test_the_output_of_a_cell_that_ended_while_there_was_no_broker_is_whole(
    config: BrokerConfig,
) -> None:
    await killed(config, PRINTING, until="'line 50' in cell.outputs.stdout.text()")
    await anyio.sleep(2)
    async with Broker(config, adopt=True) as broker:
        session, _ = await broker.open_session("default")
        cell = session.cell(1)
        assert await cell.wait(LIMIT_S)
        assert (cell.status, cell.notices, cell.output_lost) == (CellStatus.OK, [], False)
        assert cell.outputs.stdout.text() == WHOLE
        assert result(await ended(session, "done")) == "5"
        await broker.close_session("default")


async def test_a_kernel_that_died_while_there_was_no_broker_is_told_by_the_next(
    config: BrokerConfig,
) -> None:
    await killed(config, DYING, until="cell.status.is_final")
    await anyio.sleep(2)
    await expect_told(config, "lost (")


async def test_a_death_that_the_killed_broker_has_told_nobody_is_told_by_the_next(
    config: BrokerConfig,
) -> None:
    await killed(
        config, DYING, until="session.info().kernel_generation == 2 and session._keeper.row.notices"
    )
    await expect_told(config, "lost (")


async def test_what_a_woken_session_lacks_is_told_by_the_next_broker_where_the_killed_one_told_nobody(
    config: BrokerConfig,
) -> None:
    async with Broker(config) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "lost = (i for i in range(3))")
        await session.hibernate(force=True)
    await killed(config, "1 + 1", until="cell.status.is_final")
    await expect_told(config, "lost (")


async def expect_told(config: BrokerConfig, words: str) -> None:
    """The next broker's first answers about the session ``default`` have these words."""
    async with Broker(config, adopt=True) as broker:
        session, _ = await broker.open_session("default")
        cell = await ended(session, "'lost' in globals()")
        assert result(cell) == "False"
        told = " ".join([*session.take_notices(), *cell.notices])
        await broker.close_session("default")
    assert words in told
