"""Making sessions, and finding those that an earlier broker has left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.unit.left_sessions import change, left_session, names, refuse_writes, stored
from tests.unit.store_rows import LARGE, STREAM, cell_row

from sagebroker.errors import (
    RuntimeUnavailableError,
    SessionInUseError,
    StorageError,
    TooManySessionsError,
)
from sagebroker.model import CellStatus
from sagebroker.session import opener as opener_module
from sagebroker.session import reservation
from sagebroker.session.found import Found
from sagebroker.session.launch import Launcher, container_name
from sagebroker.session.opener import Opener
from sagebroker.session.reservation import FIRST_SESSION_UID, choose_uid
from sagebroker.store import folders as folders_module
from sagebroker.store import locks
from sagebroker.store.database import Database
from sagebroker.store.folders import SessionFolder, StateFolder
from sagebroker.store.records import CellRow, OnEnd
from sagebroker.store.store import Store
from sagebroker.testing.fake_runtime import FakeRuntime

LIMIT_S = 20.0
"""A hang is told within this; nothing is measured by it."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives users away")


async def make(opener: Opener, name: str = "work", on_end: OnEnd = "hibernate") -> Found:
    return await opener.make(name, on_end=on_end, hibernate="auto")


async def left(opener: Opener, name: str = "work", on_end: OnEnd = "hibernate") -> SessionFolder:
    """A session without a container, whose broker has ended."""
    found = await make(opener, name, on_end)
    found.folder.unlock()
    return found.folder


def open_files(below: Path) -> list[str]:
    """What this process has open in a folder."""
    descriptors = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    return [name for fd in descriptors if (name := str(fd.readlink())).startswith(f"{below}/")]


# Making


async def test_a_new_session_is_stored_and_served_by_whoever_made_it(
    opener: Opener, installation: StateFolder, store: Store
) -> None:
    found = await opener.make("work", on_end="stay", hibernate="never")
    assert found.is_new
    assert found.row == await stored(store, found.row.id)
    assert (found.row.name, found.row.on_end, found.row.hibernate) == ("work", "stay", "never")
    assert (found.next_cell, found.left, found.queued, found.untold) == (1, None, (), ())
    assert installation.folder(found.row.id).owner() == os.getpid()
    found.folder.delete()


async def test_a_name_is_given_away_once(
    opener: Opener, installation: StateFolder, store: Store
) -> None:
    answers: list[str] = []

    async def try_it() -> None:
        try:
            answers.append((await make(opener)).row.name)
        except SessionInUseError as error:
            answers.append(str(error))

    async with anyio.create_task_group() as tg:
        for _ in range(4):
            tg.start_soon(try_it)
    refusal = "The session 'work' was opened by another process at this moment. Try again."
    assert sorted(answers) == [refusal] * 3 + ["work"]
    assert len(installation.list()) == 1
    assert await opener.free_name("work") == "work-2"
    assert len(open_files(installation.sessions)) == 1


async def test_a_session_that_the_store_refuses_leaves_nothing(
    opener: Opener, installation: StateFolder, store: Store
) -> None:
    await refuse_writes(store)
    with pytest.raises(StorageError, match="cannot be written"):
        await make(opener)
    assert list(installation.sessions.iterdir()) == []
    assert open_files(installation.sessions) == []


