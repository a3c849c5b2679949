"""`Shared`: what the brokers of one process have together: the engine, the starts, the memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio import AsyncContextManagerMixin

from sagebroker.config import BrokerConfig, engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import find_engine
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.errors import TooManySessionsError, alone
from sagebroker.kernel.guard import MemoryGuard

RETRY_AFTER_S = 30.0
"""Told to whom no session can be given now: one is closed or goes to sleep now and then."""


class Shared(AsyncContextManagerMixin):
    """See the module. An async context manager.

    Args:
        config: The engine, and the limits.
        runtime: An engine to use in place of the one that would be found; not closed here.
        most_sessions: Sessions of all brokers together; None where each has a limit of its own only.
    """

    def __init__(
        self,
        config: BrokerConfig,
        runtime: ContainerRuntime | None = None,
        *,
        most_sessions: int | None = None,
    ) -> None:
        self.starts = anyio.Semaphore(config.kernel.concurrent_starts)
        self.guard = MemoryGuard()
        self._config = config
        self._runtime = runtime
        self._own_runtime: ContainerRuntime | None = None
        self._connecting = anyio.Lock()
        self._most_sessions = most_sessions
        self._counts: list[Callable[[], int]] = []

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncIterator[Shared]:
        try:
            with alone():
                async with anyio.create_task_group() as tg:
                    tg.start_soon(self.guard.run)
                    yield self
                    tg.cancel_scope.cancel()
        finally:
            if self._own_runtime is not None:
                with anyio.CancelScope(shield=True):
                    await self._own_runtime.aclose()

    async def runtime(self) -> ContainerRuntime:
        """The engine, connected when first asked for.

        Raises:
            RuntimeUnavailableError: There is none; says what was tried and what to do.
        """
        async with self._connecting:
            if self._runtime is None:
                found = await find_engine(self._config.engine_url, engine_environment())
                self._runtime = self._own_runtime = DockerRuntime(found.url)
            return self._runtime

    @contextmanager
    def counting(self, sessions: Callable[[], int]) -> Iterator[None]:
        """Count a broker's sessions; ``sessions`` gives their number, those that are being made with them."""
        self._counts.append(sessions)
        try:
            yield
        finally:
            self._counts.remove(sessions)

    def check_room(self) -> None:
        """Raise `TooManySessionsError` where all brokers together have no room for one more session."""
        most = self._most_sessions
        if most is not None and sum(count() for count in self._counts) >= most:
            raise TooManySessionsError(
                f"All {most} sessions that this server has room for are in use.",
                hint="Use an open session, or try again later.",
                retry_after_s=RETRY_AFTER_S,
            )
