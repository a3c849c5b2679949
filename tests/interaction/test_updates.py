"""Resources that tell when they change, in both protocol eras, to whom they belong and to nobody else."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from mcp import Client, MCPDeprecationWarning
from mcp.server.subscriptions import ResourceUpdated
from mcp_types import ResourceUpdatedNotification
from tests.interaction.calling import call, run
from tests.interaction.conftest import local_serve, local_server
from tests.serving import Served, make_token, serving

GUARD_S = 60.0
CELLS = "sage://sessions/default/cells"
CELL = f"{CELLS}/1"


class Heard:
    """The addresses that a client was told of."""

    def __init__(self) -> None:
        self.uris: list[str] = []
        self._more = anyio.Event()

    async def take(self, message: object) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            self.add(str(message.params.uri))

    def add(self, uri: str) -> None:
        self.uris.append(uri)
        self._more.set()
        self._more = anyio.Event()

    async def has(self, uri: str) -> None:
        with anyio.fail_after(GUARD_S):
            while uri not in self.uris:
                await self._more.wait()


@asynccontextmanager
async def watching(client: Client, heard: Heard, *uris: str) -> AsyncIterator[None]:
    """Subscribe as the client's era does."""
    if client.protocol_version >= "2026":
        async with (
            anyio.create_task_group() as tg,
            client.listen(resource_subscriptions=uris) as events,
        ):

            async def listen() -> None:
                async for event in events:
                    assert isinstance(event, ResourceUpdated)
                    heard.add(str(event.uri))

            tg.start_soon(listen)
            yield
            tg.cancel_scope.cancel()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)
        for uri in uris:
            await client.subscribe_resource(uri)
        yield
        for uri in uris:
            await client.unsubscribe_resource(uri)


@asynccontextmanager
async def connected(transport: str, era: str, folder: Path, heard: Heard) -> AsyncIterator[Client]:
    if transport == "stdio":
        async with Client(local_server(folder), mode=era, message_handler=heard.take) as client:
            yield client
        return
    token = make_token(folder / "state", "alice")
    async with (
        serving(local_serve(folder), folder / "state", dict(os.environ)) as served,
        served.client(token, mode=era, message_handler=heard.take) as client,
    ):
        yield client


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_cell_is_told_of_while_it_runs_and_at_its_end(
    transport: str, era: str, short_dir: Path
) -> None:
    heard = Heard()
    async with connected(transport, era, short_dir, heard) as client:
        async with watching(client, heard, "sage://sessions", CELLS, CELL, f"{CELL}/stdout"):
            code = "import time\nfor k in range(20):\n    print(k, flush=True); time.sleep(0.1)"
            await run(client, code)
            for uri in ("sage://sessions", CELLS, CELL, f"{CELL}/stdout"):
                await heard.has(uri)
            await call(client, "sage_close", session="default")
        # A cell that prints all the time is not told of all the time.
        assert 1 <= heard.uris.count(CELL) <= 10
        before = len(heard.uris)
        await run(client, "1")
        await call(client, "sage_sessions")
        assert len(heard.uris) == before


async def test_nobody_hears_of_another_users_cells(short_dir: Path, era: str) -> None:
    mine, theirs = Heard(), Heard()
    make_token(short_dir / "state", "nobody")
    async with serving(local_serve(short_dir), short_dir / "state") as served:
        alice, bob = user(served, "alice", era, mine), user(served, "bob", era, theirs)
        async with alice as a, bob as b, watching(a, mine, CELL), watching(b, theirs, CELL):
            await run(a, "1")
            await mine.has(CELL)
            assert theirs.uris == []
            await run(b, "1")
            await theirs.has(CELL)


def user(served: Served, name: str, era: str, heard: Heard) -> AbstractAsyncContextManager[Client]:
    return served.client(served.token(name), mode=era, message_handler=heard.take)
