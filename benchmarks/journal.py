"""What the journal costs: the same cells on a kernel that keeps one and on one that keeps none.

Usage: ``python benchmarks/journal.py [rounds]``. Both take turns, so that the machine's other load hits
both. Prints medians over the rounds: the time until a cell has ended, and the processor's time that
the kernel took for it, which the other load hardly touches; and the ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio

from sagebroker.kernel.connection import SOCKET_NAMES, ConnectionInfo
from sagebroker.kernel.journal import JOURNAL_LIMIT_BYTES
from sagebroker.testing import local_kernel
from sagebroker.testing.wire_client import WireClient, open_wire

CELLS = {
    "1000 cells of 1": ("1", 1000),
    "20,000 displays": ("for i in range(20_000): display(i)", 1),
    "20 MB printed": ("for i in range(320): print('x' * 65_000, flush=True)", 1),
}
START_LIMIT_S = 30.0
CELL_LIMIT_S = 120.0
QUIET_S = 1.0
"""Pause before a turn, in which what the last one left over comes to rest."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def _kernel(folder: Path, *, journal: bool) -> Iterator[tuple[int, ConnectionInfo]]:
    """A kernel of ours with or without a journal: its process and connection."""
    folder.mkdir()
    connection = ConnectionInfo.new(str(folder / "k"))
    connection.write(folder / "connection.json", os.geteuid(), os.getegid())
    configuration = folder / "keeper.json"
    configuration.write_text(
        json.dumps(
            {
                "connection_file": str(folder / "connection.json"),
                "journal_file": str(folder / "journal") if journal else "",
                "stream_limit_bytes": 2 * JOURNAL_LIMIT_BYTES,
            }
        )
    )
    command = [sys.executable, "-I", "-B", local_kernel.__file__, str(configuration), "1"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:
            yield process.pid, connection
        finally:
            process.kill()


@asynccontextmanager
async def _client(connection: ConnectionInfo) -> AsyncIterator[WireClient]:
    with anyio.fail_after(START_LIMIT_S):
        for name in SOCKET_NAMES:
            while not await anyio.Path(connection.socket_path(name)).is_socket():  # noqa: ASYNC110
                await anyio.sleep(0.02)
    async with open_wire(connection) as wire:
        await wire.until(lambda: len(wire.events) == 4)
        await wire.execute("1", limit_s=START_LIMIT_S)
        yield wire


def _processor_s(pid: int) -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


async def _turn(wire: WireClient, pid: int, code: str, times: int) -> tuple[float, float]:
    """Seconds, and seconds of the kernel's processor time, of a cell run so many times."""
    await anyio.sleep(QUIET_S)
    processor, start = _processor_s(pid), time.perf_counter()
    for _ in range(times):
        ended = await wire.execute(code, limit_s=CELL_LIMIT_S, store_history=True)
        assert ended.status == "ok"
        assert not ended.idle_lost
    return time.perf_counter() - start, _processor_s(pid) - processor


async def _compare(folder: Path, rounds: int) -> None:
    with (
        _kernel(folder / "with", journal=True) as (keeping, keeps),
        _kernel(folder / "without", journal=False) as (plain, is_plain),
    ):
        async with _client(keeps) as ours, _client(is_plain) as theirs:
            for label, (code, times) in CELLS.items():
                found: dict[int, list[tuple[float, float]]] = {keeping: [], plain: []}
                for _ in range(rounds):
                    found[keeping].append(await _turn(ours, keeping, code, times))
                    found[plain].append(await _turn(theirs, plain, code, times))
                for at, what in enumerate(("time", "processor")):
                    a, b = (statistics.median(turn[at] for turn in found[p]) for p in found)
                    print(
                        f"{label:>15}, {what:>9}: with {a * 1e3:7.0f} ms, without {b * 1e3:7.0f} ms,"
                        f" ratio {a / b:.3f}"
                    )


def main() -> None:
    """Print the figures."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as name:
        anyio.run(_compare, Path(name), rounds)


if __name__ == "__main__":
    main()
