from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL

import anyio
import zmq.asyncio
from anyio.abc import Process

from sagebroker.kernel.connection import SOCKET_NAMES, ConnectionInfo
from sagebroker.kernel.heartbeat import Heartbeat
from sagebroker.protocol.execution import Execution
from sagebroker.testing import local_kernel
from sagebroker.testing.wire_client import WireClient, open_wire

CELL_S = 0.02
"""Length of the cells whose end is raced against: long enough that busy is seen first."""


@asynccontextmanager
async def _kernel(folder: Path) -> AsyncIterator[tuple[Process, ConnectionInfo]]:
    """A kernel of ours over ipc, without a container."""
    connection = ConnectionInfo.new(str(folder / "k"))
    file = folder / "connection.json"
    connection.write(file, os.geteuid(), os.getegid())
    configuration = folder / "keeper.json"
    configuration.write_text(json.dumps({"connection_file": str(file)}), encoding="utf-8")
    command = [sys.executable, "-I", "-B", local_kernel.__file__, str(configuration), "1"]
    environment = {**os.environ, "IPYTHONDIR": str(folder / "ipython")}
    async with await anyio.open_process(
        command, env=environment, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
    ) as process:
        try:
            with anyio.fail_after(30):
                for name in SOCKET_NAMES:
                    while not await anyio.Path(connection.socket_path(name)).is_socket():
                        assert process.returncode is None
                        await anyio.sleep(0.02)
            yield process, connection
        finally:
            if process.returncode is None:
                process.kill()


@asynccontextmanager
async def _wire(connection: ConnectionInfo) -> AsyncIterator[WireClient]:
    """A client whose iopub is proven to arrive."""
    async with open_wire(connection) as wire:

        def is_heard() -> bool:
            return any(message.msg_type == "status" for message in wire.foreign)

        with anyio.fail_after(30):
            while not is_heard():
                await wire.channels.send("control", "kernel_info_request", {})
                with anyio.move_on_after(0.3):
                    await wire.until(is_heard)
        yield wire


async def test_twenty_concurrent_cells_all_get_their_own_result(short_dir: Path) -> None:
    results: dict[int, Execution] = {}

    async with _kernel(short_dir) as (_, connection), _wire(connection) as wire:

        async def run(number: int) -> None:
            results[number] = await wire.execute(f"print({number})\n{number} * 1000")

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(run, number)

    assert len(results) == 20
    for number, ended in results.items():
        assert (ended.status, ended.reply_lost, ended.idle_lost) == ("ok", False, False)
        assert ended.outputs.stdout.text() == f"{number}\n"
        assert ended.outputs.displays[0].data["text/plain"] == str(number * 1000)


async def test_outputs_errors_and_help_of_a_real_kernel_are_folded(short_dir: Path) -> None:
    async with _kernel(short_dir) as (_, connection), _wire(connection) as wire:
        failed = await wire.execute("import sys\nprint('out')\nsys.stderr.write('err')\n1/0")
        assert failed.status == "error"
        assert failed.failure is not None
        assert failed.failure.ename == "ZeroDivisionError"
        assert (failed.outputs.stdout.text(), failed.outputs.stderr.text()) == ("out\n", "err")
        assert "len(obj, /)" in (await wire.execute("len?")).payload
        cleared = await wire.execute(
            "from IPython.display import *\nprint(1)\nclear_output()\nh = display('a', display_id=True)\n"
            "h.update('b')"
        )
        assert [output.data["text/plain"] for output in cleared.outputs.displays] == ["'b'"]
        assert cleared.outputs.stdout.text() == ""
        odd = await wire.execute(r"print('a\udc80b')")
        assert odd.status == "ok"
        assert odd.outputs.stdout.text() == "a\\udc80b\n"


async def test_twenty_thousand_displays_arrive_completely(short_dir: Path) -> None:
    code = (
        "from IPython.display import display\n"
        "for i in range(20000): display({'text/plain': str(i)}, raw=True)"
    )
    async with _kernel(short_dir) as (_, connection), _wire(connection) as wire:
        ended = await wire.execute(code, limit_s=120)
        assert (ended.status, ended.idle_lost) == ("ok", False)
        assert len(ended.outputs.displays) + ended.outputs.dropped_displays == 20_000
        assert wire.channels.counts["iopub"].dropped.total() == 0


