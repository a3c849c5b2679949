"""`Updates`: tells clients that a resource they have subscribed to has changed, in both protocol eras.

2026-07-28 has streams of its own for that (``subscriptions/listen``), fed by a bus; before, a client
names resources (``resources/subscribe``) and is told on its connection. Every user's resources have the
same addresses, so that both kinds of subscription belong to the user who made them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio
from mcp.server.subscriptions import ResourceUpdated, ServerEvent, SubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST, EmptyResult, SubscribeRequestParams, UnsubscribeRequestParams

from sagebroker.server.callers import current_user
from sagebroker.server.uris import SESSIONS, cell_uris, session_uris

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mcp.server import MCPServer
    from mcp.server.context import ServerRequestContext
    from mcp.server.session import ServerSession

INTERVAL_S: Final = 0.5
"""Between two notifications about one resource: a cell that prints changes all the time."""
SEND_LIMIT_S: Final = 5.0
"""For one notification to leave; whoever does not take it in that time is not told any more."""
MAX_SUBSCRIPTIONS: Final = 1000
"""Resources that one connection may watch."""


class UserBus(SubscriptionBus):
    """The SDK's bus with a user for each listener: the one whose request subscribes."""

    def __init__(self) -> None:
        self._listeners: dict[object, tuple[str, Callable[[ServerEvent], None]]] = {}

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register a listener for what concerns the current user."""
        token = object()
        self._listeners[token] = (current_user(), listener)

        def unsubscribe() -> None:
            self._listeners.pop(token, None)

        return unsubscribe

    async def publish(self, event: ServerEvent) -> None:
        """Deliver what concerns the current user."""
        self.tell(current_user(), event)

    def tell(self, user: str, event: ServerEvent) -> None:
        """Deliver ``event`` to the streams of one user."""
        for owner, listener in list(self._listeners.values()):
            if owner == user:
                listener(event)


class Updates:
    """See the module. `run` in a task; `changed` is called from the same event loop."""

    def __init__(self) -> None:
        self.bus = UserBus()
        self._subscribed: dict[tuple[str, str], dict[int, ServerSession]] = {}
        """User and address to the connections that watch it."""
        self._due: dict[tuple[str, str], None] = {}
        self._wake = anyio.Event()

    def add_to(self, server: MCPServer[Any]) -> None:
        """Register the requests of the handshake era, for which the SDK's server has no decorator."""
        lowlevel = server._lowlevel_server  # noqa: SLF001 - as the SDK's own example does
        lowlevel.add_request_handler("resources/subscribe", SubscribeRequestParams, self._subscribe)
        lowlevel.add_request_handler(
            "resources/unsubscribe", UnsubscribeRequestParams, self._unsubscribe
        )

    def changed(self, user: str, session: str, cells: Collection[int]) -> None:
        """A user's session has changed, and in it these cells."""
        uris = [SESSIONS, *session_uris(session)]
        for number in cells:
            uris += cell_uris(session, number)
        self._due.update(dict.fromkeys((user, uri) for uri in uris))
        self._wake.set()

    async def run(self) -> None:
        """Tell what has changed, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            due, self._due = self._due, {}
            async with anyio.create_task_group() as tg:
                for user, uri in due:
                    self.bus.tell(user, ResourceUpdated(uri=uri))
                    for connection, session in list(self._subscribed.get((user, uri), {}).items()):
                        tg.start_soon(self._send, (user, uri), connection, session)
            await anyio.sleep(INTERVAL_S)

    async def _send(self, key: tuple[str, str], connection: int, session: ServerSession) -> None:
        with anyio.move_on_after(SEND_LIMIT_S) as limit:
            try:
                await session.send_resource_updated(key[1])
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, MCPError):
                self._forget(key, connection)
        if limit.cancelled_caught:
            self._forget(key, connection)

    async def _subscribe(
        self, ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams
    ) -> EmptyResult:
        connection = ctx.session._connection  # noqa: SLF001 - it outlives the request, unlike the session
        key, number = (current_user(), str(params.uri)), id(connection)
        watched = sum(number in sessions for sessions in self._subscribed.values())
        if watched >= MAX_SUBSCRIPTIONS:
            raise MCPError(INVALID_REQUEST, f"{watched} resources are watched, as many as may be.")
        self._subscribed.setdefault(key, {})[number] = ctx.session
        connection.exit_stack.callback(self._forget, key, number)
        return EmptyResult()

    async def _unsubscribe(
        self, ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        self._forget((current_user(), str(params.uri)), id(ctx.session._connection))  # noqa: SLF001
        return EmptyResult()

    def _forget(self, key: tuple[str, str], connection: int) -> None:
        sessions = self._subscribed.get(key, {})
        sessions.pop(connection, None)
        if not sessions:
            self._subscribed.pop(key, None)
