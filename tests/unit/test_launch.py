"""Reserving, launching, finding again and discarding sessions, on an engine in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import anyio
import pytest

from sagebroker.container.spec import LABEL_INSTANCE
from sagebroker.errors import (
    ConfigError,
    ContainerConflictError,
    ContainerError,
    KernelStartError,
    RuntimeUnavailableError,
    SessionInUseError,
    StorageError,
    TooManySessionsError,
)
from sagebroker.kernel.folders import KernelFolder
from sagebroker.session import reservation
from sagebroker.session.launch import Launcher, container_name
from sagebroker.session.reservation import FIRST_SESSION_UID, choose_uid
from sagebroker.store.folders import SessionFolder, SessionRecord, StateFolder
from sagebroker.testing.fake_runtime import FakeContainer, FakeRuntime, Operation

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives users away")


async def launched(
    launcher: Launcher, engine: FakeRuntime
) -> tuple[SessionFolder, SessionRecord, FakeContainer]:
    folder, record = await launcher.reserve("work", keep=True)
    host = await launcher.launch(record, folder, restore=False)
    return folder, record, engine.find(host.container)


def open_files(below: Path) -> list[str]:
    """What this process has open in a folder."""
    descriptors = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [name for fd in descriptors if (name := str(fd.readlink())).startswith(f"{below}/")]


def lose(folder: KernelFolder, part: str) -> None:
    """Take away a part of a kernel's folder, or all sockets of this installation."""
    if os.path.ismount(folder.sockets):
        subprocess.run(["umount", "-l", str(folder.sockets)], check=True)
    lost = folder.path / part if part else folder.path.parent
    if lost.is_dir():
        shutil.rmtree(lost)
    else:
        lost.unlink()


async def test_a_reservation_that_cannot_be_written_leaves_nothing(
    launcher: Launcher, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        await launcher.reserve("work", keep=False)
    assert list(installation.sessions.iterdir()) == []


async def test_a_reservation_that_is_cancelled_leaves_nothing(
    launcher: Launcher, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        began.set()
        go_on.wait(10)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: launcher.reserve("work", keep=True))
            await anyio.to_thread.run_sync(began.wait)
            tg.cancel_scope.cancel()
            go_on.set()
    assert list(installation.sessions.iterdir()) == []
    assert open_files(installation.path) == []


async def test_a_kept_name_is_given_away_once(
    launcher: Launcher, installation: StateFolder
) -> None:
    answers: list[str] = []

    async def reserve() -> None:
        try:
            _, record = await launcher.reserve("work", keep=True)
            answers.append(record.name)
        except SessionInUseError as error:
            answers.append(str(error))

    async with anyio.create_task_group() as tg:
        for _ in range(4):
            tg.start_soon(reserve)
    refusal = "The session 'work' was opened by another process at this moment. Try again."
    assert sorted(answers) == [refusal] * 3 + ["work"]
    assert len(installation.list()) == 1
    await launcher.reserve("work", keep=False)


@as_root
def test_no_two_sessions_get_the_same_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "SESSION_UIDS", 3)
    taken = {FIRST_SESSION_UID, FIRST_SESSION_UID + 2}
    assert choose_uid(taken) == FIRST_SESSION_UID + 1
    with pytest.raises(TooManySessionsError, match="sessions close"):
        choose_uid(taken | {FIRST_SESSION_UID + 1})


@as_root
async def test_a_session_gets_a_user_that_no_record_names(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "SESSION_UIDS", 3)
    users = {(await launcher.reserve("work", keep=False))[1].uid for _ in range(3)}
    assert users == {FIRST_SESSION_UID, FIRST_SESSION_UID + 1, FIRST_SESSION_UID + 2}


async def test_a_launch_takes_the_place_of_what_an_earlier_one_left(
    launcher: Launcher, engine: FakeRuntime
) -> None:
    folder, record, old = await launched(launcher, engine)
    (launcher.kernel_folder(record.id).sockets / "k-1").touch()
    host = await launcher.launch(record, folder, restore=False)
    assert host.container != old.id
    assert list(engine.containers) == [host.container]
    assert list(launcher.kernel_folder(record.id).sockets.iterdir()) == []


