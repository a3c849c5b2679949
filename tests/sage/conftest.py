"""A broker over the real engine and the real image; everything here carries the marker ``sage``."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from mcp import Client
from tests.conftest import PREFIX, remove_folder
from tests.serving import REAL_STDIO, real_server_env

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig


@pytest.fixture(autouse=True)
def _folders_are_empty_afterwards(short_dir: Path) -> Iterator[None]:
    """No test leaves a session's sockets or files behind."""
    yield
    for place in ("run", "state/sessions"):
        folder = short_dir / place
        assert not folder.is_dir() or list(folder.iterdir()) == []


@pytest.fixture(scope="module")
async def client(sage_image: str) -> AsyncIterator[Client]:
    """A client over stdio of one server process for all tests of a module; they use one session."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    env = real_server_env(folder, sage_image)
    try:
        async with Client(REAL_STDIO.model_copy(update={"env": env}), mode="auto") as opened:
            yield opened
            await opened.call_tool("sage_close", {"session": "default"})
        for place in ("run", "state/sessions"):
            assert not list((folder / place).glob("*")), "the server left something behind"
    finally:
        remove_folder(folder)


@pytest.fixture
async def broker(config: BrokerConfig, sage_image: str) -> AsyncIterator[Broker]:
    async with Broker(config) as opened:
        yield opened
        runtime = await opened.runtime()
        for session in opened.sessions():
            await opened.close_session(session.name)
        catalogue = await opened.catalogue()
        assert await catalogue.list() == []
        assert await runtime.list(opened.own_labels) == []
