"""Removing sessions from outside while others do the same."""

from __future__ import annotations

import anyio
import pytest

from sagebroker.errors import SessionInUseError
from sagebroker.session.catalogue import Catalogue
from sagebroker.session.launch import Launcher
from sagebroker.session.orphans import remove_orphans
from sagebroker.store.folders import SessionFolder, StateFolder
from sagebroker.testing.fake_runtime import FakeRuntime


@pytest.fixture
def catalogue(launcher: Launcher, installation: StateFolder, engine: FakeRuntime) -> Catalogue:
    return Catalogue(launcher, installation, engine)


async def left_session(launcher: Launcher) -> SessionFolder:
    """A session whose broker has ended."""
    folder, record = await launcher.reserve("work", keep=False)
    await launcher.launch(record, folder, restore=False)
    folder.unlock()
    return folder


async def test_a_session_that_is_removed_meanwhile_is_closed(
    catalogue: Catalogue, launcher: Launcher
) -> None:
    folder = await left_session(launcher)
    entry = await catalogue.find("work")
    folder.lock()
    folder.delete()
    await catalogue.close(entry)
    assert await catalogue.list() == []


async def test_closing_waits_for_a_search_for_orphans_that_was_first(
    catalogue: Catalogue, launcher: Launcher, installation: StateFolder, engine: FakeRuntime
) -> None:
    folder = await left_session(launcher)
    engine.delay("remove", 1.0)  # longer than a lock is waited for
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            tg.start_soon(remove_orphans, launcher, installation)
            while engine.calls[-1][0] != "remove":
                await anyio.sleep(0.01)
            entry = await catalogue.find("work")
            assert entry.owner is None
            await catalogue.close(entry)
    assert not folder.path.exists()
    assert engine.containers == {}


async def test_a_session_that_somebody_has_begun_to_serve_is_not_closed(
    catalogue: Catalogue, launcher: Launcher
) -> None:
    folder = await left_session(launcher)
    entry = await catalogue.find("work")
    folder.lock()
    with pytest.raises(SessionInUseError, match="served by another"):
        await catalogue.close(entry)
    assert folder.read() is not None
    folder.unlock()
