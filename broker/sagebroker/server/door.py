"""The unix sockets of a server: who may open the file is the local user.

``<runtime_dir>/<installation>.mcp`` speaks MCP line by line, as stdio does: a stdio front end (`bridge`) passes
bytes on and knows nothing of them. ``<runtime_dir>/<installation>.http`` has what HTTP has, without tokens.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, cast

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketStream
from mcp.server.stdio import stdio_server

from sagebroker.errors import ConfigError
from sagebroker.server.app import make_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sagebroker.server.attendance import Attendance
    from sagebroker.users import Users

MAX_LINE_BYTES: Final = 64 * 2**20
"""Longest message; a client that never ends its line has its connection ended."""
_CHUNK_BYTES: Final = 2**16

_log = logging.getLogger(__name__)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A unix socket at ``path`` that only its owner may connect to; gone afterwards. Blocks.

    Whoever calls holds the server's lock: what lies there is left over.

    Raises:
        ConfigError: It cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
        listener.setblocking(False)  # noqa: FBT003
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"The socket {path} cannot be made: {error}.",
            hint="Set SAGEBROKER_RUNTIME_DIR to a short path that is writable.",
        ) from error
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


async def serve_door(
    listener: socket.socket, users: Users, attendance: Attendance, *, time_limit_s: float
) -> None:
    """Serve every stdio front end that connects, until cancelled."""

    async def serve_one(accepted: socket.socket) -> None:
        with attendance.visiting():
            await _serve_one(accepted, users, time_limit_s)

    async with anyio.create_task_group() as tg:
        while True:
            await anyio.wait_readable(listener)
            try:
                accepted, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
                    _log.warning("A front end cannot be let in now: %s", error)
                    await anyio.sleep(1)
                continue
            tg.start_soon(serve_one, accepted)


async def _serve_one(accepted: socket.socket, users: Users, time_limit_s: float) -> None:
    """One front end's connection. What goes wrong with it ends it, and nothing else."""
    stream = await SocketStream.from_socket(accepted)
    server = make_server(lambda: nullcontext(users), time_limit_s=time_limit_s)
    lowlevel = server._lowlevel_server  # noqa: SLF001 - MCPServer runs on stdin and stdout only
    try:
        async with stream:
            lines = cast("anyio.AsyncFile[str]", _Lines(stream))
            async with stdio_server(lines, lines) as (incoming, outgoing):
                options = lowlevel.create_initialization_options()
                await lowlevel.run(incoming, outgoing, options)
    except Exception as error:  # noqa: BLE001 - one connection's fault is not the others'
        _log.warning("The connection of a front end broke: %s", _first_cause(error))


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Lines:
    """The part of a text file that the SDK's stdio transport uses, over a socket."""

    def __init__(self, stream: SocketStream) -> None:
        self._source: ByteReceiveStream = stream
        self._sink: ByteSendStream = stream
        self._begun = bytearray()

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> str:
        searched = 0
        while (end := self._begun.find(b"\n", searched)) < 0:
            searched = len(self._begun)
            if searched > MAX_LINE_BYTES:
                raise ConnectionError(f"a message has more than {MAX_LINE_BYTES} bytes")
            try:
                self._begun += await self._source.receive(_CHUNK_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                raise StopAsyncIteration from None
        line = bytes(self._begun[: end + 1])
        del self._begun[: end + 1]
        return line.decode("utf-8", "replace")

    async def write(self, text: str) -> None:
        await self._sink.send(text.encode())

    async def flush(self) -> None:
        """What was written has been sent."""
