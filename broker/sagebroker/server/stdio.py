"""`serve_stdio`: the server for one client over stdin and stdout, and its orderly end.

A client ends a stdio server by closing its stdin, sends SIGTERM 2 s later and SIGKILL 2 s after
that. The SDK's own ``run`` leaves on SIGTERM without closing anything, and hangs on SIGINT because
a thread that reads stdin cannot be cancelled (both measured with mcp 2.3.0). So signals end the
serving here, the broker closes, and then the process leaves without waiting for that thread.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskStatus

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.container.runtime import ContainerRuntime
from sagebroker.server.app import make_server
from sagebroker.server.bridge import bridge, find_server

EXIT_LIMIT_S: Final = 20.0
"""For the broker to close after a signal. Containers take below 1 s; an engine that does not answer
must not keep the process for ever. What it leaves is swept by the next start or ends by its lease."""

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGHUP: 0}
"""By the signal that ended the server: a client's own SIGTERM is no failure."""

_log = logging.getLogger(__name__)


@dataclass
class _Ending:
    """Why and how the process ends."""

    by: signal.Signals | None = None
    has_begun: bool = False
    """Whether there is a broker, or was: only then there is something to close."""
    closed: anyio.Event = field(default_factory=anyio.Event)

    def leave(self) -> None:
        """End the process now, after its streams are written out; never returns after a signal."""
        if self.by is not None:
            sys.stderr.flush()
            os._exit(_EXIT_CODES[self.by])


async def serve_stdio(config: BrokerConfig, runtime: ContainerRuntime | None = None) -> None:
    """Serve one MCP client until it closes stdin.

    The server of this state folder does it, where one runs (`serve`), else a broker of this process.

    Args:
        config: The broker's configuration.
        runtime: An engine to use in place of the one that would be found.

    SIGINT, SIGTERM and SIGHUP end the process from here, after the broker has closed; the caller
    gets control back only when the client has closed stdin.
    """
    ending = _Ending()

    @asynccontextmanager
    async def open_broker() -> AsyncIterator[Broker]:
        ending.has_begun = True
        try:
            async with Broker(config, runtime, adopt=True) as broker:
                yield broker
        finally:
            ending.closed.set()
            # Behind this only the thread that reads stdin is left, and it cannot be cancelled.
            ending.leave()

    async with anyio.create_task_group() as tg:
        await tg.start(_end_on_signal, ending, tg.cancel_scope)
        running = await find_server(config)
        if running is not None:
            await bridge(running)
        else:
            server = make_server(open_broker, time_limit_s=config.session.time_limit_s)
            await server.run_stdio_async()
        tg.cancel_scope.cancel()


async def _end_on_signal(
    ending: _Ending,
    serving: anyio.CancelScope,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(*_EXIT_CODES) as signals:
        task_status.started()
        async for received in signals:
            ending.by = received
            break
        _log.info("Ending after %s", ending.by)
        if not ending.has_begun:
            ending.leave()
        serving.cancel()
        # Keeps catching signals meanwhile: a second one must not cut the closing short.
        with anyio.move_on_after(EXIT_LIMIT_S, shield=True) as limit:
            await ending.closed.wait()
        if limit.cancelled_caught:
            _log.error("The broker did not close within %.0f s", EXIT_LIMIT_S)
        ending.leave()
