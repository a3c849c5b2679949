"""Launching, finding again and discarding the containers of sessions, on an engine in memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import anyio
import pytest

from sagebroker.container.spec import LABEL_INSTANCE
from sagebroker.errors import (
    ConfigError,
    ContainerConflictError,
    ContainerError,
    KernelStartError,
    RuntimeUnavailableError,
    StorageError,
)
from sagebroker.kernel.folders import KernelFolder
from sagebroker.session.launch import Launcher, container_name
from sagebroker.session.reservation import reserve
from sagebroker.store.folders import SessionFolder, StateFolder
from sagebroker.store.records import OnEnd, SessionRow
from sagebroker.testing.fake_runtime import FakeContainer, FakeRuntime, Operation

Reserved = tuple[SessionFolder, SessionRow]
Launched = tuple[SessionFolder, SessionRow, FakeContainer]


@pytest.fixture
def reserved(launcher: Launcher, installation: StateFolder) -> Reserved:
    return reserve(installation, launcher.draft("work", on_end="stay", hibernate="auto"), set())


@pytest.fixture
async def launched(launcher: Launcher, engine: FakeRuntime, reserved: Reserved) -> Launched:
    folder, row = reserved
    host = await launcher.launch(row, folder, restore="none")
    return folder, row, engine.find(host.container)


def lose(folder: KernelFolder, part: str) -> None:
    """Take away a part of a kernel's folder, or all sockets of this installation."""
    if os.path.ismount(folder.sockets):
        subprocess.run(["umount", "-l", str(folder.sockets)], check=True)
    lost = folder.path / part if part else folder.path.parent
    if lost.is_dir():
        shutil.rmtree(lost)
    else:
        lost.unlink()


async def test_a_launch_takes_the_place_of_what_an_earlier_one_left(
    launcher: Launcher, launched: Launched, engine: FakeRuntime
) -> None:
    folder, row, old = launched
    (launcher.kernel_folder(row.id).sockets / "k-1").touch()
    host = await launcher.launch(row, folder, restore="none")
    assert host.container != old.id
    assert list(engine.containers) == [host.container]
    assert list(launcher.kernel_folder(row.id).sockets.iterdir()) == []


@pytest.mark.parametrize("failing", ["ping", "create", "start"])
async def test_a_launch_that_fails_leaves_neither_container_nor_sockets(
    launcher: Launcher, reserved: Reserved, engine: FakeRuntime, failing: Operation
) -> None:
    folder, row = reserved
    engine.fail(failing, error=ContainerError("It does not want to."))
    with pytest.raises(ContainerError, match="does not want"):
        await launcher.launch(row, folder, restore="none")
    assert engine.containers == {}
    assert not launcher.kernel_folder(row.id).path.exists()


async def test_a_launch_whose_folders_cannot_be_made_leaves_no_mount(
    launcher: Launcher, reserved: Reserved, engine: FakeRuntime
) -> None:
    folder, row = reserved
    folder.checkpoints.rmdir()
    with pytest.raises((StorageError, ConfigError)):
        await launcher.launch(row, folder, restore="none")
    assert engine.containers == {}
    assert not launcher.kernel_folder(row.id).path.exists()


async def test_a_launch_that_is_cancelled_leaves_neither_container_nor_sockets(
    launcher: Launcher, reserved: Reserved, engine: FakeRuntime
) -> None:
    folder, row = reserved
    engine.delay("start", 60)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: launcher.launch(row, folder, restore="none"))
            while ("start", *engine.containers) not in engine.calls:
                await anyio.sleep(0.01)
            tg.cancel_scope.cancel()
    assert engine.containers == {}
    assert not launcher.kernel_folder(row.id).path.exists()


async def test_sockets_stay_as_long_as_their_container_may_run(
    launcher: Launcher, launched: Launched, engine: FakeRuntime
) -> None:
    folder, row, _ = launched
    engine.fail("remove")
    with pytest.raises(RuntimeUnavailableError):
        await launcher.discard(row.id)
    assert launcher.kernel_folder(row.id).load().key
    await launcher.discard(row.id)
    assert not launcher.kernel_folder(row.id).path.exists()
    folder.unlock()


async def test_a_running_container_is_found_again(launcher: Launcher, launched: Launched) -> None:
    _, row, container = launched
    host = await launcher.adopt(row)
    assert host is not None
    assert host.container == container.id
    assert host.connection == launcher.kernel_folder(row.id).load()


@pytest.mark.parametrize("state", ["created", "exited", "dead", "removing"])
async def test_a_container_that_does_not_run_is_none(
    launcher: Launcher, launched: Launched, engine: FakeRuntime, state: str
) -> None:
    _, row, container = launched
    container.state = state
    assert await launcher.adopt(row) is None
    await engine.vanish(container.id)
    assert await launcher.adopt(row) is None


async def test_a_paused_container_is_told_and_kept(launcher: Launcher, launched: Launched) -> None:
    _, row, container = launched
    container.state = "paused"
    with pytest.raises(KernelStartError, match=f"docker unpause {container_name(row.id)}"):
        await launcher.adopt(row)
    assert container.state == "paused"
    container.state = "running"
    assert await launcher.adopt(row) is not None


async def test_a_container_of_another_installation_is_told_and_kept(
    launcher: Launcher, launched: Launched, engine: FakeRuntime
) -> None:
    _, row, container = launched
    container.spec.labels[LABEL_INSTANCE] = "another"
    with pytest.raises(ContainerConflictError, match="another installation"):
        await launcher.adopt(row)
    assert list(engine.containers) == [container.id]


@pytest.mark.parametrize("gone", ["", "ctl", "ctl/connection.json"])
async def test_a_kernel_that_cannot_be_reached_any_more_is_none(
    launcher: Launcher, launched: Launched, engine: FakeRuntime, gone: str
) -> None:
    folder, row, _ = launched
    lose(launcher.kernel_folder(row.id), gone)
    assert await launcher.adopt(row) is None
    host = await launcher.launch(row, folder, restore="none")
    assert host.container in engine.containers


async def test_a_runtime_folder_of_others_is_no_reason_to_give_a_kernel_up(
    launcher: Launcher, launched: Launched, engine: FakeRuntime
) -> None:
    _, row, container = launched
    shared = launcher.kernel_folder(row.id).path.parent
    shared.chmod(0o777)
    try:
        with pytest.raises(ConfigError, match="this user's alone"):
            await launcher.adopt(row)
    finally:
        shared.chmod(0o700)
    assert list(engine.containers) == [container.id]


async def test_a_container_sees_its_files_and_checkpoints_and_nothing_else_of_what_is_kept(
    launched: Launched, installation: StateFolder
) -> None:
    folder, _, container = launched
    mounted = [mount.source for mount in container.spec.mounts]
    assert {folder.files, folder.checkpoints} < set(mounted)
    for kept in (folder.outputs, folder.path / "lock", installation.database):
        assert not any(kept == place or place in kept.parents for place in mounted)


@pytest.mark.parametrize(("on_end", "limited"), [("stay", False), ("hibernate", True)])
async def test_only_the_kernel_of_a_session_that_is_to_stay_outlives_its_lease(
    launcher: Launcher, installation: StateFolder, on_end: OnEnd, limited: bool
) -> None:
    folder, row = reserve(
        installation, launcher.draft("work", on_end=on_end, hibernate="auto"), set()
    )
    await launcher.launch(row, folder, restore="none")
    told = json.loads((launcher.kernel_folder(row.id).control / "keeper.json").read_text())
    assert (told["lease_limit_s"] > 0) == limited