async def test_a_session_whose_making_is_cancelled_in_its_folder_leaves_nothing(
    opener: Opener, installation: StateFolder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    mkdir = os.mkdir

    def slow(path: Path, *rest: int) -> None:
        if Path(path).name == "checkpoints":
            began.set()
            go_on.wait(LIMIT_S)
        mkdir(path, *rest)

    monkeypatch.setattr(os, "mkdir", slow)
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(make, opener)
            await anyio.to_thread.run_sync(began.wait)
            tg.cancel_scope.cancel()
            go_on.set()
    assert list(installation.sessions.iterdir()) == []
    assert open_files(installation.sessions) == []
    assert await names(store) == []


async def test_a_session_whose_making_is_cancelled_in_the_store_leaves_nothing(
    opener: Opener, installation: StateFolder, store: Store
) -> None:
    other = Database.open(installation.database, lambda _: installation.path)
    other._sql.execute("BEGIN IMMEDIATE")
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(make, opener)
            while not (installation.list() and store._in_use.locked()):
                await anyio.sleep(0.01)
            tg.cancel_scope.cancel()
            other._sql.execute("ROLLBACK")
    other.close()
    assert list(installation.sessions.iterdir()) == []
    assert open_files(installation.sessions) == []
    assert await names(store) == []


@as_root
def test_no_two_sessions_get_the_same_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "SESSION_UIDS", 3)
    taken = {FIRST_SESSION_UID, FIRST_SESSION_UID + 2}
    assert choose_uid(taken) == FIRST_SESSION_UID + 1
    with pytest.raises(TooManySessionsError, match="sessions close"):
        choose_uid(taken | {FIRST_SESSION_UID + 1})


@as_root
async def test_a_session_gets_a_user_that_no_stored_one_has(
    opener: Opener, installation: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "SESSION_UIDS", 3)
    users = {(await make(opener, f"s{n}")).row.uid for n in range(3)}
    assert users == {FIRST_SESSION_UID, FIRST_SESSION_UID + 1, FIRST_SESSION_UID + 2}
    with pytest.raises(TooManySessionsError):
        await make(opener, "one more")
    assert len(installation.list()) == 3


# Finding


async def test_a_name_that_no_session_has_finds_none(opener: Opener) -> None:
    assert await opener.find("work") is None


async def test_a_session_that_was_left_is_found_with_its_container(
    opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="stay")
    await change(store, folder.id, state="ready", kernel_generation=3, notices=("One.",))
    found = await opener.find("work")
    assert found is not None
    assert not found.is_new
    assert found.row == await stored(store, folder.id)
    assert (found.row.kernel_generation, found.row.notices) == (3, ("One.",))
    assert found.adopted is not None
    assert found.adopted.container == engine.find(container_name(folder.id)).id
    assert folder.owner() == os.getpid()
    found.folder.unlock()


async def test_a_container_that_a_sleeping_session_left_is_not_taken_over(
    opener: Opener, launcher: Launcher, store: Store
) -> None:
    folder = await left_session(opener, launcher, on_end="hibernate")
    await change(store, folder.id, state="hibernated")
    found = await opener.find("work")
    assert found is not None
    assert found.adopted is None
    found.folder.unlock()


async def test_a_session_that_was_to_go_with_its_broker_is_not_found_but_removed(
    opener: Opener, launcher: Launcher, installation: StateFolder, store: Store, engine: FakeRuntime
) -> None:
    await left_session(opener, launcher, on_end="close")
    assert await opener.find("work") is None
    assert engine.containers == {}
    assert list(installation.sessions.iterdir()) == []
    assert await names(store) == []
    assert open_files(installation.sessions) == []


async def test_one_that_cannot_be_removed_now_is_told_and_tried_again(
    opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="close")
    engine.fail("remove")
    with pytest.raises(RuntimeUnavailableError):
        await opener.find("work")
    assert (folder.owner(), await names(store)) == (None, ["work"])
    assert await opener.find("work") is None
    assert await names(store) == []


async def test_an_engine_that_is_down_changes_nothing(
    opener: Opener, launcher: Launcher, store: Store, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="stay")
    before = await stored(store, folder.id)
    engine.is_down = True
    with pytest.raises(RuntimeUnavailableError):
        await opener.find("work")
    assert (folder.owner(), await stored(store, folder.id)) == (None, before)
    engine.is_down = False
    found = await opener.find("work")
    assert found is not None
    assert found.adopted is not None
    found.folder.unlock()


