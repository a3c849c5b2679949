"""Locks and folders of sessions."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sagebroker.errors import (
    BrokerError,
    ConfigError,
    SessionGoneError,
    SessionInUseError,
    StorageError,
)
from sagebroker.store.folders import SessionFolder, StateFolder


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.open()
    return folder


def test_an_installation_keeps_its_id(state: StateFolder) -> None:
    assert state.open() == state.open()
    assert len(state.open()) == 16


def test_a_state_folder_that_cannot_be_written_is_told_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in its place")
    with pytest.raises(ConfigError, match="SAGEBROKER_STATE_DIR"):
        StateFolder(tmp_path / "state").open()


def test_a_second_process_cannot_take_a_session_and_is_told_who_has_it(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    assert f"pid {os.getpid()}" in try_lock_elsewhere(folder.path)
    folder.unlock()
    assert try_lock_elsewhere(folder.path) == "locked"


def try_lock_elsewhere(path: Path) -> str:
    code = (
        "import sys; from pathlib import Path\n"
        "from sagebroker.errors import SessionInUseError\n"
        "from sagebroker.store.folders import SessionFolder\n"
        "try: SessionFolder(Path(sys.argv[1])).lock(); print('locked')\n"
        "except SessionInUseError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_owner_is_the_process_with_the_lock(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    assert SessionFolder(folder.path).owner() == os.getpid()
    folder.unlock()
    assert SessionFolder(folder.path).owner() is None


def test_a_session_can_be_deleted_although_it_locked_its_own_folders(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    inner = folder.files / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "f").write_text("x")
    inner.chmod(0o500)
    inner.parent.chmod(0o000)
    folder.delete()
    assert state.list() == []


def test_deleting_a_session_follows_no_link(state: StateFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = state.create("aaaaaaaaaa")
    (folder.files / "link").symlink_to(outside)
    folder.delete()
    assert (outside / "precious").read_text() == "x"


def test_the_lock_of_a_removed_session_is_not_made_anew(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    onlooker = SessionFolder(folder.path)
    folder.delete()
    with pytest.raises(SessionGoneError, match="closed meanwhile"):
        onlooker.lock()
    assert onlooker.owner() is None
    assert not folder.path.exists()
    folder.path.mkdir()  # as in a folder that is just being removed
    with pytest.raises(FileNotFoundError):
        onlooker.lock()
    assert list(folder.path.iterdir()) == []


def test_who_waits_for_the_lock_of_a_session_that_is_removed_does_not_get_it(
    state: StateFolder,
) -> None:
    folder = state.create("aaaaaaaaaa")
    answers: list[BrokerError | None] = []

    def wait() -> None:
        try:
            SessionFolder(folder.path).lock()
            answers.append(None)
        except BrokerError as error:
            answers.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    folder.delete()
    waiting.join()
    (answer,) = answers
    assert isinstance(answer, SessionGoneError)


def test_sessions_come_and_go_under_the_eyes_of_others(state: StateFolder) -> None:
    failures: list[Exception] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            try:
                for folder in state.list():
                    folder.blank_since()
                    folder.owner()
                    try:
                        folder.lock()
                    except (SessionInUseError, FileNotFoundError):
                        continue
                    folder.unlock()
            except (BrokerError, OSError) as error:
                failures.append(error)

    onlooker = threading.Thread(target=look)
    onlooker.start()
    try:
        for n in range(200):
            folder = state.create(f"s{n:09}")
            (folder.files / "f").write_text("x")
            folder.unlock()
            folder.lock()
            folder.delete()
    finally:
        ended.set()
        onlooker.join()
    assert failures == []
    assert list(state.sessions.iterdir()) == []


def test_a_session_that_is_being_removed_is_no_session_any_more(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    folder.unlock()
    folder.path.rename(state.sessions / ".gone-aaaaaaaaaa")
    assert state.list() == []
    state.open()
    assert list(state.sessions.iterdir()) == []


def test_what_cannot_be_removed_is_told_and_is_no_reason_not_to_start(
    state: StateFolder, caplog: pytest.LogCaptureFixture
) -> None:
    folder = state.create("aaaaaaaaaa")
    remnant = state.sessions / ".gone-aaaaaaaaaa"
    remnant.write_text("a file in its place")
    with pytest.raises(StorageError, match="cannot be removed"):
        folder.delete()
    assert not folder.is_locked_by_us
    state.open()
    assert "stays" in caplog.text
    remnant.unlink()
    folder.delete()
    assert list(state.sessions.iterdir()) == []


def test_deleting_a_session_that_is_gone_is_harmless(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    folder.path.rename(state.path / "elsewhere")
    folder.delete()
    assert not folder.is_locked_by_us


def test_an_ordinary_user_can_delete_a_session_that_locked_its_own_folders(
    as_ordinary_user: Callable[[str], str],
) -> None:
    said = as_ordinary_user("""