@pytest.mark.parametrize("failing", ["ping", "create", "start"])
async def test_a_launch_that_fails_leaves_neither_container_nor_sockets(
    launcher: Launcher, engine: FakeRuntime, failing: Operation
) -> None:
    folder, record = await launcher.reserve("work", keep=False)
    engine.fail(failing, error=ContainerError("It does not want to."))
    with pytest.raises(ContainerError, match="does not want"):
        await launcher.launch(record, folder, restore=False)
    assert engine.containers == {}
    assert not launcher.kernel_folder(record.id).path.exists()


async def test_a_launch_whose_folders_cannot_be_made_leaves_no_mount(
    launcher: Launcher, engine: FakeRuntime
) -> None:
    folder, record = await launcher.reserve("work", keep=False)
    folder.checkpoints.rmdir()
    with pytest.raises((StorageError, ConfigError)):
        await launcher.launch(record, folder, restore=False)
    assert engine.containers == {}
    assert not launcher.kernel_folder(record.id).path.exists()


async def test_a_launch_that_is_cancelled_leaves_neither_container_nor_sockets(
    launcher: Launcher, engine: FakeRuntime
) -> None:
    folder, record = await launcher.reserve("work", keep=False)
    engine.delay("start", 60)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tg:
            tg.start_soon(lambda: launcher.launch(record, folder, restore=False))
            while ("start", *engine.containers) not in engine.calls:
                await anyio.sleep(0.01)
            tg.cancel_scope.cancel()
    assert engine.containers == {}
    assert not launcher.kernel_folder(record.id).path.exists()


async def test_sockets_stay_as_long_as_their_container_may_run(
    launcher: Launcher, engine: FakeRuntime
) -> None:
    folder, record, _ = await launched(launcher, engine)
    engine.fail("remove")
    with pytest.raises(RuntimeUnavailableError):
        await launcher.discard(record.id)
    assert launcher.kernel_folder(record.id).load().key
    await launcher.discard(record.id)
    assert not launcher.kernel_folder(record.id).path.exists()
    folder.unlock()


async def test_a_running_container_is_found_again(launcher: Launcher, engine: FakeRuntime) -> None:
    _, record, container = await launched(launcher, engine)
    host = await launcher.adopt(record)
    assert host is not None
    assert host.container == container.id
    assert host.connection == launcher.kernel_folder(record.id).load()


@pytest.mark.parametrize("state", ["created", "exited", "dead", "removing"])
async def test_a_container_that_does_not_run_is_none(
    launcher: Launcher, engine: FakeRuntime, state: str
) -> None:
    _, record, container = await launched(launcher, engine)
    container.state = state
    assert await launcher.adopt(record) is None
    await engine.vanish(container.id)
    assert await launcher.adopt(record) is None


async def test_a_paused_container_is_told_and_kept(launcher: Launcher, engine: FakeRuntime) -> None:
    _, record, container = await launched(launcher, engine)
    container.state = "paused"
    with pytest.raises(KernelStartError, match=f"docker unpause {container_name(record.id)}"):
        await launcher.adopt(record)
    assert container.state == "paused"
    container.state = "running"
    assert await launcher.adopt(record) is not None


async def test_a_container_of_another_installation_is_told_and_kept(
    launcher: Launcher, engine: FakeRuntime
) -> None:
    _, record, container = await launched(launcher, engine)
    container.spec.labels[LABEL_INSTANCE] = "another"
    with pytest.raises(ContainerConflictError, match="another installation"):
        await launcher.adopt(record)
    assert list(engine.containers) == [container.id]


@pytest.mark.parametrize("gone", ["", "ctl", "ctl/connection.json"])
async def test_a_kernel_that_cannot_be_reached_any_more_is_none(
    launcher: Launcher, engine: FakeRuntime, gone: str
) -> None:
    folder, record, _ = await launched(launcher, engine)
    lose(launcher.kernel_folder(record.id), gone)
    assert await launcher.adopt(record) is None
    host = await launcher.launch(record, folder, restore=False)
    assert host.container in engine.containers


async def test_a_runtime_folder_of_others_is_no_reason_to_give_a_kernel_up(
    launcher: Launcher, engine: FakeRuntime
) -> None:
    _, record, container = await launched(launcher, engine)
    shared = launcher.kernel_folder(record.id).path.parent
    shared.chmod(0o777)
    try:
        with pytest.raises(ConfigError, match="this user's alone"):
            await launcher.adopt(record)
    finally:
        shared.chmod(0o700)
    assert list(engine.containers) == [container.id]
