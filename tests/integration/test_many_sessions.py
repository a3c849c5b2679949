"""Many sessions of one broker, most of them asleep: what each costs, and that it is given back."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import psutil
import pytest
from tests.cells import ended, result

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, HibernationConfig, KernelConfig, SessionConfig
from sagebroker.model import CellStatus
from sagebroker.testing.local_runtime import LocalRuntime

SESSIONS = 40
AWAKE = 5
"""Of them, while the others sleep."""
AT_ONCE = 2
"""Kernels that start at the same time, as many as a small machine has cores."""
KERNEL_BYTES = 100 * 2**20
"""One plain Python kernel with its keeper, generously."""
LIMIT_S = 280.0

WORKERS = 40
"""Most threads in which anyio does what blocks, whatever the number of sessions."""

FDS_SPARE = 10
"""Descriptors that libraries open once for all, whatever the number of sessions."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What this process and its kernels use."""

    containers: int
    processes: int
    threads: int
    fds: int
    sockets: int
    broker_mib: int
    kernels_mib: int

    @classmethod
    def now(cls, runtime: LocalRuntime, config: BrokerConfig) -> Counts:
        broker = psutil.Process()
        family = [p for p in broker.children(recursive=True) if _lives(p)]
        folder = config.runtime_dir
        return cls(
            containers=len(runtime.containers),
            processes=len(family),
            threads=len([t for t in threading.enumerate() if t.is_alive()]),
            fds=broker.num_fds(),
            sockets=len(list(folder.iterdir())) if folder.exists() else 0,
            broker_mib=_mib(broker),
            kernels_mib=sum(_mib(process) for process in family),
        )


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _mib(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss) // 2**20
    except psutil.NoSuchProcess:
        return 0


async def calm(runtime: LocalRuntime, config: BrokerConfig) -> Counts:
    """The counts, as soon as no checkpoint is being written: a keeper and a kernel for each container."""
    while (counts := Counts.now(runtime, config)).processes != 2 * counts.containers:
        await anyio.sleep(0.05)
    return counts


@pytest.fixture
def config(config: BrokerConfig) -> BrokerConfig:
    """Room for all sessions at once."""
    branches = {
        "hibernation": HibernationConfig(at_end=False),
        "kernel": KernelConfig(concurrent_starts=AT_ONCE),
        "session": SessionConfig(max_sessions=SESSIONS),
    }
    return config.model_copy(update=branches)


@pytest.fixture
def open_at_once() -> int:
    """How many sessions are awake together: all, if the machine has the memory."""
    return min(SESSIONS, max(2 * AWAKE, psutil.virtual_memory().available // KERNEL_BYTES - 10))


async def each(work: object, names: list[str]) -> None:
    """Do something for every name, some at a time."""
    assert callable(work)
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(name: str) -> None:
        async with limiter:
            await work(name)

    async with anyio.create_task_group() as tg:
        for name in names:
            tg.start_soon(one, name)


async def test_forty_sessions_of_which_most_sleep_all_wake_with_their_variables(
    config: BrokerConfig, runtime: LocalRuntime, open_at_once: int
) -> None:
    names = [f"s{n}" for n in range(SESSIONS)]
    counted: dict[str, Counts] = {}

    async def begin(broker: Broker, name: str) -> None:
        session, created = await broker.open_session(name)
        assert created
        await ended(session, f"own = '{name}'; also = [own] * 3")
        await ended(session, f"open('note', 'w').write('{name}')")

    async def let_sleep(broker: Broker, name: str) -> None:
        assert await broker.session(name).hibernate() == ""

    async def wake(broker: Broker, name: str) -> None:
        session = await broker.awake(name)
        cell = await ended(session, "own, also, open('note').read()")
        assert cell.status is CellStatus.OK, (cell, session.take_notices())
        assert result(cell) == repr((name, [name] * 3, name))
        (notice,) = session.take_notices()
        assert f"'{name}' was asleep and is awake again, with 2 variables" in notice
        assert await session.hibernate() == ""

    with anyio.fail_after(LIMIT_S):
        counted["before"] = before = await calm(runtime, config)
        async with Broker(config, runtime) as broker:
            # As many awake at once as the memory holds; the others begin when those sleep.
            await each(partial(begin, broker), names[:open_at_once])
            counted[f"{open_at_once} awake"] = await calm(runtime, config)
            await each(partial(let_sleep, broker), names[AWAKE:open_at_once])
            await each(partial(begin, broker), names[open_at_once:])
            await each(partial(let_sleep, broker), names[max(AWAKE, open_at_once) :])
            counted[f"{AWAKE} awake"] = asleep = await calm(runtime, config)
            assert [s.name for s in broker.sessions()] == sorted(names[:AWAKE])
            # A folder for the kernel's, and one for Jupyter clients'.
            assert (asleep.containers, asleep.sockets) == (AWAKE, 2 * AWAKE)
            states = [row.state for row in await broker.stored_sessions()]
            assert states.count("hibernated") == SESSIONS - AWAKE

            await each(partial(wake, broker), names[AWAKE:])
            counted["after waking"] = woken = await calm(runtime, config)
            assert woken.containers == len(broker.sessions()) == AWAKE
            assert woken.sockets == 2 * AWAKE
            assert woken.fds <= asleep.fds + FDS_SPARE
            assert woken.threads <= before.threads + WORKERS

            await each(broker.close_session, names)
            counted["closed"] = closed = await calm(runtime, config)
            assert closed.containers == closed.sockets == 0
            assert broker._reserved == 0
            assert await broker.stored_sessions() == []
        counted["after"] = after = await calm(runtime, config)
    for when, counts in counted.items():
        print(f"{when:>14}: {counts}")
    assert left_in(config.state_dir / "sessions") == []
    assert after.fds <= before.fds + FDS_SPARE


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())
