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


Key = tuple[str, str]
"""A user, and an address of his."""


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


class _Watcher:
    """A connection of the handshake era, and what it watches."""

    def __init__(self, session: ServerSession) -> None:
        self.session = session
        self.watched: set[Key] = set()
        self.due: dict[Key, None] = {}
        """What it has not been told yet; each once, however often it has changed."""
        self.is_served = False


class Updates:
    """See the module. `run` in a task; `changed` is called from the same event loop."""

    def __init__(self) -> None:
        self.bus = UserBus()
        self._watchers: dict[int, _Watcher] = {}
        self._due: dict[Key, None] = {}
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
        """Tell what has changed, until cancelled. Nobody waits for whoever takes it slowly."""
        async with anyio.create_task_group() as tg:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                due, self._due = self._due, {}
                for user, uri in due:
                    self.bus.tell(user, ResourceUpdated(uri=uri))
                for number, watcher in self._watchers.items():
                    watcher.due.update(dict.fromkeys(key for key in due if key in watcher.watched))
                    if watcher.due and not watcher.is_served:
                        watcher.is_served = True
                        tg.start_soon(self._serve, number, watcher)
                await anyio.sleep(INTERVAL_S)

    async def _serve(self, number: int, watcher: _Watcher) -> None:
        """Tell a connection what is due; one that does not take it is told nothing any more."""
        try:
            while watcher.due:
                _, uri = key = next(iter(watcher.due))
                del watcher.due[key]
                with anyio.fail_after(SEND_LIMIT_S):
                    await watcher.session.send_resource_updated(uri)
        except (TimeoutError, anyio.BrokenResourceError, anyio.ClosedResourceError, MCPError):
            self._watchers.pop(number, None)
        finally:
            watcher.is_served = False

    async def _subscribe(
        self, ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams
    ) -> EmptyResult:
        connection = ctx.session._connection  # noqa: SLF001 - it outlives the request, unlike the session
        number, key = id(connection), (current_user(), str(params.uri))
        watcher = self._watchers.get(number)
        if watcher is None:
            watcher = self._watchers[number] = _Watcher(ctx.session)
            connection.exit_stack.callback(self._watchers.pop, number, None)
        if key not in watcher.watched and len(watcher.watched) >= MAX_SUBSCRIPTIONS:
            raise MCPError(
                INVALID_REQUEST,
                f"{MAX_SUBSCRIPTIONS} resources are watched, as many as may be; unsubscribe from one.",
            )
        watcher.watched.add(key)
        return EmptyResult()

    async def _unsubscribe(
        self, ctx: ServerRequestContext[Any, Any], params: UnsubscribeRequestParams
    ) -> EmptyResult:
        watcher = self._watchers.get(id(ctx.session._connection))  # noqa: SLF001
        if watcher is not None:
            # It stays without any: each new one would leave a word with its connection's end.
            watcher.watched.discard((current_user(), str(params.uri)))
        return EmptyResult()
