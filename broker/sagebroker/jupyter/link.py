"""`Link`: sessions of this state folder for Jupyter's tools; `broker_request`: what only the broker can do.

A link holds nothing open: Jupyter's tools call from several threads, each with an event loop of its own.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import anyio
import zmq
import zmq.asyncio
from jupyter_client.session import Session as WireSession

from sagebroker.client import ask_server, ensure_server
from sagebroker.errors import KernelError, ServerError
from sagebroker.session.connecting import CONNECTION_FILE
from sagebroker.session.orders import BROKER_REQUEST
from sagebroker.store.folders import StateFolder

if TYPE_CHECKING:
    from pathlib import Path

    from sagebroker.config import BrokerConfig

Connection = dict[str, Any]
"""The content of a session's connection file: Jupyter's keys, and ``session`` and ``session_id``."""

INFO_LIMIT_S: Final = 5.0
"""For an answer that the broker gives at once."""
INTERRUPT_LIMIT_S: Final = 60.0
"""The ladder's last rung makes the container anew."""
RESTART_LIMIT_S: Final = 120.0
"""A new kernel may take 80 s."""
NAME_TRIES: Final = 5
"""A name of 24 random bits is taken already once in a million sessions."""


class Link:
    """See the module. Every call starts a server in the background where none runs.

    Args:
        config: Says which state folder.

    Raises, from every method:
        ServerError: There is no server and none can be started, or it refuses; says why.
    """

    def __init__(self, config: BrokerConfig) -> None:
        self.config = config

    async def sessions(self) -> list[dict[str, Any]]:
        """Every session, those that are open first; as ``GET /api/sessions`` has them."""
        found: list[dict[str, Any]] = (await self._ask("GET", "/sessions"))["sessions"]
        return found

    async def open(self, name: str) -> tuple[Connection, bool]:
        """Open a session, or join or wake it; returns its connection and whether it is new."""
        opened = await self._ask("PUT", _path(name), {})
        return await self.connection(name), bool(opened["created"])

    async def open_new(self, beginning: str) -> Connection:
        """Open a session that nobody else has, with a free name that begins so."""
        for _ in range(NAME_TRIES):
            connection, is_new = await self.open(f"{beginning}-{secrets.token_hex(3)}")
            if is_new:
                return connection
        raise ServerError(f"No free name for a session was found that begins with {beginning!r}.")

    async def connection(self, name: str) -> Connection:
        """How a Jupyter client reaches a session, which is opened or woken where no process serves it."""
        found = await self._ask("GET", f"{_path(name)}/connection")
        del found["created"]
        return found

    async def interrupt(self, name: str) -> str:
        """Stop the running cell by the ladder; returns what was done, a sentence."""
        return str((await self._ask("POST", f"{_path(name)}/interrupt"))["message"])

    async def restart(self, name: str) -> str:
        """Put a new kernel into a session; returns what was done, a sentence."""
        return str((await self._ask("POST", f"{_path(name)}/restart"))["message"])

    async def close(self, name: str) -> str:
        """End a session with its variables and files; returns what was done, a sentence."""
        return str((await self._ask("DELETE", _path(name)))["message"])

    def is_there(self, connection: Connection) -> bool:
        """Whether a session is there still, awake or asleep, whoever serves it. Blocks for a moment."""
        return connection_file(self.config, connection).exists()

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        answer = await ask_server(self.config, method, path, body)
        if answer is None:
            await ensure_server(self.config)
            answer = await ask_server(self.config, method, path, body)
        if answer is None:
            raise ServerError(
                "The server of this state folder has just ended.", hint="Do the same once more."
            )
        return answer


def connection_file(config: BrokerConfig, connection: Connection) -> Path:
    """Where the connection file of a session is, for tools that want a path."""
    folder = StateFolder(config.state_dir.absolute()).folder(connection["session_id"])
    return folder.path / CONNECTION_FILE


def _path(name: str) -> str:
    return f"/sessions/{quote(name, safe='')}"


async def broker_request(
    connection: Connection, action: str, *, limit_s: float = INFO_LIMIT_S, **content: Any
) -> dict[str, Any]:
    """What the broker answers when it is asked for what Jupyter's protocol has no words for.

    Args:
        connection: Of the session.
        action: ``info``, ``interrupt``, ``restart`` or ``keep``.
        limit_s: Time for the answer.
        content: What else belongs to the action.

    Raises:
        ServerError: Nobody has answered in time.
        KernelError: It was refused, or could not be done; says why.
    """
    return await control_request(
        connection, BROKER_REQUEST, {"action": action, **content}, limit_s=limit_s
    )


async def control_request(
    connection: Connection,
    msg_type: str,
    content: dict[str, Any],
    *,
    limit_s: float = INFO_LIMIT_S,
) -> dict[str, Any]:
    """The content of the reply to a request on a session's control channel. Raises as `broker_request`."""
    wire = WireSession(key=_key(connection), signature_scheme=connection["signature_scheme"])
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    try:
        with anyio.fail_after(limit_s):
            socket.connect(f"ipc://{connection['ip']}-{connection['control_port']}")
            request = wire.msg(msg_type, content)
            wire.send(socket, request)
            answer = await _reply_to(request["header"]["msg_id"], socket, wire)
    except TimeoutError:
        raise ServerError(
            f"Nobody has answered for session {connection.get('session', '')!r} within {limit_s:g} s: the "
            "process that serves it has ended, or hangs.",
            hint="See: sagebroker sessions list.",
        ) from None
    finally:
        socket.close()
    if answer.get("status") != "ok":
        raise KernelError(str(answer.get("evalue") or "The broker refuses that."))
    return answer


async def _reply_to(msg_id: str, socket: zmq.asyncio.Socket, wire: WireSession) -> dict[str, Any]:
    while True:
        _, frames = wire.feed_identities(await socket.recv_multipart())
        message = wire.deserialize(frames)
        if message["parent_header"].get("msg_id") == msg_id:
            content: dict[str, Any] = message["content"]
            return content


def _key(connection: Connection) -> bytes:
    key = connection["key"]
    return key if isinstance(key, bytes) else str(key).encode()
