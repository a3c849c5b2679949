"""`EngineCalls`: one call of the blocking docker package, bounded, counted and mapped.

Each call runs in a worker thread of an own limiter and has two bounds: the client's own timeout,
which ends the thread, and a slightly longer deadline, which ends the wait. So a stalled engine
neither keeps a caller nor uses up threads for good.
"""

from __future__ import annotations

import logging
import random
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import requests
from docker import APIClient

from sagebroker.container.docker_errors import FOREIGN_ERRORS, mapped
from sagebroker.errors import ContainerError, ContainerNotFoundError, RuntimeUnavailableError
from sagebroker.logs import event

if TYPE_CHECKING:
    from collections.abc import Callable

    from sagebroker.container.breaker import CircuitBreaker

log = logging.getLogger(__name__)

T = TypeVar("T")

WORKERS = 8
"""Calls at once: the engine serialises most changes anyway, and anyio's shared threads stay free."""
URGENT_WORKERS = 4
"""Further calls at once for signals and pings, which must not queue behind a stalled create."""
CLIENT_SHARE = 0.8
"""Part of a deadline after which the client itself gives up, so that its thread ends first."""
READ_ATTEMPTS = 3
"""Attempts of a call that changes nothing: rides out a restarted proxy or a dropped connection."""
RETRY_PAUSE_S = (0.05, 0.2)
"""Bounds of the random pause between attempts, seconds."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}\Z")


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Bound of each kind of call, seconds. Measured: changes take 0.03-0.6 s, reads some ms."""

    urgent_s: float = 5.0
    """ping and signal; also the opening of the event stream."""
    read_s: float = 10.0
    """inspect, list, stats, logs, image."""
    change_s: float = 30.0
    """create, start, rename, remove: a machine that starts several kernels is slow."""


def check_name(container: str) -> str:
    """``container`` if it can be an id or a name; it becomes part of a URL.

    Raises:
        ContainerNotFoundError: It cannot; then there is no such container either.
    """
    if not _NAME.match(container):
        raise ContainerNotFoundError(f"There is no container {container[:80]!r}.")
    return container


def _knock(url: str, limit_s: float) -> None:
    """Connect to a unix socket and hang up; raises `OSError` if nobody is there.

    docker-py's own connection leaks its socket when connecting fails.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(limit_s)
            door.connect(parts.path)


class EngineCalls:
    """Carries out calls; see the module.

    Args:
        url: The engine, such as ``unix:///var/run/docker.sock``.
        deadlines: Bounds of the calls.
        breaker: Told of every answer and every silence; asked before all calls but urgent ones.
    """

    def __init__(self, url: str, deadlines: Deadlines, breaker: CircuitBreaker) -> None:
        self.url = url
        self.deadlines = deadlines
        self.breaker = breaker
        self._workers = anyio.CapacityLimiter(WORKERS)
        self._urgent_workers = anyio.CapacityLimiter(URGENT_WORKERS)
        self._clients: dict[float, APIClient] = {}
        self._api_version = "auto"

    async def read(self, ask: Callable[[APIClient], T], operation: str, subject: str) -> T:
        """A call that changes nothing: tried again, within its deadline, when it was not answered."""
        self.refuse_while_open()
        limit_s = self.deadlines.read_s
        return await self._call(ask, operation, subject, limit_s, attempts=READ_ATTEMPTS)

    async def change(self, ask: Callable[[APIClient], T], operation: str, subject: str) -> T:
        """A call that changes something: sent once."""
        self.refuse_while_open()
        return await self._call(ask, operation, subject, self.deadlines.change_s)

    async def change_regardless(
        self, ask: Callable[[APIClient], T], operation: str, subject: str
    ) -> T:
        """The same, sent even while the breaker is open: for cleaning up."""
        return await self._call(ask, operation, subject, self.deadlines.change_s)

    async def urgent(
        self, ask: Callable[[APIClient], T], operation: str, subject: str, *, attempts: int = 1
    ) -> T:
        """A short call that does not queue behind others and is sent even while the breaker is open."""
        limit_s = self.deadlines.urgent_s
        return await self._call(
            ask, operation, subject, limit_s, attempts=attempts, limiter=self._urgent_workers
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run other blocking ``work`` of the container layer among the calls."""
        return await anyio.to_thread.run_sync(work, limiter=self._workers)

    def refuse_while_open(self) -> None:
        """Raise `RuntimeUnavailableError` at once if the breaker says so."""
        now = time.monotonic()
        if not self.breaker.allows(now):
            raise RuntimeUnavailableError(
                f"The container engine did not answer {self.breaker.failures} times in a row; the "
                f"next attempt is made in {self.breaker.retry_after_s(now):.0f} s.",
                hint="Running sessions go on. `sagebroker doctor` says what to do about the engine.",
            )

    def client(self, limit_s: float) -> APIClient:
        """The client whose calls end within ``limit_s`` seconds; asks for the version at first.

        Blocks; call it in a worker thread. Raises one of `FOREIGN_ERRORS`.
        """
        _knock(self.url, limit_s)
        client = self._clients.get(limit_s)
        if client is None:
            made = APIClient(
                self.url,
                version=self._api_version,
                # Typed as int, handed to requests as it is.
                timeout=cast("int", limit_s),
                max_pool_size=WORKERS,
            )
            # docker-py keeps a pool for every URL, so for every container and operation: without
            # this, each of them would keep an idle connection open.
            made.headers["Connection"] = "close"
            self._api_version = made.api_version
            client = self._clients.setdefault(limit_s, made)  # two threads at once: the first one's
            if client is not made:
                made.close()
        return client

    def close(self) -> None:
        """Close every client."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    async def _call(
        self,
        ask: Callable[[APIClient], T],
        operation: str,
        subject: str,
        limit_s: float,
        *,
        attempts: int = 1,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> T:
        def work() -> T:
            return self._attempt(ask, operation, subject, limit_s * CLIENT_SHARE, attempts)

        try:
            with anyio.fail_after(limit_s):
                answer = await anyio.to_thread.run_sync(
                    work, abandon_on_cancel=True, limiter=limiter or self._workers
                )
        except TimeoutError as error:
            self._note_silence()
            raise RuntimeUnavailableError(
                f"The container engine did not {operation} {subject!r} within {limit_s:g} s.",
                hint="`sagebroker doctor` says what to do.",
            ) from error
        except RuntimeUnavailableError:
            self._note_silence()
            raise
        except ContainerError:
            self.breaker.succeeded()  # it answered, though with an error
            raise
        self.breaker.succeeded()
        return answer

    def _attempt(
        self,
        ask: Callable[[APIClient], T],
        operation: str,
        subject: str,
        limit_s: float,
        attempts: int,
    ) -> T:
        """In a worker thread: ask, and ask again if the connection failed while there is time."""
        ends_at = time.monotonic() + limit_s
        while True:
            attempts -= 1
            try:
                return ask(self.client(limit_s))
            except FOREIGN_ERRORS as error:
                ours = mapped(error, operation, subject)
                retryable = ours.retryable and not isinstance(error, requests.Timeout)
                pause_s = random.uniform(*RETRY_PAUSE_S)
                if not attempts or not retryable or time.monotonic() + pause_s > ends_at:
                    raise ours from error
            time.sleep(pause_s)

    def _note_silence(self) -> None:
        if self.breaker.failed(time.monotonic()):
            log.warning(
                "The container engine does not answer; calls are refused until it does.",
                extra=event("engine.unavailable", url=self.url),
            )
