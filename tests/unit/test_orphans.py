"""What nobody owns: the brakes of the sweep, and what it does and lets be."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sagebroker.container.runtime import ContainerStatus
from sagebroker.container.spec import LABEL_SESSION
from sagebroker.errors import BrokerError, ContainerError, RuntimeUnavailableError
from sagebroker.session.launch import Launcher, container_name
from sagebroker.session.orphans import GRACE_S, choose_orphans, most_removals, remove_orphans
from sagebroker.store.folders import SessionFolder, StateFolder
from sagebroker.testing.fake_runtime import FakeRuntime

NOW = 1_000_000.0


def container(session: str, *, age_s: float = GRACE_S + 1) -> ContainerStatus:
    return ContainerStatus(
        id=session,
        name=f"sagebroker-{session}",
        state="running",
        labels={LABEL_SESSION: session},
        created_at=NOW - age_s,
    )


def test_a_container_with_a_folder_is_not_an_orphan() -> None:
    assert choose_orphans([container("a")], {"a"}, NOW) == []


def test_a_container_without_a_folder_is_one_once_it_is_old_enough() -> None:
    old, young = container("a"), container("b", age_s=GRACE_S - 1)
    assert choose_orphans([old, young], set(), NOW) == [old]


def test_a_pass_never_removes_more_than_a_fifth_or_five() -> None:
    assert len(choose_orphans([container(str(n)) for n in range(10)], set(), NOW)) == 5
    assert len(choose_orphans([container(str(n)) for n in range(100)], set(), NOW)) == 20
    assert most_removals(0) == 5


# The sweep itself, on an engine in memory.


async def left_session(launcher: Launcher, *, keep: bool = False) -> SessionFolder:
    """A session with a container whose broker has ended."""
    folder, record = await launcher.reserve("work", keep=keep)
    await launcher.launch(record, folder, restore=False)
    folder.unlock()
    return folder


def let_age(path: Path) -> None:
    """Make a folder older than `GRACE_S`."""
    then = path.stat().st_mtime - GRACE_S - 1
    os.utime(path, (then, then))


async def test_what_nobody_serves_goes_and_what_is_to_stay_stays(
    launcher: Launcher, installation: StateFolder, engine: FakeRuntime
) -> None:
    left = await left_session(launcher)
    kept = await left_session(launcher, keep=True)
    served, _ = await launcher.reserve("other", keep=False)
    assert await remove_orphans(launcher, installation) == [left.id]
    assert {f.id for f in installation.list()} == {kept.id, served.id}
    assert [c.name for c in engine.containers.values()] == [container_name(kept.id)]
    served.delete()


async def test_a_session_that_cannot_be_removed_does_not_keep_the_others(
    launcher: Launcher,
    installation: StateFolder,
    engine: FakeRuntime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions = sorted([await left_session(launcher) for _ in range(3)], key=lambda f: f.id)
    first, second, third = sessions
    (first.path / "lock").unlink()
    (first.path / "lock").mkdir()
    engine.fail("remove", error=ContainerError("It will not go."))
    assert await remove_orphans(launcher, installation) == [third.id]
    assert "It will not go" in caplog.text
    assert "lock of session" in caplog.text
    assert second.owner() is None, "it is not kept locked"
    assert await remove_orphans(launcher, installation) == [second.id]


async def test_an_engine_that_is_down_ends_the_pass_and_nothing_is_removed(
    launcher: Launcher, installation: StateFolder, engine: FakeRuntime
) -> None:
    left = await left_session(launcher)
    engine.is_down = True
    with pytest.raises(RuntimeUnavailableError):
        await remove_orphans(launcher, installation)
    assert left.read() is not None


async def test_sessions_that_cannot_be_listed_end_the_pass_and_nothing_is_removed(
    launcher: Launcher, installation: StateFolder, engine: FakeRuntime
) -> None:
    await left_session(launcher)
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    installation.sessions.rename(installation.path / "elsewhere")
    with pytest.raises(BrokerError, match="cannot be listed"):
        await remove_orphans(launcher, installation)
    assert list(engine.containers.values()) == [container]


async def test_a_session_of_this_process_is_spared_though_its_folder_was_deleted(
    launcher: Launcher, installation: StateFolder, engine: FakeRuntime
) -> None:
    session = await left_session(launcher)
    (container,) = engine.containers.values()
    container.created_at -= GRACE_S + 1
    assert await remove_orphans(launcher, installation, {session.id}) == []
    session.delete()
    assert await remove_orphans(launcher, installation, {session.id}) == []
    assert list(engine.containers.values()) == [container]
    assert await remove_orphans(launcher, installation) == [session.id]
    assert engine.containers == {}


async def test_a_folder_of_a_session_that_never_began_goes_once_it_is_old(
    launcher: Launcher, installation: StateFolder
) -> None:
    blank, served, full = (installation.create(c * 10) for c in "abc")
    blank.unlock()
    full.unlock()
    (full.files / "f").write_text("somebody's")
    assert await remove_orphans(launcher, installation) == []
    for folder in (blank, served, full):
        let_age(folder.path)
    assert await remove_orphans(launcher, installation) == [blank.id]
    assert {f.id for f in installation.list()} == {served.id, full.id}
    served.delete()


async def test_a_damaged_record_is_somebodys_to_look_at(
    launcher: Launcher, installation: StateFolder
) -> None:
    folder = installation.create("a" * 10)
    (folder.path / "session.json").write_text("{")
    folder.unlock()
    let_age(folder.path)
    assert await remove_orphans(launcher, installation) == []
    assert folder.path.exists()


def test_containers_that_are_no_sessions_take_no_places_in_a_pass() -> None:
    others = [replace(container(str(n)), name=f"other-{n}") for n in range(10)]
    assert choose_orphans([*others, container("a")], set(), NOW) == [container("a")]
