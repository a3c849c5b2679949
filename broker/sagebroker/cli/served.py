"""Commands for sessions that a server of this state folder serves: asked of it, by its unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from sagebroker.errors import ServerError
from sagebroker.server.places import API_PATH, http_socket, server_lock
from sagebroker.store.folders import StateFolder

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig

CREATED = 201
ANSWER_LIMIT_S = 180.0
"""The slowest request starts a kernel, in its turn."""


def is_server(config: BrokerConfig, process: int | None) -> bool:
    """Whether a process is the server of this state folder. Blocks."""
    try:
        told = server_lock(config).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False
    return process is not None and told.strip() == str(process)


async def ask_server(
    config: BrokerConfig, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """The answer of the server of this state folder, and whether it has ``created`` something; None without one.

    Args:
        config: Says where its socket is.
        method: Of the request.
        path: Below ``/api``.
        body: What is sent, as JSON.

    Raises:
        ServerError: It refuses, or does not answer in time.
    """
    # Here: most commands do not need it, and it takes a while to load.
    import httpx2

    instance = await anyio.to_thread.run_sync(StateFolder(config.state_dir).instance)
    if instance is None:
        return None
    transport = httpx2.AsyncHTTPTransport(uds=str(http_socket(config, instance)))
    try:
        async with httpx2.AsyncClient(transport=transport, timeout=ANSWER_LIMIT_S) as http:
            url = f"http://localhost{API_PATH}{path}"
            answer = await http.request(method, url, json=body)
    except httpx2.ConnectError:
        return None
    except httpx2.HTTPError as error:
        raise ServerError(
            f"The server of this state folder does not answer: {str(error) or type(error).__name__}.",
            hint="Look at its log, or end it.",
        ) from error
    found: dict[str, Any] = answer.json()
    found["created"] = answer.status_code == CREATED
    if answer.is_error:
        raise ServerError(str(found.get("message", f"The server answers {answer.status_code}.")))
    return found
