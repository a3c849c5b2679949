"""``sagebroker run`` from its first signal to its end, on kernels of this machine."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from tests.interaction.raw_client import HANG_GUARD_S

from sagebroker.broker import Broker
from sagebroker.cli.run import PRIVATE_SESSION, compute
from sagebroker.config import BrokerConfig
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.model import CellStatus
from sagebroker.testing.local_runtime import LocalRuntime

LOCAL_RUN = Path(__file__).with_name("local_run.py")


class Running:
    """A process of `LOCAL_RUN`."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.output = BufferedByteReceiveStream(process.stdout)
        self._complaints = BufferedByteReceiveStream(process.stderr)

    def send(self, name: str) -> None:
        os.kill(self.process.pid, signal.Signals[name])

    async def wait_for_log(self, words: str) -> None:
        while words.encode() not in await self._complaints.receive_until(b"\n", 2**20):
            pass

    async def end(self) -> tuple[int, str]:
        """The exit code, and what else was said."""
        said = b""
        try:
            while True:
                said += await self._complaints.receive()
        except anyio.EndOfStream:
            return await self.process.wait(), said.decode()


@asynccontextmanager
async def running(folder: Path, code: str) -> AsyncIterator[Running]:
    process = await anyio.open_process([sys.executable, str(LOCAL_RUN), str(folder), code])
    try:
        with anyio.fail_after(HANG_GUARD_S):
            yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


def left_in(folder: Path) -> list[str]:
    places = (folder / "state" / "sessions", folder / "run")
    return [path.name for place in places if place.exists() for path in place.iterdir()]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
async def test_a_signal_while_the_kernel_starts_leaves_nothing_behind(
    short_dir: Path, name: str
) -> None:
    async with running(short_dir, "1") as run:
        await run.wait_for_log("runs session")
        run.send(name)
        _, said = await run.end()
    assert "left before the end" in said
    assert "Traceback" not in said
    assert left_in(short_dir) == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
async def test_a_signal_while_the_cell_runs_stops_it_and_shows_what_it_printed(
    short_dir: Path, name: str
) -> None:
    async with running(short_dir, "print('go', flush=True)\nwhile True: pass") as run:
        assert await run.output.receive_until(b"\n", 99) == b"go"
        run.send(name)
        _, said = await run.end()
    assert "cell ended: interrupted" in said
    assert left_in(short_dir) == []


async def test_a_second_signal_ends_the_command_whatever_the_cell_does(short_dir: Path) -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('no', flush=True))\n"
        "print('go', flush=True)\nwhile True: pass"
    )
    async with running(short_dir, code) as run:
        assert await run.output.receive_until(b"\n", 99) == b"go"
        run.send("SIGINT")
        assert await run.output.receive_until(b"\n", 99) == b"no"
        run.send("SIGINT")
        _, said = await run.end()
    assert "left before the end" in said
    assert "Traceback" not in said
    assert left_in(short_dir) == []


async def test_output_that_nobody_reads_any_more_stops_the_cell_without_a_word(
    short_dir: Path,
) -> None:
    code = "import time\nwhile True:\n    print('x' * 9999, flush=True)\n    time.sleep(0.05)"
    command = shlex.join([sys.executable, str(LOCAL_RUN), str(short_dir), code])
    with anyio.fail_after(HANG_GUARD_S):
        piped = f"{command} | head -c 9"
        done = await anyio.run_process(["bash", "-o", "pipefail", "-c", piped], check=False)
    said = done.stderr.decode()
    assert done.stdout == b"x" * 9
    assert done.returncode == 1
    assert "Error" not in said
    assert "Traceback" not in said
    assert left_in(short_dir) == []


async def test_a_private_session_is_not_the_kept_one_that_bears_its_name(
    config: BrokerConfig,
) -> None:
    async def status(code: str, name: str) -> CellStatus:
        with anyio.fail_after(HANG_GUARD_S):
            cell = await compute(config, code, name, 60.0, quiet=True, runtime=runtime)
        assert cell is not None
        return cell.status

    async with LocalRuntime(KernelSpec.load("sagemath").broker.image) as runtime:
        assert await status("secret = 1", PRIVATE_SESSION) is CellStatus.OK
        assert await status("secret", "") is CellStatus.ERROR
        assert await status("secret", PRIVATE_SESSION) is CellStatus.OK
        async with Broker(config, runtime) as broker:
            await broker.open_session(PRIVATE_SESSION)
            await broker.close_session(PRIVATE_SESSION)


async def test_what_a_command_has_told_of_its_cell_is_not_told_to_the_next_one(
    config: BrokerConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    async with LocalRuntime(KernelSpec.load("sagemath").broker.image) as runtime:
        with anyio.fail_after(HANG_GUARD_S):
            died = await compute(config, "import os\nos._exit(3)", "w", 60.0, runtime=runtime)
            assert died is not None
            assert "variables are lost" in died.notices[-1]
            await compute(config, "1", "w", 60.0, runtime=runtime)
        assert "variables are lost" not in capsys.readouterr().err
        async with Broker(config, runtime) as broker:
            await broker.open_session("w")
            await broker.close_session("w")
