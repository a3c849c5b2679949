"""Sessions on real Sage in real containers: what is lost and what is not, and that it is said."""

from __future__ import annotations

import os

import anyio
import docker
import psutil
import pytest
from tests.cells import ended, result, started

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, ContainerConfig, HibernationConfig
from sagebroker.model import CellStatus, ExitCause

pytestmark = [pytest.mark.sage, pytest.mark.docker]

FLOOD_GROWTH_LIMIT_BYTES = 50 * 10**6
"""What a gigabyte of output may cost the broker."""
KEEPER_TEMPLATE_AND_KERNEL = 3
COUNT_OF_PROCESSES = "len([p for p in __import__('os').listdir('/proc') if p.isdigit()])"


@pytest.mark.core
async def test_a_session_computes_in_the_sage_language(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "R.<x> = QQ[]\nf = x^4 - 1")
    assert result(await ended(session, "factor(f)")) == "(x - 1) * (x + 1) * (x^2 + 1)"


@pytest.mark.core
@pytest.mark.parametrize(
    ("code", "cause", "detail"),
    [
        ("import os; os._exit(int(3))", ExitCause.EXIT, "code 3"),
        ("import os; os.kill(os.getpid(), int(9))", ExitCause.SIGNAL, "SIGKILL"),
        ("import ctypes; ctypes.string_at(int(0))", ExitCause.SIGNAL, "SIGSEGV"),
    ],
)
async def test_a_dead_kernel_is_told_by_its_cause_and_replaced(
    broker: Broker, code: str, cause: ExitCause, detail: str
) -> None:
    session, _ = await broker.open_session("default")
    other, _ = await broker.open_session("other")
    await ended(other, "y = 3")
    cell = await ended(session, code)
    assert cell.status is CellStatus.DIED
    assert cell.exit is not None
    assert cell.exit.cause is cause
    assert detail in cell.notices[0]
    assert result(await ended(session, "2^10")) == "1024"
    assert result(await ended(other, "y^2")) == "9"


@pytest.mark.core
async def test_out_of_memory_ends_the_kernel_alone_and_names_the_limit(
    config: BrokerConfig, sage_image: str
) -> None:
    small = config.model_copy(update={"container": ContainerConfig(memory_bytes=2**30)})
    async with Broker(small) as broker:
        session, _ = await broker.open_session("default")
        await ended(session, "open('f', 'w').write('there')")
        container = session.container
        cell = await ended(session, "L = []\nwhile True: L.append(b'1' * int(2*10^7))")
        assert cell.status is CellStatus.DIED
        assert cell.exit is not None
        assert cell.exit.cause is ExitCause.OUT_OF_MEMORY
        assert "limit 1 GiB" in cell.notices[0]
        assert session.container == container
        assert result(await ended(session, "open('f').read()")) == "'there'"
        await broker.close_session("default")


@pytest.mark.core
async def test_a_container_removed_by_somebody_else_is_replaced(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    cell = await started(session, "factor((2^300).next_prime()*(2^305).next_prime())")
    removed = session.container
    assert removed is not None
    runtime = await broker.runtime()
    await runtime.remove(removed)
    with anyio.fail_after(20):
        await cell.wait(20)
    assert cell.status is CellStatus.DIED
    assert cell.exit is not None
    assert cell.exit.cause is ExitCause.CONTAINER_GONE
    assert result(await ended(session, "1 + 1")) == "2"
    assert session.container != removed


async def test_a_paused_container_is_not_taken_for_a_dead_one(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 5")
    container = docker.from_env(version="auto").containers.get(str(session.container))
    container.pause()
    cell = session.submit("keep")
    assert not await cell.wait(3)
    container.unpause()
    assert await cell.wait(60)
    assert result(cell) == "5"


@pytest.mark.core
@pytest.mark.parametrize(
    "code",
    [
        "for i in range(10^6): print('y' * int(999))\nprint('last')",
        "import os\nfor i in range(20000): os.write(int(1), b'w' * int(50000))\n"
        "_ = os.write(int(1), b'last\\n')",
        "print('z' * int(10^9))\nprint('last')",
    ],
    ids=["a million lines", "straight to the file descriptor", "one string"],
)
async def test_a_gigabyte_of_output_costs_the_broker_little_and_keeps_head_and_tail(
    broker: Broker, code: str
) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 5")
    process = psutil.Process(os.getpid())
    before = peak = process.memory_info().rss
    cell = session.submit("print('first', flush=True)\n" + code)
    with anyio.fail_after(240):
        while not await cell.wait(0.02):
            peak = max(peak, process.memory_info().rss)
    assert cell.status is CellStatus.OK, cell.notices
    text = cell.outputs.stdout.text(10**7)
    assert text.startswith("first")
    assert text.endswith("last\n")
    assert "left out" in text
    assert peak - before < FLOOD_GROWTH_LIMIT_BYTES
    assert result(await ended(session, "keep")) == "5"


async def test_sessions_do_not_share_variables_files_or_processes(broker: Broker) -> None:
    one, _ = await broker.open_session("one")
    two, _ = await broker.open_session("two")
    await ended(one, "secret = 1; open('mine', 'w').write('x')")
    cell = await ended(
        two, "import os; ('secret' in globals(), os.listdir('/files'), os.listdir('/run/kernel/s'))"
    )
    shared, files, sockets = eval(result(cell))
    assert not shared
    assert files == []
    assert sorted(sockets) == ["k-1", "k-2", "k-3", "k-4", "k-5", "restore.json", "status.json"]
    # A process that writes the checkpoint of the cell before may still be seen for a moment.
    with anyio.fail_after(30):
        while int(result(await ended(two, COUNT_OF_PROCESSES))) > KEEPER_TEMPLATE_AND_KERNEL:
            await anyio.sleep(1.0)


async def test_a_kept_session_survives_its_broker(config: BrokerConfig, sage_image: str) -> None:
    async with Broker(config) as first:
        session, _ = await first.open_session("work", keep=True)
        await ended(session, "K.<a> = NumberField(x^3 - 2)")
    async with Broker(config) as second:
        session, _ = await second.open_session("work")
        assert result(await ended(session, "a^3")) == "2"
        await second.close_session("work")


async def test_what_a_killed_broker_left_that_was_not_to_sleep_is_removed_by_the_next(
    config: BrokerConfig, sage_image: str
) -> None:
    config = config.model_copy(update={"hibernation": HibernationConfig(at_end=False)})
    code = (
        "import anyio, os, sys\n"
        "from pathlib import Path\n"
        "from sagebroker.broker import Broker\n"
        "from sagebroker.config import BrokerConfig\n"
        "async def main():\n"
        "    c = BrokerConfig(state_dir=Path(sys.argv[1]), runtime_dir=Path(sys.argv[2]),\n"
        "                     hibernation={'at_end': False})\n"
        "    async with Broker(c) as broker:\n"
        "        await broker.open_session('default')\n"
        "        os.kill(os.getpid(), 9)\n"
        "anyio.run(main)\n"
    )
    import sys

    with anyio.fail_after(120):
        await anyio.run_process(
            [sys.executable, "-c", code, str(config.state_dir), str(config.runtime_dir)],
            check=False,
        )
    sessions = config.state_dir / "sessions"
    async with Broker(config) as broker:
        runtime = await broker.runtime()
        with anyio.fail_after(30):
            while await runtime.list(broker.own_labels) or any(sessions.iterdir()):
                await anyio.sleep(0.1)
