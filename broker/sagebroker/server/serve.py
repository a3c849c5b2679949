"""`serve`: MCP over HTTP for several users, and unix sockets for the local one, until a signal."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread
import uvicorn
from starlette.types import ASGIApp

from sagebroker.config import BrokerConfig
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import ConfigError
from sagebroker.places import (
    MCP_PATH,
    http_socket,
    mcp_socket,
    server_lock,
    token_file,
)
from sagebroker.server.attendance import Attendance
from sagebroker.server.auth import BearerVerifier
from sagebroker.server.door import listening, serve_door
from sagebroker.server.front import is_loopback
from sagebroker.server.http_app import make_app
from sagebroker.server.jwts import JwtVerifier
from sagebroker.server.metrics import Metrics
from sagebroker.store import locks
from sagebroker.store.folders import StateFolder
from sagebroker.store.tokens import TokenFile
from sagebroker.users import ServedUsers

ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEEP_ALIVE_S: Final = 30
"""Time that a connection without a request is kept."""
BACKLOG: Final = 128
_OWN_URL: Final = f"http://localhost{MCP_PATH}"
"""What stands for an address where there is none."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where a server is reached."""

    url: str
    """Of MCP over HTTP; empty where the unix sockets are all."""
    wants_tokens: bool
    http_socket: Path
    """JSON API, MCP and metrics for the local user."""
    mcp_socket: Path
    """MCP for stdio front ends."""

    def as_json(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {
            "url": self.url,
            "wants_tokens": self.wants_tokens,
            "http_socket": str(self.http_socket),
            "mcp_socket": str(self.mcp_socket),
        }


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the process has one place for signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    config: BrokerConfig,
    runtime: ContainerRuntime | None = None,
    *,
    is_local: bool = False,
    on_ready: Callable[[Serving], None] = lambda _: None,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Args:
        config: The server's configuration.
        runtime: An engine to use in place of the one that would be found.
        is_local: Listen on the unix sockets only, and end also when nobody has needed the server for
            `ServeConfig.idle_limit_s`.
        on_ready: Called when connections are accepted.

    Raises:
        ConfigError: An address, a certificate or a folder cannot be used, or the address can be reached
            by others and nobody would be asked for a token.
    """
    tokens = TokenFile(token_file(config))
    wants_tokens = await anyio.to_thread.run_sync(tokens.exists) or bool(config.auth.issuer)
    if not is_local:
        _check(config, wants_tokens=wants_tokens)
    instance = await anyio.to_thread.run_sync(StateFolder(config.state_dir).open)
    with (
        anyio.open_signal_receiver(*ENDING_SIGNALS) as signals,
        _only_server(server_lock(config)),
        nullcontext() if is_local else _tcp(config) as tcp,
        listening(http_socket(config, instance)) as own_http,
        listening(mcp_socket(config, instance)) as own_mcp,
    ):
        serving = Serving(
            url=_url(config, tcp) + MCP_PATH if tcp else "",
            wants_tokens=wants_tokens,
            http_socket=http_socket(config, instance),
            mcp_socket=mcp_socket(config, instance),
        )
        async with ServedUsers(config, runtime) as users, AsyncExitStack() as running:
            metrics = running.enter_context(Metrics(users))
            if tcp:
                public = _public(users, metrics, tokens if wants_tokens else None, serving.url)
                await running.enter_async_context(_running(public, tcp, users, is_public=True))
            attendance = Attendance()
            own = make_app(users, resource=serving.url or _OWN_URL, metrics=metrics)
            counted = attendance.counting(own)
            await running.enter_async_context(_running(counted, own_http, users, is_public=False))
            tg = await running.enter_async_context(anyio.create_task_group())
            tg.start_soon(
                partial(serve_door, time_limit_s=config.session.time_limit_s),
                own_mcp,
                users,
                attendance,
            )
            on_ready(serving)
            await _until_end(signals, attendance if is_local else None, users)
            users.ending.set()
            tg.cancel_scope.cancel()


def _public(
    users: ServedUsers, metrics: Metrics, tokens: TokenFile | None, resource: str
) -> ASGIApp:
    """What is served to whoever reaches the address; asks for tokens where there are any."""
    auth = users.config.auth
    jwts = JwtVerifier(auth, resource) if auth.issuer else None
    verifier = None if tokens is None else BearerVerifier(tokens, resource, jwts)
    return make_app(users, resource=resource, metrics=metrics, verifier=verifier)


async def _until_end(
    signals: AsyncIterator[signal.Signals], attendance: Attendance | None, users: ServedUsers
) -> None:
    """Until a signal, or until those who attend have left for good."""
    limit_s = users.config.serve.idle_limit_s

    def has_sessions() -> bool:
        return any(broker.sessions() for broker in users.brokers().values())

    async with anyio.create_task_group() as tg:

        async def wait_for_nobody(attendance: Attendance) -> None:
            await attendance.until_nobody(limit_s, has_sessions)
            _log.info("Ending: nobody has needed this server for %.0f s", limit_s)
            tg.cancel_scope.cancel()

        if attendance is not None:
            tg.start_soon(wait_for_nobody, attendance)
        async for received in signals:
            _log.info("Ending after %s", signal.Signals(received).name)
            tg.cancel_scope.cancel()
            return


def _check(config: BrokerConfig, *, wants_tokens: bool) -> None:
    """Raise `ConfigError` for what cannot be served so."""
    chosen = config.serve
    if not wants_tokens and not is_loopback(chosen.host):
        raise ConfigError(
            f"The address {chosen.host!r} can be reached from other machines, and nobody would be asked who "
            "he is.",
            hint="Make a token first: sagebroker token create USER. Or set auth.issuer, or listen on "
            "127.0.0.1.",
        )
    if (chosen.tls_certificate is None) != (chosen.tls_key is None):
        raise ConfigError(
            "Of the settings serve.tls_certificate and serve.tls_key only one is set.",
            hint="Set both, to PEM files, or none.",
        )
    if chosen.tls_certificate is not None and chosen.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                chosen.tls_certificate, chosen.tls_key
            )
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"The certificate {chosen.tls_certificate} with the key {chosen.tls_key} cannot be used: "
                f"{error}.",
                hint="serve.tls_certificate and serve.tls_key are PEM files that belong together.",
            ) from error


@contextmanager
def _only_server(path: Path) -> Iterator[None]:
    """Nobody else serves this state folder. Raises `ConfigError`."""
    path.touch(mode=0o600)
    held = locks.try_lock(path)
    if held is None:
        raise ConfigError(
            f"Another sagebroker serves this state folder already (pid {path.read_text()}).",
            hint="Use that one, or end it first; or set SAGEBROKER_STATE_DIR to another folder.",
        )
    locks.sign(held, str(os.getpid()))
    try:
        yield
    finally:
        locks.sign(held, "")
        os.close(held)


@contextmanager
def _tcp(config: BrokerConfig) -> Iterator[socket.socket]:
    """The listening socket. Raises `ConfigError`."""
    host, port = config.serve.host, config.serve.port
    try:
        [(family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"Nothing can listen at {host!r}, port {port}: {error.strerror or error}.",
            hint="Choose others with --host and --port; --port 0 takes a free one.",
        ) from error
    try:
        yield listener
    finally:
        listener.close()


def _url(config: BrokerConfig, listener: socket.socket) -> str:
    """The server's address as clients know it, without a path."""
    if config.serve.url:
        return config.serve.url.rstrip("/")
    host, port = config.serve.host, listener.getsockname()[1]
    scheme = "https" if config.serve.tls_certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


@asynccontextmanager
async def _running(
    app: ASGIApp, listener: socket.socket, users: ServedUsers, *, is_public: bool
) -> AsyncIterator[None]:
    """Serve ``app`` on ``listener`` until the users' end; from then on it takes at most ``drain_s``."""
    chosen, ending = users.config.serve, users.ending
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            limit_concurrency=chosen.max_connections,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(chosen.drain_s),
            ssl_certfile=chosen.tls_certificate if is_public else None,
            ssl_keyfile=chosen.tls_key if is_public else None,
        )
    )

    async def run() -> None:
        await server.serve(sockets=[listener])
        if not ending.is_set():
            raise ConfigError("The HTTP server ended by itself.", hint="Its log has the reason.")

    async with anyio.create_task_group() as tg:
        tg.start_soon(run)
        try:
            yield
        finally:
            # Also where something else failed: then nobody else says so.
            ending.set()
            server.should_exit = True
