"""The engine's event stream over docker-py's session, as an `EventSource`.

Not `APIClient.events`: that one has no timeout at all and hangs for ever on a stalled engine
(measured). Here every read is bounded by the idle limit.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import requests
import urllib3

from sagebroker.container.docker_errors import FOREIGN_ERRORS, mapped
from sagebroker.container.events import IDLE_LIMIT_S, SourceIdleError
from sagebroker.errors import RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import APIClient

READ_BYTES = 65_536
"""Bytes taken from the stream at once; chunks are handed on as they come."""
_NANOSECONDS = 10**9


class DockerEvents:
    """One open stream. Make it with `open_events`."""

    def __init__(self, response: requests.Response, opened_ns: int) -> None:
        self.opened_ns = opened_ns
        self._response = response
        self._socket = _socket_of(response)

    def listen_for(self, idle_limit_s: float) -> None:
        """Bound the wait for the next byte; the opening had a shorter bound."""
        if self._socket is not None:
            self._socket.settimeout(idle_limit_s)

    def chunks(self) -> Iterator[bytes]:
        """See `EventSource.chunks`."""
        try:
            yield from self._response.raw.stream(READ_BYTES, decode_content=True)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise SourceIdleError from error
        except FOREIGN_ERRORS as error:
            raise mapped(error, "read events of", "") from error

    def wake(self) -> None:
        """See `EventSource.wake`."""
        if self._socket is not None:
            with suppress(OSError):  # already shut by the engine: nothing waits then
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `EventSource.close`."""
        self._response.close()


def open_events(
    client: APIClient,
    since_ns: int | None,
    *,
    open_limit_s: float,
    idle_limit_s: float = IDLE_LIMIT_S,
) -> DockerEvents:
    """Open the stream of container events; blocks for at most about ``open_limit_s`` seconds.

    Args:
        client: Whose session and version are used.
        since_ns: Engine's wall clock in nanoseconds from which to replay; None for from now on.
        open_limit_s: Bound of connecting and of the first answer, seconds.
        idle_limit_s: Silence after which `DockerEvents.chunks` gives up, seconds.

    Raises:
        ContainerError: The engine does not answer or refuses.
    """
    params: dict[str, Any] = {"filters": json.dumps({"type": ["container"]})}
    if since_ns is not None:
        params["since"] = f"{since_ns // _NANOSECONDS}.{since_ns % _NANOSECONDS:09d}"
    url = f"{client.base_url}/v{client.api_version}/events"
    try:
        response = client.get(url, params=params, stream=True, timeout=open_limit_s)
        stamp = response.headers.get("Date", "")
        opened_ns = int(parsedate_to_datetime(stamp).timestamp()) * _NANOSECONDS if stamp else 0
    except FOREIGN_ERRORS as error:
        raise mapped(error, "read events of", "") from error
    if response.status_code != requests.codes.ok or not response.raw.chunked:
        response.close()
        raise RuntimeUnavailableError(
            f"The container engine refuses to tell events (status {response.status_code})."
        )
    source = DockerEvents(response, opened_ns)
    source.listen_for(idle_limit_s)
    return source


def _socket_of(response: requests.Response) -> socket.socket | None:
    """The connection's socket, by the road docker-py's `CancellableStream` takes too.

    Returns None where a library is built otherwise: closing then takes until the idle limit.
    """
    step: Any = response.raw
    for name in ("_fp", "fp", "raw", "_sock"):
        step = getattr(step, name, None)
    return step if isinstance(step, socket.socket) else None
