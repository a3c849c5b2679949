from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from sagebroker.kernel.guard import MemoryGuard, UnexplainedGrowth, resident_bytes
from sagebroker.testing.scripted_kernel import running_kernel
from sagebroker.testing.wire_client import open_wire

MIB = 2**20
LIMIT_BYTES = 64 * MIB

ENDLESS = """
import socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1]); server.listen(8)
print("bound", flush=True)
peer, _ = server.accept()
greeting = b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00" + b"NULL".ljust(20, b"\\0") + bytes(32)
ready = b"\\x05READY" + b"\\x0bSocket-Type" + struct.pack(">I", 4) + b"XPUB"
peer.sendall(greeting)
peer.recv(64, socket.MSG_WAITALL)
peer.sendall(b"\\x04" + bytes([len(ready)]) + ready)
peer.recv(1)  # the answer: only now is the handshake over
part = b"\\x03" + struct.pack(">Q", 2**16) + bytes(2**16)  # long frame, more to come
try:
    while True:
        peer.sendall(part)
except OSError:
    print("hung up", flush=True)
    sys.stdin.read()
"""


async def test_a_message_that_never_ends_is_ended_by_the_guard(short_dir: Path) -> None:
    guard = MemoryGuard(UnexplainedGrowth(LIMIT_BYTES))
    async with running_kernel(short_dir) as kernel, open_wire(kernel.connection) as innocent:
        hostile = kernel.connection.with_prefix(str(short_dir / "p"))
        for name in ("shell", "control", "stdin"):
            os.link(kernel.connection.socket_path(name), hostile.socket_path(name))
        command = [sys.executable, "-c", ENDLESS, hostile.socket_path("iopub")]
        async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert (await process.stdout.receive()).startswith(b"bound")
            await innocent.execute("1")
            before = resident_bytes()
            async with (
                open_wire(hostile, wire_id="victim") as wire,
                anyio.create_task_group() as tasks,
            ):
                with guard.watching(innocent.channels), guard.watching(wire.channels):
                    tasks.start_soon(guard.run)
                    await wire.until(
                        lambda: any(event.kind == "hostile" for event in wire.events), limit_s=20
                    )
                    assert resident_bytes() - before < 2 * LIMIT_BYTES
                    tasks.cancel_scope.cancel()
            assert not any(event.kind == "hostile" for event in innocent.events)
            process.kill()


def test_growth_that_messages_explain_is_no_alarm() -> None:
    growth = UnexplainedGrowth(100)
    assert growth.observe(1000, 0, 0.0) == 0
    assert growth.observe(1400, 100, 1.0) == 0


@pytest.mark.parametrize(("now", "expected"), [(1.0, 200), (700.0, 0)])
def test_growth_counts_within_its_window(now: float, expected: int) -> None:
    growth = UnexplainedGrowth(100, 600.0)
    growth.observe(1000, 0, 0.0)
    assert growth.observe(1200, 0, now) == expected


def test_memory_that_comes_back_lowers_the_baseline() -> None:
    growth = UnexplainedGrowth(100)
    growth.observe(1000, 0, 0.0)
    growth.observe(500, 0, 1.0)
    assert growth.observe(700, 0, 2.0) == 200


def test_growth_is_counted_anew_after_it_was_dealt_with() -> None:
    growth = UnexplainedGrowth(100)
    growth.observe(1000, 0, 0.0)
    growth.forget()
    assert growth.observe(1200, 0, 1.0) == 0
