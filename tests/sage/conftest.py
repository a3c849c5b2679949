"""A broker over the real engine and the real image; everything here carries the marker ``sage``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig


@pytest.fixture(autouse=True)
def _folders_are_empty_afterwards(short_dir: Path) -> Iterator[None]:
    """No test leaves a session's sockets or files behind."""
    yield
    for place in ("run", "state/sessions"):
        folder = short_dir / place
        assert not folder.is_dir() or list(folder.iterdir()) == []


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
