"""What a session leaves behind, by how it ends and what fails then."""

from __future__ import annotations

import pytest
from tests.unit.left_sessions import names, refuse_writes, stored

from sagebroker.config import SessionConfig, TranscriptConfig
from sagebroker.model import CellStatus
from sagebroker.session.desk import Desk
from sagebroker.session.ending import End, Ending
from sagebroker.session.found import Found
from sagebroker.session.launch import Launcher
from sagebroker.session.opener import Opener
from sagebroker.session.orphans import Sweep
from sagebroker.session.saving import RowKeeper
from sagebroker.session.transcript import Transcript
from sagebroker.store.folders import StateFolder
from sagebroker.store.store import Store
from sagebroker.testing.fake_runtime import FakeRuntime


class Served:
    """A session with a container and a cell that has ended and is not stored yet."""

    def __init__(self, found: Found, launcher: Launcher, store: Store) -> None:
        self.id = found.row.id
        self.folder = found.folder
        transcript = Transcript(
            store,
            found.row.id,
            limits=SessionConfig(),
            retention=TranscriptConfig(),
            on_trouble=lambda _: None,
            on_stored=lambda _: None,
        )
        self.desk = Desk(found, SessionConfig(), transcript.changed)
        cell = self.desk.queue.add("1", None)
        assert self.desk.queue.take() is cell
        cell.finish(CellStatus.OK)
        keeper = RowKeeper(store, found.row)
        self.ending = Ending(found, self.desk, keeper, launcher, transcript)
        self.ending.was_ready = True

    async def end(self, how: End, *notices: str) -> None:
        """End it as somebody wants."""
        self.desk.notices += notices
        self.ending.wish = how
        await self.ending.run()


@pytest.fixture
async def served(opener: Opener, launcher: Launcher, store: Store) -> Served:
    found = await opener.make("work", on_end="hibernate", hibernate="auto")
    await launcher.launch(found.row, found.folder, restore="none")
    return Served(found, launcher, store)


async def test_a_closed_session_leaves_nothing(
    served: Served, installation: StateFolder, store: Store, engine: FakeRuntime
) -> None:
    await served.end("close")
    assert served.ending.is_removed
    assert engine.containers == {}
    assert installation.list() == []
    assert await names(store) == []


async def test_a_sleeping_session_leaves_its_files_cells_and_notices(
    served: Served, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    await served.end("hibernate", "One.")
    row = await stored(store, served.id)
    assert (row.state, row.notices, row.on_end) == ("hibernated", ("One.",), "hibernate")
    assert row.active_at > 1.7e9
    assert len(await store.call(lambda db: db.cells(served.id))) == 1
    assert engine.containers == {}
    assert not launcher.kernel_folder(served.id).path.exists()
    assert served.folder.files.exists()
    assert served.folder.owner() is None
    assert not served.ending.is_removed


async def test_one_that_stays_leaves_its_kernel_too(
    served: Served, store: Store, engine: FakeRuntime
) -> None:
    before = await stored(store, served.id)
    await served.end("stay", "One.")
    row = await stored(store, served.id)
    assert (row.state, row.notices) == (before.state, ("One.",))
    assert len(await store.call(lambda db: db.cells(served.id))) == 1
    assert [c.state for c in engine.containers.values()] == ["running"]
    assert served.folder.owner() is None


async def test_a_cell_that_runs_on_with_its_kernel_is_left_running(
    served: Served, store: Store
) -> None:
    served.desk.abandoned = cell = served.desk.queue.add("2", None)
    assert served.desk.queue.take() is cell
    cell.start("m", 1)
    await served.end("stay")
    (left,) = await store.call(lambda db: db.unfinished_cells(served.id))
    assert (left.status, left.msg_id) == (CellStatus.RUNNING, "m")


async def test_a_cell_that_runs_when_its_session_falls_asleep_ends_with_it(
    served: Served, store: Store
) -> None:
    served.desk.abandoned = cell = served.desk.queue.add("2", None)
    assert served.desk.queue.take() is cell
    cell.start("m", 1)
    await served.end("hibernate")
    assert await store.call(lambda db: db.unfinished_cells(served.id)) == []
    assert cell.status is CellStatus.INTERRUPTED
    assert "closed while the cell ran" in cell.notices[0]


async def test_one_that_was_never_reached_is_as_it_was_found(
    served: Served, store: Store, engine: FakeRuntime
) -> None:
    before = await stored(store, served.id)
    await served.end("leave", "One.")
    assert await stored(store, served.id) == before
    assert [c.state for c in engine.containers.values()] == ["running"]
    assert served.folder.owner() is None


async def test_a_session_that_cannot_be_closed_whole_is_marked_so_that_the_sweep_goes_on_with_it(
    served: Served,
    launcher: Launcher,
    installation: StateFolder,
    store: Store,
    engine: FakeRuntime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.is_down = True
    await served.end("close")
    assert not served.ending.is_removed
    assert "is not removed yet" in caplog.text
    assert (await stored(store, served.id)).on_end == "close"
    assert served.folder.owner() is None
    engine.is_down = False
    assert await Sweep(launcher, installation, store).run() == [served.id]
    assert await names(store) == []
    assert engine.containers == {}


async def test_a_session_whose_container_cannot_be_removed_sleeps_all_the_same(
    served: Served, launcher: Launcher, installation: StateFolder, store: Store, engine: FakeRuntime
) -> None:
    engine.fail("remove")
    await served.end("hibernate")
    assert (await stored(store, served.id)).state == "hibernated"
    assert await Sweep(launcher, installation, store).run() == [served.id]
    assert engine.containers == {}
    assert await names(store) == ["work"]


async def test_a_session_that_the_store_does_not_let_sleep_keeps_its_container(
    served: Served, store: Store, engine: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    await refuse_writes(store)
    await served.end("hibernate")
    assert "did not end cleanly" in caplog.text
    assert (await stored(store, served.id)).state == "reserved"
    assert [c.state for c in engine.containers.values()] == ["running"]
    assert served.folder.owner() is None
    await refuse_writes(store, refusing=False)