state = StateFolder(root / "state")
state.open()
folder = state.create("aaaaaaaaaa")
(folder.files / "a" / "b").mkdir(parents=True)
(folder.files / "a" / "b" / "f").write_text("x")
(folder.files / "a" / "b").chmod(0o500)
(folder.files / "a").chmod(0)
folder.files.chmod(0)
folder.delete()
print(list(state.sessions.iterdir()))
""")
    assert said == "[]"


def test_a_session_that_is_there_is_not_made_again_nor_harmed(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    (folder.files / "f").write_text("somebody's")
    with pytest.raises(StorageError, match="cannot be made"):
        state.create("aaaaaaaaaa")
    assert (folder.files / "f").read_text() == "somebody's"
    assert SessionFolder(folder.path).owner() == os.getpid()
    folder.delete()


def test_a_session_that_cannot_be_made_whole_is_told_and_leaves_nothing(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = os.mkdir

    def full(path: Path, *rest: int) -> None:
        if Path(path).name == "checkpoints":
            raise OSError(28, "No space left on device")
        mkdir(path, *rest)

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(StorageError, match=r"No space left.*SAGEBROKER_STATE_DIR"):
        state.create("aaaaaaaaaa")
    assert list(state.sessions.iterdir()) == []


def test_sessions_that_cannot_be_listed_are_not_none(state: StateFolder) -> None:
    state.sessions.rmdir()
    with pytest.raises(StorageError, match="cannot be listed"):
        state.list()


def test_a_lock_that_cannot_be_used_is_told_as_a_fault_of_the_disk(state: StateFolder) -> None:
    folder = SessionFolder(state.sessions / "aaaaaaaaaa")
    (folder.path / "lock").mkdir(parents=True)
    with pytest.raises(StorageError, match="lock of session"):
        folder.owner()
    with pytest.raises(StorageError, match="lock of session"):
        folder.lock()


def test_who_locks_a_session_only_to_remove_it_is_not_its_owner(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    folder.unlock()
    folder.lock(sign=False)
    assert SessionFolder(folder.path).owner() is None
    with pytest.raises(SessionInUseError):
        SessionFolder(folder.path).lock()
    folder.delete()


def test_the_longer_number_of_a_killed_owner_does_not_stay(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    folder.unlock()
    (folder.path / "lock").write_text("99999999999")
    folder.lock()
    assert (folder.path / "lock").read_text() == str(os.getpid())
    folder.delete()


def test_only_a_folder_with_nothing_in_it_is_blank(state: StateFolder) -> None:
    folder = state.create("aaaaaaaaaa")
    since = folder.blank_since()
    assert since is not None
    assert since == folder.path.stat().st_mtime
    (folder.files / "f").touch()
    assert folder.blank_since() is None
    (folder.files / "f").unlink()
    (folder.checkpoints / "c").touch()
    assert folder.blank_since() is None
    (folder.checkpoints / "c").unlink()
    assert folder.blank_since() is not None
    folder.outputs.mkdir()
    assert folder.blank_since() is not None
    (folder.outputs / "1-1.json").touch()
    assert folder.blank_since() is None
    folder.delete()
    assert folder.blank_since() is None