async def test_a_session_whose_folder_is_lost_keeps_what_is_stored_and_says_so(
    opener: Opener, installation: StateFolder, store: Store
) -> None:
    folder = await left(opener)
    await store.call(lambda db: db.save(cells=[cell_row(session=folder.id)]))
    folder.path.rename(installation.path / "elsewhere")
    found = await opener.find("work")
    assert found is not None
    assert "its files and saved variables are gone" in found.row.notices[-1]
    assert (found.next_cell, found.folder.files.exists()) == (2, True)
    found.folder.unlock()


async def test_a_session_whose_closing_was_broken_off_is_forgotten(
    opener: Opener, store: Store
) -> None:
    folder = await left(opener)
    await change(store, folder.id, on_end="close")
    folder.delete()
    assert await opener.find("work") is None
    assert await names(store) == []


@contextmanager
def served_elsewhere(folder: SessionFolder) -> Iterator[int]:
    """Another process serves the session; gives its id, and kills it at the end."""
    code = (
        "import sys; from pathlib import Path\n"
        "from sagebroker.store.folders import SessionFolder\n"
        "folder = SessionFolder(Path(sys.argv[1])); folder.lock()\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process.pid
        process.kill()


async def test_a_session_that_another_process_serves_is_not_found_but_told(
    opener: Opener, store: Store
) -> None:
    folder = await left(opener)
    before = await stored(store, folder.id)
    with served_elsewhere(folder) as pid:
        with pytest.raises(SessionInUseError, match=f"pid {pid}"):
            await opener.find("work")
        assert await stored(store, folder.id) == before
    found = await opener.find("work")
    assert found is not None
    found.folder.unlock()


class Attempts:
    """Counts how often a lock is tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self._try_lock = locks.try_lock
        monkeypatch.setattr(locks, "try_lock", self._count)
        monkeypatch.setattr(folders_module, "LOCK_LIMIT_S", 0.0)

    def _count(self, path: Path) -> int | None:
        self.made += 1
        return self._try_lock(path)


@asynccontextmanager
async def being_found(
    opener: Opener, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch, attempts: int = 1
) -> AsyncIterator[list[Found | None]]:
    """Somebody tidies up in the session while it is looked for; to be unlocked inside.

    Gives the answers, of which there is one in the end.
    """
    folder.lock(sign=False)
    tries = Attempts(monkeypatch)
    answers: list[Found | None] = []

    async def find() -> None:
        answers.append(await opener.find("work"))

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(find)
            while tries.made < attempts:
                await anyio.sleep(0.01)
            yield answers


@pytest.mark.parametrize("is_removed", [False, True])
async def test_who_tidies_up_is_waited_for(
    opener: Opener, store: Store, monkeypatch: pytest.MonkeyPatch, is_removed: bool
) -> None:
    folder = await left(opener)
    async with being_found(opener, folder, monkeypatch, attempts=20) as answers:
        assert answers == []
        if is_removed:
            await change(store, folder.id, on_end="close", state="stopping")
            folder.delete()
        else:
            folder.unlock()
    (found,) = answers
    assert (found is None) == is_removed
    assert await names(store) == ([] if is_removed else ["work"])
    if found is not None:
        found.folder.unlock()


async def test_who_tidies_up_is_not_waited_for_for_ever(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opener_module, "SWEEP_LIMIT_S", 0.05)
    monkeypatch.setattr(folders_module, "LOCK_LIMIT_S", 0.01)
    folder = await left(opener)
    folder.lock(sign=False)
    with pytest.raises(SessionInUseError, match="pid unknown"):
        await opener.find("work")
    folder.unlock()


async def test_what_was_stored_until_the_lock_is_free_counts(
    opener: Opener, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await left(opener)
    async with being_found(opener, folder, monkeypatch) as answers:
        await change(store, folder.id, note="The last owner's word.")
        folder.unlock()
    (found,) = answers
    assert found is not None
    assert (found.row.note, found.row.revision) == ("The last owner's word.", 1)
    found.folder.unlock()


async def test_a_session_that_the_store_has_forgotten_meanwhile_is_not_found_nor_kept_locked(
    opener: Opener, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await left(opener)
    async with being_found(opener, folder, monkeypatch) as answers:
        await store.call(lambda db: db.remove_session(folder.id))
        folder.unlock()
    assert answers == [None]
    assert folder.owner() is None
    assert folder.path.exists()


async def test_who_is_cancelled_while_looking_leaves_the_session_to_others(
    opener: Opener, launcher: Launcher, engine: FakeRuntime
) -> None:
    folder = await left_session(opener, launcher, on_end="stay")
    engine.delay("inspect", 3600.0)
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(opener.find, "work")
            while engine.calls[-1][0] != "inspect":
                await anyio.sleep(0.01)
            assert folder.owner() == os.getpid()
            tg.cancel_scope.cancel()
    assert folder.owner() is None


# Its cells


async def found_with(opener: Opener, store: Store, *cells: CellRow) -> Found:
    """A session as it is found whose earlier broker has stored ``cells``."""
    folder = await left(opener)
    rows = [replace(cell, session=folder.id) for cell in cells]
    outputs = {(folder.id, cell.number): [STREAM] for cell in cells}
    await store.call(lambda db: db.save(cells=rows, outputs=outputs))
    found = await opener.find("work")
    assert found is not None
    found.folder.unlock()
    return found


async def test_the_cell_that_ran_and_those_that_waited_are_found_in_order(
    opener: Opener, store: Store
) -> None:
    found = await found_with(
        opener,
        store,
        cell_row(1),
        cell_row(
            2, status=CellStatus.RUNNING, msg_id="m", kernel_generation=4, code="2", request_id="r"
        ),
        cell_row(4, status=CellStatus.QUEUED, code="4"),
        cell_row(3, status=CellStatus.QUEUED, code="3"),
    )
    assert found.left is not None
    assert (found.left.number, found.left.msg_id, found.left.generation) == (2, "m", 4)
    assert found.left.outputs.stdout.text() == "1\n", "what was stored of it is there"
    assert found.left.is_stored
    assert [(cell.number, cell.code) for cell in found.queued] == [(3, "3"), (4, "4")]
    assert all(cell.status is CellStatus.QUEUED for cell in found.queued)
    assert found.next_cell == 5
    assert found.untold == ()


async def test_a_session_all_of_whose_cells_have_ended_goes_on_with_the_next_number(
    opener: Opener, store: Store
) -> None:
    found = await found_with(opener, store, cell_row(1), cell_row(2, status=CellStatus.ERROR))
    assert (found.left, found.queued, found.untold, found.next_cell) == (None, (), (), 3)


async def test_cells_that_cost_their_session_something_are_found_until_they_are_told(
    opener: Opener, store: Store
) -> None:
    died: dict[str, Any] = {
        "exit": {"cause": "signal", "generation": 1, "signal": 11},
        "notices": ("The kernel was ended by SIGSEGV.",),
    }
    found = await found_with(
        opener,
        store,
        cell_row(1, status=CellStatus.DIED, told=True, **died),
        cell_row(2, status=CellStatus.DIED, **died),
        cell_row(3, status=CellStatus.OK, **died),
        cell_row(4, status=CellStatus.INTERRUPTED),
        cell_row(5, status=CellStatus.INTERRUPTED, **died),
    )
    assert [cell.number for cell in found.untold] == [2, 5]
    assert found.untold[0].notices == ["The kernel was ended by SIGSEGV."]


async def test_large_outputs_of_the_cell_that_ran_are_read_from_their_files(
    opener: Opener, store: Store
) -> None:
    folder = await left(opener)
    cell = cell_row(session=folder.id, status=CellStatus.RUNNING, msg_id="m")
    output = ("stream", {"name": "stdout", "text": LARGE})
    await store.call(lambda db: db.save(cells=[cell], outputs={(folder.id, 1): [output]}))
    assert len(list(folder.outputs.iterdir())) == 1
    found = await opener.find("work")
    assert found is not None
    assert found.left is not None
    assert found.left.outputs.stdout.text() == LARGE
    found.folder.unlock()
