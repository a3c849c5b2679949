"""What tests of files and containers need: an ordinary user, a store, and an engine in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.unit.store_rows import session_row
from tests.unit.transcripts import ID, Scene

from sagebroker.config import BrokerConfig
from sagebroker.session.launch import Launcher
from sagebroker.session.opener import Opener
from sagebroker.store.folders import StateFolder
from sagebroker.store.store import Store
from sagebroker.testing.fake_runtime import FakeRuntime

NOBODY = 65_534

# Rights mean something to an ordinary user only.
# Everything is imported before the change of user: the interpreter may lie where others cannot look.
_PRELUDE = f"""
import encodings.ascii, os, sys
from pathlib import Path
from sagebroker.errors import BrokerError
from sagebroker.kernel.folders import KernelFolder
from sagebroker.session.files import used_bytes
from sagebroker.store.folders import SessionFolder, StateFolder
from sagebroker.store.trees import remove_tree
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
root = Path(sys.argv[1])
"""


@pytest.fixture
def as_ordinary_user(short_dir: Path) -> Callable[[str], str]:
    """Run Python code as a user without privileges who owns ``root``; returns what it prints."""
    if os.geteuid() == 0:
        os.chown(short_dir, NOBODY, NOBODY)

    def run(code: str) -> str:
        command = [sys.executable, "-c", _PRELUDE + code, str(short_dir)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
def installation(config: BrokerConfig) -> StateFolder:
    return StateFolder(config.state_dir)


@pytest.fixture
async def store(installation: StateFolder) -> AsyncIterator[Store]:
    """The store of `installation`, as a broker opens it."""
    installation.open()
    async with Store.open(
        installation.database, lambda session: installation.folder(session).outputs
    ) as store:
        yield store


@pytest.fixture
async def engine(sage_image: str) -> AsyncIterator[FakeRuntime]:
    runtime = FakeRuntime(images={sage_image: "sha256:" + "0" * 64})
    yield runtime
    await runtime.aclose()


@pytest.fixture
async def launcher(
    config: BrokerConfig, installation: StateFolder, engine: FakeRuntime
) -> AsyncIterator[Launcher]:
    """A launcher on `engine` for `installation`; what it made is removed after the test."""

    async def runtime() -> FakeRuntime:
        return engine

    launcher = Launcher(config, installation.open(), runtime)
    yield launcher
    engine.is_down = False
    if config.runtime_dir.exists():
        for path in config.runtime_dir.iterdir():
            await launcher.discard(path.name)


@pytest.fixture
def opener(
    config: BrokerConfig, launcher: Launcher, installation: StateFolder, store: Store
) -> Opener:
    return Opener(config, launcher, installation, store)


@pytest.fixture
async def known(store: Store, installation: StateFolder) -> Store:
    """A store that knows a session."""
    installation.create(ID).unlock()
    await store.call(lambda db: db.add_session(session_row(ID)))
    return store


@pytest.fixture
def scene(known: Store) -> Scene:
    return Scene(known)
