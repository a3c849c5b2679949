"""Telling connections of the handshake era what has changed: slow ones, and ones that come and go."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp_types import SubscribeRequestParams, UnsubscribeRequestParams

from sagebroker.server.updates import MAX_SUBSCRIPTIONS, Updates

CELLS = "sage://sessions/a/cells"


class Connection:
    """What of the SDK's connection and session is used."""

    def __init__(self, *, is_stuck: bool = False) -> None:
        self.exit_stack = ExitStack()
        self.told: list[str] = []
        self.more = anyio.Event()
        self._connection = self
        self._is_stuck = is_stuck

    async def send_resource_updated(self, uri: str) -> None:
        if self._is_stuck:
            await anyio.sleep_forever()
        self.told.append(uri)
        self.more.set()

    @property
    def context(self) -> ServerRequestContext[Any, Any]:
        return cast("ServerRequestContext[Any, Any]", SimpleNamespace(session=self))


async def subscribe(updates: Updates, connection: Connection, uri: str) -> None:
    await updates._subscribe(connection.context, SubscribeRequestParams(uri=uri))


async def unsubscribe(updates: Updates, connection: Connection, uri: str) -> None:
    await updates._unsubscribe(connection.context, UnsubscribeRequestParams(uri=uri))


async def test_one_who_takes_nothing_delays_nobody() -> None:
    updates, stuck, healthy = Updates(), Connection(is_stuck=True), Connection()
    await subscribe(updates, stuck, CELLS)
    await subscribe(updates, healthy, CELLS)
    async with anyio.create_task_group() as tg:
        tg.start_soon(updates.run)
        for _ in range(3):
            healthy.more = anyio.Event()
            updates.changed("", "a", ())
            # Less than the time in which a stuck one is given up.
            with anyio.fail_after(2):
                await healthy.more.wait()
        tg.cancel_scope.cancel()
    assert healthy.told == [CELLS] * 3


async def test_what_a_connection_leaves_does_not_grow_with_its_subscriptions() -> None:
    updates, connection = Updates(), Connection()
    for number in range(500):
        await subscribe(updates, connection, f"{CELLS}/{number}")
        await unsubscribe(updates, connection, f"{CELLS}/{number}")
    callbacks: Any = connection.exit_stack._exit_callbacks  # type: ignore[attr-defined]
    assert len(callbacks) == 1
    connection.exit_stack.close()
    assert updates._watchers == {}


async def test_at_the_limit_what_is_watched_may_be_watched_again() -> None:
    updates, connection = Updates(), Connection()
    for number in range(MAX_SUBSCRIPTIONS):
        await subscribe(updates, connection, f"{CELLS}/{number}")
    await subscribe(updates, connection, f"{CELLS}/0")
    with pytest.raises(MCPError, match="unsubscribe"):
        await subscribe(updates, connection, CELLS)
