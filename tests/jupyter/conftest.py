"""Jupyter's tools on sessions of a server whose containers are plain ipykernels."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from tests.interaction.conftest import local_serve
from tests.serving import Served, serving

from sagebroker.config import BrokerConfig
from sagebroker.jupyter import specs
from sagebroker.jupyter.link import Link

TOOL_LIMIT_S = 120.0
END_LIMIT_S = 60.0


@dataclass(frozen=True)
class Jupyter:
    """A place where Jupyter's tools find our kernelspec, and a server for its sessions."""

    folder: Path
    config: BrokerConfig
    environment: dict[str, str]

    @property
    def link(self) -> Link:
        return Link(self.config)

    async def names(self) -> list[str]:
        """The names of all sessions."""
        return sorted(session["name"] for session in await self.link.sessions())

    def install(self, session: str = "") -> str:
        """Install a kernelspec; returns its name."""
        prefix = str(self.folder / "prefix")
        return specs.install(self.config, session=session, prefix=prefix).name

    async def run(self, *command: str, code: int = 0) -> str:
        """What a tool of this environment's Python prints; it must leave with ``code``."""
        with anyio.fail_after(TOOL_LIMIT_S):
            done = await anyio.run_process(
                [sys.executable, "-m", *command], check=False, env=self.environment, stderr=-2
            )
        assert done.returncode == code, done.stdout.decode()
        return done.stdout.decode()


def places(folder: Path) -> dict[str, str]:
    """The variables that tell Jupyter's tools, and ours, to stay in ``folder``."""
    return {
        "SAGEBROKER_STATE_DIR": str(folder / "state"),
        "SAGEBROKER_RUNTIME_DIR": str(folder / "run"),
        "JUPYTER_PATH": str(folder / "prefix" / "share" / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def await_server_end(config: BrokerConfig) -> None:
    """Wait for a server that was started in the background to end by itself; it leaves nothing."""
    deadline = time.monotonic() + END_LIMIT_S
    own = f"SAGEBROKER_STATE_DIR={config.state_dir}\0".encode()
    while any(own in environment for environment in _environments_of_servers()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(config.runtime_dir.glob("*")) == []


def _environments_of_servers() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        # Any of them may end meanwhile.
        with suppress(OSError):
            if b"serve\0--local" in (process / "cmdline").read_bytes():
                yield (process / "environ").read_bytes()


@pytest.fixture
def prepared(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Jupyter:
    """Without a server."""
    for name, value in places(short_dir).items():
        monkeypatch.setenv(name, value)
    config = BrokerConfig(state_dir=short_dir / "state", runtime_dir=short_dir / "run")
    return Jupyter(short_dir, config, {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"})


@pytest.fixture
async def served(prepared: Jupyter) -> AsyncIterator[Served]:
    async with serving(local_serve(prepared.folder), prepared.folder / "state") as found:
        yield found


@pytest.fixture
def jupyter(prepared: Jupyter, served: Served) -> Iterator[Jupyter]:
    """With a server, and our kernelspec installed. Afterwards no manager's links are left."""
    prepared.install()
    yield prepared
    assert list((prepared.folder / "run").glob("links-*")) == []
