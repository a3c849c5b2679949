"""What brokers leave to one another: names, containers, folders."""

from __future__ import annotations

import subprocess
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.errors import KernelStartError, SessionInUseError
from sagebroker.session.session import Session
from sagebroker.store.folders import StateFolder
from sagebroker.store.trees import remove_tree
from sagebroker.testing.local_runtime import LocalRuntime


async def text(session: Session, code: str) -> str:
    """What a cell prints."""
    cell = session.submit(code)
    assert await cell.wait(30)
    return cell.outputs.stdout.text(1000).strip()


async def test_two_brokers_that_open_one_new_kept_name_do_not_make_two_sessions(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    opened: list[Session] = []
    refused: list[SessionInUseError] = []

    async def open_it(broker: Broker) -> None:
        try:
            opened.append((await broker.open_session("work", keep=True))[0])
        except SessionInUseError as error:
            refused.append(error)

    async with Broker(config, runtime) as one, Broker(config, runtime) as other:
        async with anyio.create_task_group() as tg:
            tg.start_soon(open_it, one)
            tg.start_soon(open_it, other)
        assert (len(opened), len(refused)) == (1, 1)
        await opened[0].aclose()


async def test_a_kept_session_whose_sockets_are_gone_gets_a_new_kernel(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("work", keep=True)
        await text(session, "open('f', 'w').write('there')")
        sockets = config.runtime_dir / session.id / "s"
    await anyio.to_thread.run_sync(log_out, sockets, config.runtime_dir)
    async with Broker(config, runtime) as second:
        session, _ = await second.open_session("work")
        assert await text(session, "print(open('f').read())") == "there"
        await second.close_session("work")


def log_out(sockets: Path, runtime_dir: Path) -> None:
    """Take the sockets away, as a system does with $XDG_RUNTIME_DIR."""
    if sockets.is_mount():
        subprocess.run(["umount", "-l", str(sockets)], check=True)
    remove_tree(runtime_dir)


async def test_a_paused_kept_session_is_told_and_has_its_variables_when_it_goes_on(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as first:
        session, _ = await first.open_session("work", keep=True)
        await text(session, "x = 41")
    (container,) = runtime.containers.values()
    container.state = "paused"
    async with Broker(config, runtime) as second:
        with pytest.raises(KernelStartError, match="docker unpause"):
            await second.open_session("work")
        container.state = "running"
        session, _ = await second.open_session("work")
        assert await text(session, "print(x + 1)") == "42"
        await second.close_session("work")


async def test_an_opening_that_is_cancelled_early_leaves_no_folder(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    sessions = StateFolder(config.state_dir).sessions
    async with Broker(config, runtime) as broker:
        for _ in range(5):
            with anyio.fail_after(30):
                async with anyio.create_task_group() as tg:
                    tg.start_soon(lambda: broker.open_session("work", keep=True))
                    while not list(sessions.iterdir()):
                        await anyio.lowlevel.checkpoint()
                    tg.cancel_scope.cancel()
            assert list(sessions.iterdir()) == []
