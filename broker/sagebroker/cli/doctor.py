"""``sagebroker doctor``: looks at everything a session needs, and says what to do about it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial

import anyio.to_thread
import typer

from sagebroker.broker import Broker
from sagebroker.cli.console import EXIT_UNSERVED, Json, out, print_json, run_async
from sagebroker.config import BrokerConfig, engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import FoundEngine, find_engine
from sagebroker.errors import BrokerError, ImageNotFoundError, KernelError
from sagebroker.kernel.folders import KernelFolder
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.model import new_session_id
from sagebroker.session.cell import Cell
from sagebroker.store.folders import StateFolder

FEW_DISK_BYTES = 5 * 2**30
"""Less room than the image's layers take while they are built."""

ROUND_TRIP_CODE = "factor(2^64 + 1)"
ROUND_TRIP_ANSWER = "274177 * 67280421310721"
ROUND_TRIP_LIMIT_S = 60.0

START_POLL_S = 0.05
"""Between looks whether a cell has begun; a kernel that is idle takes it within milliseconds."""


@dataclass(kw_only=True)
class Finding:
    """The outcome of one check."""

    check: str
    ok: bool
    detail: str
    advice: str = ""
    seconds: float = 0.0


def doctor(
    context: typer.Context,
    as_json: Json = False,
) -> None:
    """Check engine, image, folders, limits and a real session; say what to do about each failure."""
    findings: list[Finding] = []

    def take(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            _show(finding)

    run_async(Examination(context.obj, take).run)
    failed = [f for f in findings if not f.ok]
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(f) for f in findings]})
    elif not failed:
        out.print("\nEverything a session needs is there.")
    if failed:
        raise typer.Exit(EXIT_UNSERVED)


class Examination:
    """The checks, in an order in which each needs only those before it.

    Args:
        take: Is given each finding when it is there.
    """

    def __init__(self, config: BrokerConfig, take: Callable[[Finding], None]) -> None:
        self._config = config
        self._take = take
        self._spec: KernelSpec
        self._engine: FoundEngine

    async def run(self) -> None:
        """Check until something fails that the rest needs."""
        await self._check("folders", self._folders)
        for name, act in (
            ("kernelspec", self._kernelspec),
            ("engine", self._find_engine),
            ("limits", self._limits),
            ("image", self._image),
            ("session", self._session),
        ):
            if not await self._check(name, act):
                return

    async def _check(self, name: str, act: Callable[[], Awaitable[tuple[str, str]]]) -> bool:
        """Run one check: ``act`` returns a detail, and an advice where something could be better."""
        began = time.monotonic()
        try:
            detail, advice = await act()
            finding = Finding(check=name, ok=True, detail=detail, advice=advice)
        except BrokerError as error:
            finding = Finding(check=name, ok=False, detail=error.message, advice=error.hint or "")
        finding.seconds = round(time.monotonic() - began, 2)
        self._take(finding)
        return finding.ok

    async def _folders(self) -> tuple[str, str]:
        config = self._config
        await anyio.to_thread.run_sync(StateFolder(config.state_dir).open)
        # A name of its own: two doctors at once do not meet.
        trial = KernelFolder(config.runtime_dir, new_session_id())
        try:
            await anyio.to_thread.run_sync(
                partial(trial.create, os.geteuid(), os.getegid(), {}, restore="none")
            )
        finally:
            await anyio.to_thread.run_sync(trial.delete)
        free = shutil.disk_usage(config.state_dir).free
        return (
            f"state in {config.state_dir}, sockets in {config.runtime_dir}, {free / 1e9:.0f} GB free",
            "Free some disk: sessions write there." if free < FEW_DISK_BYTES else "",
        )

    async def _kernelspec(self) -> tuple[str, str]:
        self._spec = KernelSpec.load(self._config.kernel.kernelspec)
        return f"{self._spec.display_name}, image {self._image_name}", ""

    async def _find_engine(self) -> tuple[str, str]:
        self._engine = await find_engine(self._config.engine_url, engine_environment())
        info = self._engine.info
        rootless = ", rootless" if info.rootless else ""
        return (
            f"{info.name} {info.version} (API {info.api_version}), cgroup v{info.cgroup_version}{rootless}",
            " ".join(info.warnings),
        )

    async def _limits(self) -> tuple[str, str]:
        wanted, info = self._spec.container(self._config.container), self._engine.info
        detail = (
            f"{wanted.memory_bytes / 2**30:.3g} GiB and {wanted.cpus:g} cores a session; the engine has "
            f"{info.memory_bytes / 2**30:.3g} GiB and {info.cpus} cores"
        )
        if info.memory_bytes and wanted.memory_bytes > info.memory_bytes:
            return detail, f"Set SAGEBROKER_CONTAINER__MEMORY_BYTES below {info.memory_bytes}."
        return detail, ""

    async def _image(self) -> tuple[str, str]:
        async with DockerRuntime(self._engine.url) as runtime:
            try:
                digest = await runtime.image_digest(self._image_name)
            except ImageNotFoundError as error:
                raise ImageNotFoundError(
                    error.message, hint="Make it with: sagebroker image build"
                ) from error
        return f"{self._image_name} is {digest[:19]}", ""

    async def _session(self) -> tuple[str, str]:
        began = time.monotonic()
        async with Broker(self._config) as broker:
            session, _ = await broker.open_session("doctor", private=True)
            ready_s = time.monotonic() - began
            cell = session.submit(ROUND_TRIP_CODE, time_limit_s=ROUND_TRIP_LIMIT_S)
            await cell.wait(2 * ROUND_TRIP_LIMIT_S)
            results = [o.data.get("text/plain") for o in cell.outputs.displays]
            if ROUND_TRIP_ANSWER not in results:
                raise KernelError(
                    f"{ROUND_TRIP_CODE} gave {results or cell.failure}, status {cell.status}.",
                    hint="Prove the image with: sagebroker image check",
                )
            endless = session.submit("while True: pass")
            if not await has_begun(endless):
                raise KernelError(f"A second cell could not be run: {' '.join(endless.notices)}")
            stopped = await session.cancel(endless, "request")
            if stopped is None or not stopped.variables_kept:
                raise KernelError("An endless loop could not be stopped by SIGINT.")
        return (
            f"ready in {ready_s:.1f} s, {ROUND_TRIP_CODE} in {cell.elapsed_s * 1000:.0f} ms, "
            f"an endless loop stopped in {stopped.elapsed_ms:.0f} ms",
            "",
        )

    @property
    def _image_name(self) -> str:
        return self._config.kernel.image or self._spec.broker.image


async def has_begun(cell: Cell) -> bool:
    """Wait until a cell runs; False where it ended without having run."""
    while cell.started_at is None and not cell.status.is_final:
        await cell.wait(START_POLL_S)
    return cell.started_at is not None


def _show(finding: Finding) -> None:
    out.print(f"{'[green]ok  [/]' if finding.ok else '[red]FAIL[/]'} {finding.check:11}", end="")
    out.print(finding.detail, markup=False)
    if finding.advice:
        out.print(f"                 → {finding.advice}", markup=False)
