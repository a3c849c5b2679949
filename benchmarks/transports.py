"""What a transport costs: ``sage_run("1")`` over each, against the same cell without any, and tools/list's size.

Usage: ``PYTHONPATH=. python benchmarks/transports.py [cells]``. Needs a container engine and the Sage image.
All clients use kernels of one server, in turns, so that the machine's other load hits all. The baseline is
the JSON API's cell over the unix socket, which waits in the same way. Prints medians in milliseconds, and ratios.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import httpx2
from mcp import Client, StdioServerParameters
from tests.serving import REAL_SERVE, make_token, real_server_env, serving

IMAGE = os.environ.get("SAGEBROKER_TEST_IMAGE", "sagebroker/sagemath:10.8.13")
WARM_UP = 5
LIMITS = {
    "SAGEBROKER_USERS__CALLS_PER_MINUTE": "1000000",
    "SAGEBROKER_USERS__BURST_CALLS": "1000000",
}
Cell = Callable[[], Awaitable[object]]


def over_mcp(client: Client) -> Cell:
    async def run() -> None:
        answer = await client.call_tool("sage_run", {"code": "1"})
        assert not answer.is_error

    return run


def over_api(http: httpx2.AsyncClient) -> Cell:
    async def run() -> None:
        body = {"code": "1", "wait_s": 60}
        answer = await http.post("http://localhost/api/sessions/default/cells", json=body)
        assert answer.json()["status"] == "ok"

    return run


async def main(cells: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sb-bench-", dir="/tmp") as name:
        folder = Path(name)
        token = make_token(folder / "state", "alice")
        env = real_server_env(folder, IMAGE, **LIMITS)
        own = real_server_env(folder / "own", IMAGE)
        command = [sys.executable, "-m", "sagebroker", "mcp"]
        async with (
            serving(REAL_SERVE, folder / "state", env) as served,
            AsyncExitStack() as stack,
        ):
            uds = httpx2.AsyncHTTPTransport(uds=str(served.http_socket))
            http = await stack.enter_async_context(httpx2.AsyncClient(transport=uds, timeout=60))
            await http.put("http://localhost/api/sessions/default")
            ways: dict[str, Cell] = {"API, unix socket (baseline)": over_api(http)}
            for era, mode in (("2026-07-28", "auto"), ("2025-11-25", "legacy")):
                for transport, where in (
                    ("stdio, own broker", own),
                    ("stdio, joins a server", env),
                ):
                    server = StdioServerParameters(command=command[0], args=command[1:], env=where)
                    client = await stack.enter_async_context(Client(server, mode=mode))
                    ways[f"{transport}, {era}"] = over_mcp(client)
                client = await stack.enter_async_context(served.client(token, mode=mode))
                ways[f"HTTP, {era}"] = over_mcp(client)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(cells + WARM_UP):
                for way, run in ways.items():
                    began = time.perf_counter()
                    await run()
                    if number >= WARM_UP:
                        times[way].append(time.perf_counter() - began)
            listed = (await client.list_tools()).tools
            await client.call_tool("sage_close", {"session": "default"})
        sent = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed]
        print(f"tools/list: {len(listed)} tools, {len(json.dumps(sent))} bytes")
        base = statistics.median(times["API, unix socket (baseline)"])
        for way, found in times.items():
            middle = statistics.median(found)
            worst = sorted(found)[int(len(found) * 0.95)]
            print(
                f"{way:34s} p50 {middle * 1000:6.1f} ms  p95 {worst * 1000:6.1f} ms  "
                f"ratio {middle / base:.2f}"
            )


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 100)
