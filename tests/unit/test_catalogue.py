"""Sessions seen and removed from outside, while others do the same."""

from __future__ import annotations

import anyio
import pytest
from tests.unit.left_sessions import change, left_session, names

from sagebroker.errors import RuntimeUnavailableError, SessionInUseError, SessionNotFoundError
from sagebroker.session.catalogue import Catalogue
from sagebroker.session.launch import Launcher, container_name
from sagebroker.session.opener import Opener
from sagebroker.session.orphans import Sweep
from sagebroker.store.folders import StateFolder
from sagebroker.store.store import Store
from sagebroker.testing.fake_runtime import FakeRuntime


@pytest.fixture
def catalogue(
    launcher: Launcher, installation: StateFolder, store: Store, engine: FakeRuntime
) -> Catalogue:
    return Catalogue(launcher, installation, store, engine)


async def test_every_session_is_listed_with_what_it_is_doing(
    catalogue: Catalogue, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    asleep, ended, waiting = [
        await left_session(opener, launcher, name, on_end="stay")
        for name in ("asleep", "ended", "waiting")
    ]
    never = await opener.make("never", on_end="close", hibernate="auto")
    never.folder.unlock()
    served = await opener.make("served", on_end="close", hibernate="auto")
    await change(store, asleep.id, state="hibernated")
    await change(store, served.row.id, state="hibernated")  # as while it is being woken
    await engine.die(container_name(ended.id))
    states = {entry.row.name: entry.state for entry in await catalogue.list()}
    assert list(states.items()) == [
        ("asleep", "asleep"),
        ("ended", "no kernel"),
        ("never", "no kernel"),
        ("served", "served"),
        ("waiting", "waiting"),
    ]
    found = await catalogue.find(waiting.id)
    assert (found.row.name, found.owner) == ("waiting", None)
    assert found.container is not None
    served.folder.unlock()


async def test_a_name_that_no_session_has_is_told_with_those_there_are(
    catalogue: Catalogue, opener: Opener, launcher: Launcher
) -> None:
    await left_session(opener, launcher, "work")
    with pytest.raises(SessionNotFoundError, match="work"):
        await catalogue.find("wrok")


async def test_a_session_that_sleeps_is_closed_with_its_files_and_cells(
    catalogue: Catalogue, opener: Opener, installation: StateFolder, store: Store
) -> None:
    found = await opener.make("work", on_end="hibernate", hibernate="auto")
    (found.folder.files / "f").write_text("x")
    found.folder.unlock()
    await change(store, found.row.id, state="hibernated")
    await catalogue.close(await catalogue.find("work"))
    assert installation.list() == []
    assert await names(store) == []


async def test_a_session_that_is_removed_meanwhile_is_closed(
    catalogue: Catalogue, opener: Opener, launcher: Launcher, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher)
    entry = await catalogue.find("work")
    folder.lock()
    folder.delete()
    await catalogue.close(entry)
    assert await catalogue.list() == []
    assert engine.containers == {}


async def test_closing_waits_for_a_search_for_orphans_that_was_first(
    catalogue: Catalogue,
    opener: Opener,
    launcher: Launcher,
    installation: StateFolder,
    store: Store,
    engine: FakeRuntime,
) -> None:
    folder = await left_session(opener, launcher)
    engine.delay("remove", 1.0)  # longer than a lock is waited for
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tg:
            tg.start_soon(Sweep(launcher, installation, store).run)
            while engine.calls[-1][0] != "remove":
                await anyio.sleep(0.01)
            entry = await catalogue.find("work")
            assert entry.owner is None
            await catalogue.close(entry)
    assert not folder.path.exists()
    assert engine.containers == {}
    assert await names(store) == []


async def test_a_session_that_somebody_serves_is_not_closed(
    catalogue: Catalogue, opener: Opener, launcher: Launcher, store: Store
) -> None:
    folder = await left_session(opener, launcher)
    before = await catalogue.find("work")
    folder.lock()
    with pytest.raises(SessionInUseError, match="served by another"):
        await catalogue.close(before)
    with pytest.raises(SessionInUseError, match="sage_close"):
        await catalogue.close(await catalogue.find("work"))
    assert folder.files.exists()
    assert await names(store) == ["work"]
    folder.unlock()


async def test_a_session_that_cannot_be_closed_now_is_not_kept_locked(
    catalogue: Catalogue, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher)
    entry = await catalogue.find("work")
    engine.fail("remove")
    with pytest.raises(RuntimeUnavailableError):
        await catalogue.close(entry)
    assert folder.owner() is None
    assert await names(store) == ["work"]
    await catalogue.close(entry)
    assert await names(store) == []
