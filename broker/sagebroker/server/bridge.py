"""`bridge`: a stdio front end that hands a client on to the server of the same state folder."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from sagebroker.places import mcp_socket
from sagebroker.store.folders import StateFolder

if TYPE_CHECKING:
    from anyio.abc import SocketStream

    from sagebroker.config import BrokerConfig

_STDIN: Final = 0
_STDOUT: Final = 1
_CHUNK_BYTES: Final = 2**16
LAST_ANSWERS_S: Final = 2.0
"""After the client has closed stdin, for the server to say its last words."""


_log = logging.getLogger(__name__)


async def find_server(config: BrokerConfig) -> SocketStream | None:
    """A connection to the server of this state folder, or None where none runs."""
    instance = await anyio.to_thread.run_sync(StateFolder(config.state_dir).instance)
    if instance is None:
        return None
    path = mcp_socket(config, instance)
    try:
        server = await anyio.connect_unix(path)
    except OSError as error:
        # No socket, or one that nobody listens at.
        _log.info("No server to join at %s: %s", path, error)
        return None
    _log.info("Joining the server at %s", path)
    return server


async def bridge(server: SocketStream) -> None:
    """Pass bytes on in both directions until either side has ended."""
    async with server, anyio.create_task_group() as tg:
        tg.start_soon(_pass_requests, server, tg.cancel_scope)
        try:
            async for chunk in server:
                await anyio.to_thread.run_sync(_write, chunk, abandon_on_cancel=True)
        except (anyio.BrokenResourceError, OSError):
            # The server, or the client, is gone without a word: so is this front end.
            pass
        tg.cancel_scope.cancel()


async def _pass_requests(server: SocketStream, whole: anyio.CancelScope) -> None:
    is_file = stat.S_ISREG(os.fstat(_STDIN).st_mode)
    try:
        while chunk := await (_read_in_thread() if is_file else _read()):
            await server.send(chunk)
        await server.send_eof()
    except (anyio.BrokenResourceError, OSError):
        pass
    await anyio.sleep(LAST_ANSWERS_S)
    whole.cancel()


async def _read() -> bytes:
    # In no thread: one that reads stdin cannot be cancelled.
    await anyio.wait_readable(_STDIN)
    return os.read(_STDIN, _CHUNK_BYTES)


async def _read_in_thread() -> bytes:
    # A file is always readable, and cannot be waited for.
    return await anyio.to_thread.run_sync(os.read, _STDIN, _CHUNK_BYTES)


def _write(chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(_STDOUT, view) :]
