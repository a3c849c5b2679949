"""An MCP client by hand, for tests that must own the server's process."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

HANG_GUARD_S = 60.0
CLIENT_PATIENCE_S = 12.0
"""Three times what the MCP SDK's own client waits from closing stdin to SIGKILL: machines are noisy, and what
is killed then is taken over by the next server."""


class RawClient:
    """JSON-RPC lines to a server process, so that the test owns the process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)
        self._ids = 0

    async def send(self, method: str, params: dict[str, Any], *, is_request: bool = True) -> int:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if is_request:
            self._ids += 1
            message["id"] = self._ids
        await self._stdin.send(json.dumps(message).encode() + b"\n")
        return self._ids

    async def answer(self, number: int) -> Any:
        while True:
            message = json.loads(await self._lines.receive_until(b"\n", 2**24))
            if message.get("id") == number:
                return message["result"]

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        return await self.answer(await self.send(method, params))

    async def run(self, code: str) -> str:
        result = await self.request("tools/call", {"name": "sage_run", "arguments": {"code": code}})
        return str(result["content"][-1]["text"])

    async def close_stdin(self) -> None:
        await self._stdin.aclose()


@asynccontextmanager
async def raw_server(
    command: Sequence[str], env: Mapping[str, str] | None = None
) -> AsyncIterator[RawClient]:
    """A server process with the handshake done; killed at the end if it still runs."""
    process = await anyio.open_process(list(command), env=env, stderr=sys.stderr)
    try:
        with anyio.fail_after(HANG_GUARD_S):
            client = RawClient(process)
            await client.request(
                "initialize",
                {
                    "protocolVersion": "2025-11-25",
                    "capabilities": {},
                    "clientInfo": {"name": "test", "version": "1"},
                },
            )
            await client.send("notifications/initialized", {}, is_request=False)
            yield client
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
