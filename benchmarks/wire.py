"""Compares the broker's wire layer with jupyter_client's own client on one kernel.

Usage: ``python benchmarks/wire.py [cells]``. Both run the same cell in turns, so that the machine's
other load hits both. Prints medians in milliseconds and the ratio.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
from jupyter_client.asynchronous.client import AsyncKernelClient

from sagebroker.kernel.connection import SOCKET_NAMES, ConnectionInfo
from sagebroker.testing.wire_client import WireClient, open_wire

TURN = 20
"""Cells in a row by one client before the other's turn. The idle client queues the other's messages
and jupyter_client loses some beyond 1,000, so a turn must make fewer."""
CODES = {"1": "1", "print": "print('x' * 1000)", "10 displays": "for i in range(10): display(i)"}


async def _ours(wire: WireClient, code: str) -> float:
    start = time.perf_counter()
    ended = await wire.execute(code)
    assert ended.status == "ok"
    return time.perf_counter() - start


async def _theirs(client: AsyncKernelClient, code: str) -> float:
    start = time.perf_counter()
    reply = await client.execute_interactive(
        code, store_history=False, allow_stdin=False, output_hook=lambda _: None, timeout=30
    )
    assert reply["content"]["status"] == "ok"
    return time.perf_counter() - start


async def _compare(connection: ConnectionInfo, file: Path, cells: int) -> None:
    with anyio.fail_after(30):
        for name in SOCKET_NAMES:
            while not await anyio.Path(connection.socket_path(name)).is_socket():  # noqa: ASYNC110
                await anyio.sleep(0.02)
    client = AsyncKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        async with open_wire(connection) as wire:
            await wire.until(lambda: len(wire.events) == 4)
            for label, code in CODES.items():
                ours: list[float] = []
                theirs: list[float] = []
                while len(ours) < cells:
                    theirs += [await _theirs(client, code) for _ in range(TURN)]
                    ours += [await _ours(wire, code) for _ in range(TURN)]
                a, b = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
                print(
                    f"{label:>14}: ours {a:6.2f} ms, jupyter_client {b:6.2f} ms, ratio {a / b:.2f}"
                )
    finally:
        client.stop_channels()


def main() -> None:
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as name:
        connection = ConnectionInfo.new(f"{name}/k")
        file = Path(name) / "connection.json"
        connection.write(file, os.geteuid(), os.getegid())
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(file)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            [*command, "--HistoryManager.enabled=False"], stderr=quiet, stdout=quiet
        ) as kernel:
            try:
                anyio.run(_compare, connection, file, cells)
            finally:
                kernel.kill()


if __name__ == "__main__":
    main()
