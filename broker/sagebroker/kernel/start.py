"""Waiting for the keeper to run a kernel whose sockets are there."""

from __future__ import annotations

import time
from pathlib import Path

import anyio

from sagebroker.errors import ContainerError, KernelStartError
from sagebroker.kernel.connection import SocketName
from sagebroker.kernel.host import KernelHost
from sagebroker.kernel.keeper import KeeperStatus
from sagebroker.model import ExitCause, ExitReport

POLL_S = 0.02
"""Time between looks at the keeper's status: nothing tells when it changes."""

ENGINE_LOOK_INTERVAL_S = 0.5
"""Time between looks at the container, which may have ended at once."""

REVIVE_LIMIT_S = 10.0
"""Time the keeper has for a new kernel in place of one that had to be given up."""

_SOCKETS: tuple[SocketName, ...] = ("shell", "control", "stdin", "iopub", "hb")


async def wait_forked(host: KernelHost, deadline: float) -> KeeperStatus:
    """Wait until a kernel runs.

    Args:
        host: Its surroundings.
        deadline: Monotonic second.

    Raises:
        KernelStartError: The container has ended, the kernel dies again and again, or the deadline
            has passed; with the keeper's last output.
    """
    looked_at = time.monotonic()
    while True:
        status = await host.status()
        if status is not None and status.state == "running" and _sockets_exist(host):
            return status
        if status is not None and status.state == "crash_loop":
            raise KernelStartError(
                "The kernel dies again and again right after its start.",
                hint="sage_restart tries once more.",
            )
        now = time.monotonic()
        if now > deadline:
            raise KernelStartError(await _with_logs(host, "No kernel came up in time."))
        if now - looked_at > ENGINE_LOOK_INTERVAL_S:
            looked_at = now
            await _check_container(host)
        await anyio.sleep(POLL_S)


async def wait_revived(host: KernelHost, report: ExitReport) -> bool:
    """After a kernel's death: whether the keeper has a next one.

    Args:
        host: The kernel's surroundings.
        report: How it ended.
    """
    status = await host.status()
    if report.cause in (ExitCause.HOSTILE, ExitCause.UNKNOWN) and (
        status is None or status.generation <= report.generation
    ):
        # Nobody has seen it end: it may still run.
        await host.replace()
    with anyio.move_on_after(REVIVE_LIMIT_S):
        while True:
            status = await host.status()
            if status is not None and status.generation > report.generation:
                return True
            await anyio.sleep(POLL_S)
    return False


async def _check_container(host: KernelHost) -> None:
    try:
        state = await host.state()
    except ContainerError:
        return
    if not state.running:
        raise KernelStartError(await _with_logs(host, f"No kernel came up: {state.detail}."))


async def _with_logs(host: KernelHost, message: str) -> str:
    try:
        logs = (await host.logs()).strip()
    except ContainerError:
        logs = ""
    return f"{message} Its last output: {logs[-1500:]}" if logs else message


def _sockets_exist(host: KernelHost) -> bool:
    return all(Path(host.connection.socket_path(name)).exists() for name in _SOCKETS)
