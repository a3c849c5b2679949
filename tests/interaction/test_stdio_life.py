"""The beginning and the end of a stdio server: quick to answer, nothing left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from tests.interaction.conftest import LOCAL_SERVER
from tests.interaction.raw_client import CLIENT_PATIENCE_S, HANG_GUARD_S, raw_server
from tests.interaction.reading import is_error, text_of


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie, whose parent only has not looked yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


async def wait_gone(pid: int) -> None:
    with anyio.fail_after(HANG_GUARD_S):
        while is_running(pid):
            await anyio.sleep(0.02)


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("end", ["eof", "SIGTERM", "SIGINT", "SIGHUP"])
async def test_the_server_ends_in_time_and_the_next_one_has_its_variables(
    short_dir: Path, end: str, is_busy: bool
) -> None:
    async with raw_server([sys.executable, str(LOCAL_SERVER), str(short_dir)]) as client:
        kernel_pid = int(await client.run("import os\nos.getpid()"))
        assert is_running(kernel_pid)
        await client.run("kept = 6 * 7\nkept")
        if is_busy:
            await client.send(
                "tools/call",
                {"name": "sage_run", "arguments": {"code": "while True: pass"}},
            )
        if end == "eof":
            await client.close_stdin()
        else:
            os.kill(client.process.pid, signal.Signals[end])
        with anyio.fail_after(CLIENT_PATIENCE_S):
            code = await client.process.wait()
        await wait_gone(kernel_pid)
    assert code == (130 if end == "SIGINT" else 0)
    assert list((short_dir / "run").iterdir()) == []
    async with raw_server([sys.executable, str(LOCAL_SERVER), str(short_dir)]) as client:
        assert await client.run("kept") == "42"
        await client.request(
            "tools/call", {"name": "sage_close", "arguments": {"session": "default"}}
        )
        assert list((short_dir / "state" / "sessions").iterdir()) == []


async def test_a_server_without_an_engine_answers_and_says_what_to_do(short_dir: Path) -> None:
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "sagebroker", "mcp"],
        env={
            "SAGEBROKER_ENGINE_URL": f"unix://{short_dir}/no-engine.sock",
            "SAGEBROKER_STATE_DIR": str(short_dir / "state"),
            "SAGEBROKER_RUNTIME_DIR": str(short_dir / "run"),
        },
    )
    with anyio.fail_after(HANG_GUARD_S):
        async with Client(parameters, mode="auto") as client:
            assert len((await client.list_tools()).tools) == 12
            result = await client.call_tool("sage_run", {"code": "1"})
            assert is_error(result)
            assert "engine" in text_of(result).lower()
            assert not is_error(await client.call_tool("sage_sessions", {}))


def is_caught(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    [caught] = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


async def wait_until_caught(pid: int, number: signal.Signals) -> None:
    """Until the process has a handler of its own for the signal."""
    with anyio.fail_after(HANG_GUARD_S):
        while not is_caught(pid, number):
            await anyio.sleep(0.001)


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.01, 0.05])
@pytest.mark.parametrize("is_closing", [False, True], ids=["opening", "closing"])
async def test_a_signal_while_the_server_starts_or_ends_is_heeded_without_delay(
    short_dir: Path, is_closing: bool, delay_s: float
) -> None:
    command = [sys.executable, str(LOCAL_SERVER), str(short_dir)]
    process = await anyio.open_process(command)
    try:
        await wait_until_caught(process.pid, signal.SIGTERM)
        if is_closing:
            assert process.stdin is not None
            await process.stdin.aclose()
        # Sweeps the moment; whichever it is, the server must end.
        await anyio.sleep(delay_s)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(CLIENT_PATIENCE_S):
            code = await process.wait()
        assert process.stderr is not None
        said = b"".join([chunk async for chunk in process.stderr])
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
    # Behind the server's end Python's own handler is back.
    assert code in ((0, -signal.SIGTERM) if is_closing else (0,))
    assert b"did not close" not in said
    assert b"Traceback" not in said


async def test_a_signal_in_the_very_moment_from_which_it_is_caught_ends_the_server(
    short_dir: Path,
) -> None:
    script = """
import asyncio, os, signal, sys
from pathlib import Path

import anyio

from sagebroker.config import BrokerConfig
from sagebroker.server.stdio import serve_stdio

async def main(folder):
    loop = asyncio.get_running_loop()
    install = loop.add_signal_handler

    def install_and_send(number, *rest):
        install(number, *rest)
        if number == signal.SIGTERM:
            os.kill(os.getpid(), number)

    loop.add_signal_handler = install_and_send
    await serve_stdio(BrokerConfig(state_dir=folder / "state", runtime_dir=folder / "run"))

anyio.run(main, Path(sys.argv[1]))
"""
    process = await anyio.open_process([sys.executable, "-c", script, str(short_dir)])
    try:
        with anyio.fail_after(CLIENT_PATIENCE_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
