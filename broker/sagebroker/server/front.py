"""The HTTP front: what every request passes before anything looks at it.

Host and Origin are checked against the server's own names, so that no web page can reach it by a name
of its own (DNS rebinding) or from another origin. Bodies are bounded in size and in silence. When the
server ends, streams that are open are closed, after a moment for the answers that are due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import anyio
from mcp.server.transport_security import (
    RequestBodyLimitMiddleware,
    TransportSecurityMiddleware,
    TransportSecuritySettings,
)
from starlette.requests import Request
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from sagebroker.config import ServeConfig

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Asked for by address, by whatever watches over the server; they tell nothing of anybody."""

LAST_ANSWERS_S: Final = 1.0
"""Between the word that the server ends and the end of streams: calls that wait are answered with what
there is at once, and that takes a few milliseconds."""


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    return host in ("localhost", "::1") or host.startswith("127.")


def security(serve: ServeConfig) -> TransportSecuritySettings:
    """The hosts and origins that a server answers to."""
    names = [*LOOPBACK]
    if not is_loopback(serve.host) and serve.host not in ("0.0.0.0", "::"):
        names.append(f"[{serve.host}]" if ":" in serve.host else serve.host)
    if serve.url:
        names.append(urlsplit(serve.url).netloc)
    hosts = [form for name in names for form in (name, f"{name}:*")] + [*serve.allowed_hosts]
    origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
    return TransportSecuritySettings(
        allowed_hosts=hosts, allowed_origins=[*origins, *serve.allowed_origins]
    )


class Front:
    """ASGI middleware; see the module.

    Args:
        app: What is behind it.
        serve: The limits and names.
        ending: Set when the server ends.
    """

    def __init__(self, app: ASGIApp, serve: ServeConfig, ending: anyio.Event) -> None:
        self._ending = ending
        self._app = RequestBodyLimitMiddleware(app, serve.max_body_bytes)
        self._body_limit_s = serve.body_limit_s
        self._security = TransportSecurityMiddleware(security(serve))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refused = await self._security.validate_request(request)
        if refused is None:
            await self._app(scope, self._bounded(receive), send)
            return
        header = "Origin" if refused.status_code == 403 else "Host"
        setting = "allowed_origins" if header == "Origin" else "allowed_hosts"
        response = JSONResponse(
            {
                "error": f"This server does not answer to the {header} of the request. Its operator "
                f"can add it: serve.{setting} in the configuration."
            },
            status_code=refused.status_code,
        )
        await response(scope, receive, send)

    def _bounded(self, receive: Receive) -> Receive:
        """``receive`` that tells the end of the connection in time.

        A client that is silent for too long within its body is taken for gone; behind the body, one is
        left when the server ends.
        """
        is_complete = False

        async def bounded() -> Message:
            nonlocal is_complete
            if not is_complete:
                with anyio.move_on_after(self._body_limit_s):
                    message = await receive()
                    is_complete = not message.get("more_body", False)
                    return message
                return {"type": "http.disconnect"}
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._leave_at_end, tg.cancel_scope)
                message = await receive()
                tg.cancel_scope.cancel()
                return message
            return {"type": "http.disconnect"}

        return bounded

    async def _leave_at_end(self, waiting: anyio.CancelScope) -> None:
        await self._ending.wait()
        await anyio.sleep(LAST_ANSWERS_S)
        waiting.cancel()