async def test_an_interrupt_at_any_moment_ends_the_cell_and_leaves_the_next_alone(
    short_dir: Path,
) -> None:
    moments = random.Random(7)
    async with _kernel(short_dir) as (process, connection), _wire(connection) as wire:
        await wire.execute("import time")
        for number in range(400):
            offset_s = moments.uniform(-0.004, 0.006)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_interrupt_at_the_end, process, offset_s)
                ended = await wire.execute(f"time.sleep({CELL_S})", limit_s=10)
            assert (ended.reply_lost, ended.idle_lost) == (False, False)
            if ended.status == "error":
                assert ended.failure is not None
                assert ended.failure.ename == "KeyboardInterrupt"
            else:
                assert ended.status == "ok"
            following = await wire.execute(f"{number} + 0", limit_s=10)
            assert (following.status, following.reply_lost) == ("ok", False)
            assert following.outputs.displays[0].data["text/plain"] == str(number)
        assert process.returncode is None


async def _interrupt_at_the_end(process: Process, offset_s: float) -> None:
    await anyio.sleep(CELL_S + offset_s)
    process.send_signal(signal.SIGINT)


async def test_a_later_client_with_the_same_identity_gets_the_pending_reply(
    short_dir: Path,
) -> None:
    async with _kernel(short_dir) as (_, connection):
        async with _wire(connection) as first:
            msg_id = first.channels.new_msg_id()
            content = {"code": "import time; time.sleep(1.5); print('late')", "silent": False}
            await first.channels.send("shell", "execute_request", content, msg_id=msg_id)
            await first.until(lambda: any(m.parent_id == msg_id for m in first.foreign))
        async with open_wire(connection) as second:
            execution = Execution(msg_id)
            with second.router.expect(msg_id, lambda message: execution.feed(message, 0.0)):
                await second.until(lambda: execution.ended(0.0))
            assert execution.status == "ok"
            assert execution.outputs.stdout.text() == "late\n"


async def test_a_stopped_process_misses_heartbeats_and_a_busy_one_does_not(short_dir: Path) -> None:
    async with _kernel(short_dir) as (process, connection), _wire(connection) as wire:
        with zmq.asyncio.Context() as context:
            heartbeat = Heartbeat(connection, context, interval_s=0.05)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(heartbeat.run)
                await wire.until(lambda: heartbeat.beats > 3)
                before = heartbeat.beats
                await wire.execute("sum(range(20_000_000))")
                assert heartbeat.beats > before
                process.send_signal(signal.SIGSTOP)
                await wire.until(lambda: heartbeat.silent_for(anyio.current_time()) > 0.5)
                process.send_signal(signal.SIGCONT)
                await wire.until(lambda: heartbeat.silent_for(anyio.current_time()) == 0)
                tasks.cancel_scope.cancel()


async def test_a_shutdown_ends_the_kernel_after_its_control_thread_has_said_all(
    short_dir: Path,
) -> None:
    slow = (
        "import time\nkernel = get_ipython().kernel\npublish = kernel._publish_status_and_flush\n"
        "def late(status, channel, *rest):\n"
        "    time.sleep(0.5 if channel == 'control' else 0)\n"
        "    publish(status, channel, *rest)\n"
        "kernel._publish_status_and_flush = late"
    )
    async with _kernel(short_dir) as (process, connection), _wire(connection) as wire:
        assert (await wire.execute(slow)).status == "ok"
        asked = wire.channels.new_msg_id()
        await wire.channels.send("control", "shutdown_request", {"restart": False}, msg_id=asked)
        with anyio.fail_after(30):
            assert await process.wait() == 0
        await wire.until(
            lambda: any(
                m.parent_id == asked and m.content.get("execution_state") == "idle"
                for m in wire.foreign
            )
        )
