"""What a session's endpoint costs a Jupyter client, against the kernel's own sockets.

    .venv/bin/python benchmarks/endpoint.py [ROUNDS]

Both ways run in turn, on one kernel (a plain ipykernel without a container): the cell ``1``, from its sending to
its reply and ``idle``. Then 5,000 displays of one cell are counted.
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
import anyio.to_thread
from jupyter_client.asynchronous.client import AsyncKernelClient

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.kernel.folders import KernelFolder
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.session.connecting import CONNECTION_FILE
from sagebroker.store.folders import StateFolder
from sagebroker.testing.local_runtime import LocalRuntime

DISPLAYS = 5_000
WARM_UP = 20


async def cell(client: AsyncKernelClient, code: str) -> list[str]:
    """Run a cell to its reply and ``idle``; the types of what iopub said."""
    msg_id = client.execute(code)
    said = []
    while True:
        message = await client.iopub_channel.get_msg()
        if message["parent_header"].get("msg_id") == msg_id:
            said.append(message["msg_type"])
            if message["content"].get("execution_state") == "idle":
                break
    while (await client.shell_channel.get_msg())["parent_header"].get("msg_id") != msg_id:
        pass
    return said


async def connected(path: Path) -> AsyncKernelClient:
    client = AsyncKernelClient()
    client.load_connection_file(str(path))
    client.start_channels()
    await client.wait_for_ready(timeout=30)
    return client


async def serve(folder: Path) -> None:
    """A broker with one session; prints the connection files of its kernel and of its endpoint."""
    config = BrokerConfig(state_dir=folder / "state", runtime_dir=folder / "run")
    image = KernelSpec.load("sagemath").broker.image
    async with LocalRuntime(image) as runtime, Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        state = StateFolder(config.state_dir).folder(session.id)
        print(KernelFolder(config.runtime_dir, session.id).control / "local.json")
        print(state.path / CONNECTION_FILE, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
        await session.aclose()


async def measure(rounds: int, files: dict[str, Path]) -> None:
    clients = {name: await connected(path) for name, path in files.items()}
    times: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(WARM_UP + rounds):
        for name, client in clients.items():
            began = time.perf_counter()
            await cell(client, "1")
            if turn >= WARM_UP:
                times[name].append(1000 * (time.perf_counter() - began))
    for name, values in times.items():
        values.sort()
        p99 = values[int(0.99 * len(values))]
        print(f"{name:26} p50 {statistics.median(values):6.2f} ms   p99 {p99:6.2f} ms")
    direct, endpoint = (statistics.median(values) for values in times.values())
    print(f"difference {endpoint - direct:.2f} ms, ratio {endpoint / direct:.2f}")
    for name, client in clients.items():
        shown = (await cell(client, f"for n in range({DISPLAYS}): display(n)")).count(
            "display_data"
        )
        print(f"{name:26} {shown} of {DISPLAYS} displays")
        client.stop_channels()


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sb", dir="/tmp") as folder:
        command = [sys.executable, os.environ.get("PROF", __file__), "serve", folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as broker:
            assert broker.stdin is not None
            assert broker.stdout is not None
            own, endpoint = (Path(broker.stdout.readline().decode().strip()) for _ in range(2))
            anyio.run(measure, rounds, {"the kernel's own sockets": own, "the endpoint": endpoint})
            broker.stdin.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        anyio.run(serve, Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
