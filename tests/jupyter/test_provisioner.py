"""Kernels of jupyter_client's managers that are sessions: what managers may do to them, and what not."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager, start_new_async_kernel
from tests.jupyter.conftest import Jupyter
from tests.serving import Served

from sagebroker.errors import ConfigError
from sagebroker.jupyter import provisioner
from sagebroker.jupyter.link import Connection

GUARD_S = 60.0
Kernel = tuple[AsyncKernelManager, AsyncKernelClient]


@asynccontextmanager
async def managed(kernel_name: str) -> AsyncIterator[Kernel]:
    """A kernel that a manager starts, and shuts down."""
    manager, client = await start_new_async_kernel(kernel_name=kernel_name)
    try:
        yield manager, client
    finally:
        client.stop_channels()
        with anyio.CancelScope(shield=True):
            await manager.shutdown_kernel()


async def value_of(client: AsyncKernelClient, expression: str) -> str:
    """What the kernel says an expression is; the name of the exception where it raises."""
    reply = await run(client, "", user_expressions={"it": expression})
    found = reply["content"]["user_expressions"]["it"]
    return str(found["data"]["text/plain"] if found["status"] == "ok" else found["ename"])


async def run(client: AsyncKernelClient, code: str, **options: Any) -> dict[str, Any]:
    return await reply_to(client, client.execute(code, **options))


async def reply_to(client: AsyncKernelClient, msg_id: str) -> dict[str, Any]:
    with anyio.fail_after(GUARD_S):
        while True:
            reply: dict[str, Any] = await client.get_shell_msg(timeout=GUARD_S)
            if reply["parent_header"]["msg_id"] == msg_id:
                return reply


async def until_printed(client: AsyncKernelClient, text: str) -> None:
    with anyio.fail_after(GUARD_S):
        while True:
            message = await client.get_iopub_msg(timeout=GUARD_S)
            if text in message["content"].get("text", ""):
                return


def sockets_of(connection: Connection) -> list[bool]:
    """Which of a session's sockets a client could find."""
    names = ("shell", "iopub", "stdin", "control", "hb")
    places = [anyio.Path(f"{connection['ip']}-{connection[f'{name}_port']}") for name in names]
    return [place._path.is_socket() for place in places]


async def test_a_kernel_is_a_new_session_which_goes_with_it(jupyter: Jupyter) -> None:
    async with managed("sagemath") as (manager, client):
        [name] = await jupyter.names()
        assert name.startswith("jupyter-")
        assert await value_of(client, "6 * 7") == "42"
        assert await manager.is_alive()
    assert await jupyter.names() == []


async def test_a_session_that_is_joined_stays_with_its_variables_and_sockets(
    jupyter: Jupyter,
) -> None:
    name = jupyter.install("Shared")
    async with managed(name) as (_, client):
        await run(client, "kept = 42")
    async with managed(name) as (_, client):
        assert await value_of(client, "kept") == "42"
    assert await jupyter.names() == ["Shared"]
    assert sockets_of(await jupyter.link.connection("Shared")) == [True] * 5


async def test_one_manager_that_leaves_neither_stops_nor_disconnects_the_other(
    jupyter: Jupyter,
) -> None:
    name = jupyter.install("shared")
    async with managed(name) as (_, first):
        async with managed(name) as (_, second):
            assert await value_of(second, "1") == "1"
            asked = first.execute("import time; print('runs'); time.sleep(2); done = True")
            await until_printed(first, "runs")
        reply = await reply_to(first, asked)
        assert reply["content"]["status"] == "ok"
        assert await value_of(first, "done") == "True"


async def test_an_interrupt_stops_the_cell_and_keeps_the_variables(jupyter: Jupyter) -> None:
    async with managed("sagemath") as (manager, client):
        asked = client.execute("import time; x = 1; print('runs'); time.sleep(600)")
        await until_printed(client, "runs")
        await manager.interrupt_kernel()
        reply = await reply_to(client, asked)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert await value_of(client, "x") == "1"


@pytest.mark.parametrize("now", [False, True])
async def test_a_restart_brings_a_new_kernel_into_the_same_session(
    jupyter: Jupyter, *, now: bool
) -> None:
    async with managed("sagemath") as (manager, client):
        before = await jupyter.names()
        await run(client, "x = 1")
        await manager.restart_kernel(now=now)
        await client.wait_for_ready(timeout=GUARD_S)
        assert await value_of(client, "x") == "NameError"
        assert await jupyter.names() == before
    assert await jupyter.names() == []


async def test_a_kernel_that_died_is_alive_again_and_its_cell_has_a_reply(
    jupyter: Jupyter,
) -> None:
    async with managed("sagemath") as (manager, client):
        reply = await run(client, "import os; os._exit(1)")
        assert reply["content"]["status"] == "error"
        assert await manager.is_alive()
        assert await value_of(client, "6 * 7") == "42"


async def test_a_session_that_others_close_is_a_dead_kernel(jupyter: Jupyter) -> None:
    async with managed(jupyter.install("shared")) as (manager, _):
        assert await manager.is_alive()
        await jupyter.link.close("shared")
        assert not await manager.is_alive()
    assert await jupyter.names() == []


async def test_a_kernel_is_dead_when_the_broker_has_been_silent_for_long(
    jupyter: Jupyter, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with managed("sagemath") as (manager, _):
        served.process.send_signal(signal.SIGSTOP)
        assert await manager.is_alive()
        monkeypatch.setattr(provisioner, "SILENCE_LIMIT_S", 1.0)
        assert not await manager.is_alive()
        served.process.send_signal(signal.SIGCONT)
        assert await manager.is_alive()


async def test_a_session_is_closed_by_an_interpreter_that_ends(
    jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tools shut down in ``atexit``; Python 3.12 starts no threads any more then."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    manager, client = await start_new_async_kernel(kernel_name="sagemath")
    client.stop_channels()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        await manager.shutdown_kernel()
    assert await jupyter.names() == []


async def test_a_kernel_that_cannot_be_reached_leaves_no_session(
    jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    manager = AsyncKernelManager(kernel_name="sagemath")
    with pytest.raises(ConfigError, match="No space left"):
        await manager.start_kernel()
    await manager.cleanup_resources()
    assert await jupyter.names() == []
