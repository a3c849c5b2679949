"""The container engine is restarted while cells run, with and without its ``--live-restore``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import docker
import psutil
import pytest
from docker.errors import DockerException
from requests.exceptions import RequestException
from tests.cells import LIMIT_S, ended, result, started
from tests.chaos.remains import unmount

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.model import CellStatus, ExitCause
from sagebroker.session.cell import Cell
from sagebroker.session.session import Session

pytestmark = [
    pytest.mark.sage,
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start an engine"),
    pytest.mark.skipif(shutil.which("dockerd") is None, reason="there is no dockerd to start"),
]

COUNTS = """
import time
for i in range(100):
    print(i, flush=True)
    time.sleep(float(0.1))
after = 8
"""

LOAD_LIMIT_S = 300
"""Bringing the image to another engine takes 48 s (measured)."""


class Engine:
    """A dockerd of the tests' own, apart from the machine's."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/d.sock"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, live_restore: bool) -> None:
        """Start it, and return when it answers."""
        command = ["dockerd", "--host", self.url, "--storage-driver", "overlay2"]
        command += ["--pidfile", f"{self._folder}/d.pid", "--data-root", f"{self._folder}/data"]
        command += ["--exec-root", f"{self._folder}/exec", "--bridge", "none"]
        command += ["--iptables=false", "--ip6tables=false"]
        command += ["--live-restore"] if live_restore else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        until = time.monotonic() + LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def stop(self) -> None:
        """End it as an upgrade does, by SIGTERM; harmless where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def load(self, image: str) -> None:
        """Bring an image of the machine's engine here."""
        with (
            contextlib.closing(docker.from_env(version="auto", timeout=LOAD_LIMIT_S)) as there,
            contextlib.closing(self._client(LOAD_LIMIT_S)) as here,
        ):
            # The annotation knows files only; what is given is sent as it comes.
            here.images.load(there.images.get(image).save(named=True))  # type: ignore[arg-type]

    def remove_containers(self) -> None:
        with contextlib.closing(self._client(30)) as here:
            for container in here.containers.list(all=True):
                container.remove(force=True)

    def end_helpers(self) -> None:
        """End what a dockerd may leave behind: its containerd, which names its folder."""
        for process in psutil.process_iter(["name", "cmdline"]):
            found = " ".join(process.info["cmdline"] or ())
            if process.info["name"].startswith("containerd") and f"{self._folder}/" in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
                    process.wait(LIMIT_S)

    @property
    def log(self) -> Path:
        return self._folder / "dockerd.log"

    def _client(self, timeout_s: int) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.url, version="auto", timeout=timeout_s)

    def _answers(self) -> bool:
        if not Path(self.url.removeprefix("unix://")).exists():
            return False
        try:
            with contextlib.closing(self._client(5)) as here:
                here.ping()
        except (DockerException, RequestException):
            return False
        return True


@pytest.fixture(scope="module")
def stopped_engine(sage_image: str) -> Iterator[Engine]:
    """An engine that has the image, and does not run."""
    folder = Path(tempfile.mkdtemp(prefix=f"sb{os.getpid()}-", dir="/tmp"))
    engine = Engine(folder)
    try:
        engine.start(live_restore=False)
        engine.load(sage_image)
        engine.stop()
        yield engine
    finally:
        engine.stop()
        engine.end_helpers()
        unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def engine(
    stopped_engine: Engine, request: pytest.FixtureRequest, short_dir: Path
) -> AsyncIterator[Engine]:
    """It runs; afterwards it has no containers, and does not run."""
    stopped_engine.start(live_restore=request.param)
    try:
        yield stopped_engine
    finally:
        if stopped_engine._process is None:
            stopped_engine.start(live_restore=request.param)
        stopped_engine.remove_containers()
        stopped_engine.stop()
        unmount(short_dir)


@pytest.fixture
async def broker(engine: Engine, config: BrokerConfig) -> AsyncIterator[Broker]:
    async with Broker(config.model_copy(update={"engine_url": engine.url})) as opened:
        yield opened
        runtime = await opened.runtime()
        for session in opened.sessions():
            await opened.close_session(session.name)
        assert await runtime.list(opened.own_labels) == []


@pytest.mark.parametrize("engine", [True], indirect=True, ids=["live-restore"])
async def test_with_live_restore_cells_go_on_and_start_while_the_engine_is_away(
    engine: Engine, broker: Broker
) -> None:
    session, _ = await broker.open_session("one")
    other, _ = await broker.open_session("two")
    await ended(session, "before = 7")
    cell = await started(session, COUNTS)
    container = session.container
    with anyio.fail_after(LIMIT_S):
        await anyio.to_thread.run_sync(engine.stop)
        assert result(await ended(other, "2^10")) == "1024"
        await anyio.to_thread.run_sync(lambda: engine.start(live_restore=True))
        assert await cell.wait(LIMIT_S)
    assert cell.status is CellStatus.OK, cell.notices
    assert cell.outputs.stdout.text() == "".join(f"{i}\n" for i in ["started", *range(100)])
    assert result(await ended(session, "before + after")) == "15"
    assert session.container == container
    assert session.take_notices() == []


WITHOUT = pytest.mark.parametrize("engine", [False], indirect=True, ids=["no live-restore"])


async def restart_under(session: Session, engine: Engine) -> Cell:
    """The cell that runs in ``session`` while an engine restarts which ends its containers over it."""
    await ended(session, "before = 7")
    await session.checkpoint()
    cell = await started(session, COUNTS)
    with anyio.fail_after(LIMIT_S):
        await anyio.to_thread.run_sync(engine.stop)
        await anyio.to_thread.run_sync(lambda: engine.start(live_restore=False))
        assert await cell.wait(LIMIT_S)
    return cell


@WITHOUT
async def test_without_live_restore_the_loss_is_told_and_a_restart_brings_the_variables_back(
    engine: Engine, broker: Broker
) -> None:
    session, _ = await broker.open_session("one")
    cell = await restart_under(session, engine)
    assert cell.status is CellStatus.DIED
    assert cell.exit is not None
    assert cell.exit.cause is ExitCause.CONTAINER_GONE
    assert "disappeared with its container" in " ".join(cell.notices)
    answer = await session.restart(restore="newest")
    assert "1 variables as they were after in[1]" in answer.lower()
    assert result(await ended(session, "(before, 'after' in globals())")) == "(7, False)"


@WITHOUT
async def test_without_live_restore_the_next_cell_has_the_variables_of_the_checkpoint(
    engine: Engine, broker: Broker
) -> None:
    session, _ = await broker.open_session("one")
    cell = await restart_under(session, engine)
    after = await ended(session, "(before, 'after' in globals())")
    assert result(after) == "(7, False)"
    told = " ".join([*cell.notices, *after.notices, *session.take_notices()])
    assert "1 variables as they were after In[1]" in told
