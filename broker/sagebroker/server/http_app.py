"""`make_app`: everything that is served over HTTP, as one ASGI application.

``/mcp`` speaks streamable HTTP in both protocol eras, ``/api`` is JSON for other programs, ``/metrics`` for
Prometheus. ``/healthz`` and ``/readyz`` are for whatever watches
over the server. Where there are tokens every other path wants one.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.auth.routes import build_resource_metadata_url
from mcp.server.auth.settings import AuthSettings
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, request_response

from sagebroker.errors import BrokerError
from sagebroker.places import API_PATH, MCP_PATH
from sagebroker.server.api import make_api
from sagebroker.server.app import make_server
from sagebroker.server.auth import METRICS, READ
from sagebroker.server.front import Front, security

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mcp.server.auth.provider import TokenVerifier
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from sagebroker.server.metrics import Metrics
    from sagebroker.users import ServedUsers

MCP_SESSION_IDLE_S: Final = 7 * 86_400.0
"""Time without a request or stream after which an MCP session of the handshake era is forgotten. Clients
take that for the server's end and do not come back by themselves, so it is long; nothing of a Sage
session hangs on it."""


def make_app(
    users: ServedUsers,
    *,
    resource: str,
    metrics: Metrics,
    verifier: TokenVerifier | None = None,
) -> ASGIApp:
    """The application; its lifespan is the MCP server's, not that of ``users``.

    Args:
        users: Entered by the caller.
        resource: The address of ``/mcp`` for clients: what tokens are for.
        metrics: What is told at ``/metrics``; counts the tool calls.
        verifier: Says whose a token is; without one whoever comes is the local user.
    """
    config = users.config
    server = make_server(
        lambda: nullcontext(users),
        on_call=metrics.call,
        time_limit_s=config.session.time_limit_s,
        verifier=verifier,
        auth=None if verifier is None else _auth(config.auth.issuer, resource),
    )
    mcp = server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        max_request_body_size=config.serve.max_body_bytes,
        session_idle_timeout=MCP_SESSION_IDLE_S,
        transport_security=security(config.serve),
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with mcp.router.lifespan_context(mcp):
            yield

    guard = partial(_guarded, resource=resource, issuer=config.auth.issuer, verifier=verifier)
    app = Starlette(
        routes=[
            Route("/healthz", _health),
            Route("/readyz", _readiness(users)),
            Mount(API_PATH, guard(make_api(users), READ)),
            Route("/metrics", guard(request_response(_telling(metrics)), METRICS)),
            Mount("/", mcp),
        ],
        middleware=_cors(config.serve.allowed_origins),
        exception_handlers={404: _nothing},
        lifespan=lifespan,
    )
    return Front(app, config.serve, users.ending)


def _telling(metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    async def tell(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return tell


def _readiness(users: ServedUsers) -> Callable[[Request], Awaitable[Response]]:
    async def ready(_: Request) -> Response:
        if users.ending.is_set():
            return JSONResponse({"status": "ending"}, status_code=503)
        try:
            await (await users.runtime()).ping()
        except BrokerError as error:
            return JSONResponse({"status": "no engine", "why": error.code}, status_code=503)
        return JSONResponse({"status": "ok"})

    return ready


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _nothing(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "http", "message": f"{error}."}, status_code=404)


def _auth(issuer: str, resource: str) -> AuthSettings:
    """What the SDK is to ask of tokens, and to say of who gives them out."""
    return AuthSettings(
        # Without an issuer there is nobody to go to for a token, and so no metadata that says so.
        issuer_url=AnyHttpUrl(issuer or resource),
        resource_server_url=AnyHttpUrl(resource) if issuer else None,
        required_scopes=[READ],
        validate_token_resource=bool(issuer),
    )


def _guarded(
    app: ASGIApp, scope: str, *, resource: str, issuer: str, verifier: TokenVerifier | None
) -> ASGIApp:
    """The application behind the same check of tokens as MCP is, for those that have a scope."""
    if verifier is None:
        return app
    address = build_resource_metadata_url(AnyHttpUrl(resource)) if issuer else None
    app = RequireAuthMiddleware(app, [scope], address)
    backend = BearerAuthBackend(
        verifier, resource_server_url=AnyHttpUrl(resource) if issuer else None
    )
    return AuthenticationMiddleware(AuthContextMiddleware(app), backend=backend)


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Lets web pages of the allowed origins read the answers."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Mcp-Session-Id", "WWW-Authenticate", "Retry-After"],
        )
    ]
