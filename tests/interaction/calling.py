"""Calling a tool as a client does, within a bound."""

from __future__ import annotations

import anyio
from mcp import Client
from mcp_types import CallToolResult
from tests.interaction.reading import status

HANG_GUARD_S = 90.0
"""Bounds a test that hangs; no statement about speed."""


async def run(client: Client, code: str, **arguments: object) -> CallToolResult:
    with anyio.fail_after(HANG_GUARD_S):
        found = await client.call_tool("sage_run", {"code": code, **arguments})
    assert isinstance(found, CallToolResult)
    return found


async def run_on(client: Client, code: str) -> None:
    """Run the first cell of the session ``default``; returns once it has begun."""
    found = await run(client, code, wait_s=0)
    while status(found) != "running":
        found = await call(client, "sage_wait", session="default", cell=1, wait_s=0)


async def call(client: Client, tool: str, **arguments: object) -> CallToolResult:
    with anyio.fail_after(HANG_GUARD_S):
        found = await client.call_tool(tool, arguments)
    assert isinstance(found, CallToolResult)
    return found
