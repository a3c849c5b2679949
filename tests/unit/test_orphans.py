"""What nobody owns: the brakes of the sweep, and what it does and lets be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.left_sessions import change, left_session, names, refuse_writes, stored
from tests.unit.store_rows import cell_row

from sagebroker.container.runtime import ContainerStatus
from sagebroker.container.spec import LABEL_SESSION
from sagebroker.errors import (
    BrokerError,
    ContainerError,
    RuntimeUnavailableError,
    StorageError,
)
from sagebroker.model import CellStatus
from sagebroker.session.launch import Launcher, container_name
from sagebroker.session.opener import Opener
from sagebroker.session.orphans import GRACE_S, Sweep, choose_orphans, most_removals
from sagebroker.store.folders import StateFolder
from sagebroker.store.records import OnEnd
from sagebroker.store.store import Store
from sagebroker.testing.fake_runtime import FakeContainer, FakeRuntime

NOW = 1_000_000.0


def container(session: str, *, age_s: float = GRACE_S + 1) -> ContainerStatus:
    return ContainerStatus(
        id=session,
        name=f"sagebroker-{session}",
        state="running",
        labels={LABEL_SESSION: session},
        created_at=NOW - age_s,
    )


def test_a_container_of_a_known_session_is_not_an_orphan() -> None:
    assert choose_orphans([container("a")], {"a"}, NOW) == []


def test_one_of_an_unknown_session_is_one_once_it_is_old_enough() -> None:
    old, young = container("a"), container("b", age_s=GRACE_S - 1)
    assert choose_orphans([old, young], set(), NOW) == [old]


def test_a_pass_never_removes_more_than_a_fifth_or_five() -> None:
    assert len(choose_orphans([container(str(n)) for n in range(10)], set(), NOW)) == 5
    assert len(choose_orphans([container(str(n)) for n in range(100)], set(), NOW)) == 20
    assert most_removals(0) == 5


# The sweep itself, on an engine in memory.


@pytest.fixture
def sweep(launcher: Launcher, installation: StateFolder, store: Store) -> Sweep:
    return Sweep(launcher, installation, store)


def let_age(path: Path) -> None:
    """Make a folder older than `GRACE_S`."""
    then = path.stat().st_mtime - GRACE_S - 1
    os.utime(path, (then, then))


def container_names(engine: FakeRuntime) -> set[str]:
    return {c.name for c in engine.containers.values()}


async def test_what_was_to_go_with_its_broker_goes_and_what_is_served_or_to_last_stays(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    installation: StateFolder,
    store: Store,
    engine: FakeRuntime,
) -> None:
    left = await left_session(opener, launcher, "left")
    waiting = await left_session(opener, launcher, "waiting", on_end="stay")
    cut_off = await left_session(opener, launcher, "cut off", on_end="hibernate")
    served = await opener.make("served", on_end="close", hibernate="auto")
    asleep = await opener.make("asleep", on_end="hibernate", hibernate="auto")
    asleep.folder.unlock()
    await change(store, asleep.row.id, state="hibernated")
    for folder in installation.list():
        let_age(folder.path)
    assert await sweep.run() == [left.id]
    lasting = {"waiting", "cut off", "served", "asleep"}
    assert set(await names(store)) == lasting
    assert len(installation.list()) == len(lasting)
    assert container_names(engine) == {container_name(waiting.id), container_name(cut_off.id)}
    served.folder.delete()


@pytest.mark.parametrize("on_end", ["stay", "hibernate"])
async def test_of_a_session_that_is_to_last_only_a_container_that_has_ended_goes(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    store: Store,
    engine: FakeRuntime,
    on_end: OnEnd,
) -> None:
    folder = await left_session(opener, launcher, on_end=on_end)
    (folder.files / "f").write_text("kept")
    await store.call(lambda db: db.save(cells=[cell_row(session=folder.id)]))
    before = await stored(store, folder.id)
    await engine.die(container_name(folder.id))
    assert await sweep.run() == [folder.id]
    assert engine.containers == {}
    assert not launcher.kernel_folder(folder.id).path.exists()
    assert (folder.files / "f").read_text() == "kept"
    assert await stored(store, folder.id) == before
    assert await store.call(lambda db: len(db.cells(folder.id))) == 1
    assert folder.owner() is None, "it is not kept locked"
    assert await sweep.run() == [], "there is nothing more"


async def test_a_container_that_was_made_since_the_pass_began_is_spared(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    sessions = [await left_session(opener, launcher, name, on_end="stay") for name in ("a", "b")]
    first, second = sorted(sessions, key=lambda f: f.id)
    await change(store, first.id, on_end="close")
    await engine.die(container_name(second.id))
    row = await stored(store, second.id)

    async def serve_second(removed: FakeContainer) -> None:
        await launcher.launch(row, second, restore="none")

    engine._on_stop = serve_second
    assert await sweep.run() == [first.id]
    assert engine.find(container_name(second.id)).state == "running"
    engine._on_stop = None


@pytest.mark.parametrize(("msg_id", "removed"), [("m", False), ("", True)])
async def test_what_tells_the_end_of_a_cell_that_ran_when_its_broker_was_killed_stays(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    store: Store,
    engine: FakeRuntime,
    msg_id: str,
    removed: bool,
) -> None:
    folder = await left_session(opener, launcher, on_end="hibernate")
    cell = cell_row(session=folder.id, status=CellStatus.QUEUED, msg_id=msg_id)
    await store.call(lambda db: db.save(cells=[cell]))
    await engine.die(container_name(folder.id))
    assert await sweep.run() == ([folder.id] if removed else [])
    assert launcher.kernel_folder(folder.id).path.exists() != removed


async def test_a_container_that_a_sleeping_session_left_running_goes(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="hibernate")
    await change(store, folder.id, state="hibernated")
    assert await sweep.run() == [folder.id]
    assert engine.containers == {}
    assert folder.files.exists()
    assert await names(store) == ["work"]


async def test_a_container_of_a_session_that_is_served_is_spared_in_any_state(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="stay")
    await engine.die(container_name(folder.id))
    await change(store, folder.id, state="hibernated")
    folder.lock()
    assert await sweep.run() == []
    assert container_names(engine) == {container_name(folder.id)}
    folder.unlock()


async def test_a_session_that_cannot_be_removed_does_not_keep_the_others(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    store: Store,
    engine: FakeRuntime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = [await left_session(opener, launcher, name) for name in ("a", "b", "c")]
    first, second, third = sorted(sessions, key=lambda f: f.id)
    (first.path / "lock").unlink()
    (first.path / "lock").mkdir()
    engine.fail("remove", error=ContainerError("It will not go."))
    assert await sweep.run() == [third.id]
    assert "It will not go" in caplog.text
    assert "lock of session" in caplog.text
    assert second.owner() is None, "it is not kept locked"
    assert len(await names(store)) == 2, "it is known still, so that it is tried again"
    assert await sweep.run() == [second.id]


async def test_an_engine_that_is_down_ends_the_pass_and_nothing_is_removed(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    left = await left_session(opener, launcher)
    engine.is_down = True
    with pytest.raises(RuntimeUnavailableError):
        await sweep.run()
    assert left.files.exists()
    assert await names(store) == ["work"]


async def test_sessions_that_cannot_be_listed_end_the_pass_and_nothing_is_removed(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    installation: StateFolder,
    engine: FakeRuntime,
) -> None:
    await left_session(opener, launcher)
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    installation.sessions.rename(installation.path / "elsewhere")
    with pytest.raises(BrokerError, match="cannot be listed"):
        await sweep.run()
    assert list(engine.containers.values()) == [container]


async def test_a_store_that_cannot_be_read_ends_the_pass_and_nothing_is_removed(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    installation: StateFolder,
    store: Store,
    engine: FakeRuntime,
) -> None:
    left = await left_session(opener, launcher)
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    left.path.rename(installation.path / "elsewhere")
    await store.call(lambda db: db._sql.execute("ALTER TABLE sessions RENAME TO lost"))
    with pytest.raises(StorageError):
        await sweep.run()
    assert list(engine.containers.values()) == [container]


async def test_what_the_store_refuses_to_forget_is_tried_again(
    sweep: Sweep,
    opener: Opener,
    launcher: Launcher,
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = await left_session(opener, launcher)
    await refuse_writes(store)
    assert await sweep.run() == []
    assert "cannot be written" in caplog.text
    assert not left.path.exists()
    assert await names(store) == ["work"]
    await refuse_writes(store, refusing=False)
    assert await sweep.run({left.id}) == []
    assert await sweep.run() == [left.id]
    assert await names(store) == []


async def test_the_cells_of_a_session_that_is_to_last_stay_though_its_folder_is_lost(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="hibernate")
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    folder.lock()
    folder.delete()
    assert await sweep.run() == []
    assert await names(store) == ["work"]
    assert list(engine.containers.values()) == [container]


async def test_a_session_of_this_process_is_spared_whatever_disk_and_store_say(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    session = await left_session(opener, launcher)
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    assert await sweep.run({session.id}) == []
    session.delete()
    assert await sweep.run({session.id}) == []
    await store.call(lambda db: db.remove_session(session.id))
    assert await sweep.run({session.id}) == []
    assert list(engine.containers.values()) == [container]
    assert await sweep.run() == [session.id]
    assert engine.containers == {}


async def test_a_folder_of_a_session_that_never_began_goes_once_it_is_old(
    sweep: Sweep, installation: StateFolder
) -> None:
    blank, served = (installation.create(c * 10) for c in "ab")
    blank.unlock()
    assert await sweep.run() == []
    for folder in (blank, served):
        let_age(folder.path)
    assert await sweep.run() == [blank.id]
    assert {f.id for f in installation.list()} == {served.id}
    served.delete()


@pytest.mark.parametrize("place", ["files", "checkpoints", "outputs"])
async def test_a_folder_with_something_in_it_is_never_removed_though_the_store_is_lost(
    sweep: Sweep, opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime, place: str
) -> None:
    folder = await left_session(opener, launcher)
    (folder.path / place).mkdir(exist_ok=True)
    (folder.path / place / "f").write_text("somebody's")
    await store.call(lambda db: db.remove_session(folder.id))
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    let_age(folder.path)
    assert await sweep.run() == []
    assert (folder.path / place / "f").read_text() == "somebody's"
    assert list(engine.containers.values()) == [container]
    assert folder.owner() is None, "it is not kept locked"
    await engine.die(container.id)
    assert await sweep.run() == [folder.id]
    assert engine.containers == {}, "a container that has ended is of no use to anybody"
    assert (folder.path / place / "f").read_text() == "somebody's"


async def test_a_pass_over_many_sessions_keeps_to_its_brake(
    sweep: Sweep, opener: Opener, store: Store
) -> None:
    for n in range(7):
        (await opener.make(f"s{n}", on_end="close", hibernate="auto")).folder.unlock()
    assert len(await sweep.run()) == most_removals(0)
    assert len(await names(store)) == 2
    assert len(await sweep.run()) == 2


def test_containers_that_are_no_sessions_take_no_places_in_a_pass() -> None:
    others = [replace(container(str(n)), name=f"other-{n}") for n in range(10)]
    assert choose_orphans([*others, container("a")], set(), NOW) == [container("a")]


async def test_a_session_whose_maker_was_killed_goes_once_it_is_old_unless_something_is_in_it(
    sweep: Sweep, opener: Opener, installation: StateFolder, store: Store
) -> None:
    new, old, used = [
        (await opener.make(name, on_end="hibernate", hibernate="auto")).folder
        for name in ("new", "old", "used")
    ]
    (used.files / "f").write_text("somebody's")
    for folder in (new, old, used):
        folder.unlock()
    let_age(old.path)
    let_age(used.path)
    assert await sweep.run() == [old.id]
    assert await names(store) == ["new", "used"]
