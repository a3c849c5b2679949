"""The host's side of a kernel's connection: made, found, removed, and nobody else's."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sagebroker.errors import ConfigError, StorageError
from sagebroker.kernel.folders import KernelFolder

ID = "aaaaaaaaaa"
USES: dict[str, Callable[[KernelFolder], object]] = {
    "create": lambda f: f.create(os.geteuid(), os.getegid(), {}, restore="none"),
    "load": lambda f: f.load(),
    "ask_restore": lambda f: f.ask_restore("newest"),
    "delete": lambda f: f.delete(),
}


def made(folder: KernelFolder) -> KernelFolder:
    folder.create(os.geteuid(), os.getegid(), {}, restore="none")
    return folder


@pytest.fixture
def folder(short_dir: Path) -> KernelFolder:
    return KernelFolder(short_dir / "run", ID)


def test_what_is_made_can_be_loaded_and_goes_whole(folder: KernelFolder, short_dir: Path) -> None:
    connection = folder.create(os.geteuid(), os.getegid(), {"a": 1}, restore="newest")
    assert folder.load() == connection
    folder.delete()
    assert list((short_dir / "run").iterdir()) == []
    assert str(short_dir) not in Path("/proc/mounts").read_text()


@pytest.mark.parametrize("order", [0, -1, True, False])
def test_a_number_that_no_checkpoint_has_cannot_be_asked_for(
    folder: KernelFolder, order: int
) -> None:
    made(folder)
    with pytest.raises(ValueError, match="no checkpoint has the number"):
        folder.ask_restore(order)
    assert (folder.control / "restore.json").read_text() == '{"mode": "none"}'
    folder.delete()


@pytest.mark.parametrize("use", ["ask_restore", "delete"])
def test_what_is_gone_is_no_fault(folder: KernelFolder, use: str) -> None:
    USES[use](folder)
    folder.touch_lease()
    assert not folder.path.parent.exists()


@pytest.mark.parametrize("use", USES)
def test_a_runtime_folder_that_others_may_write_is_not_used(folder: KernelFolder, use: str) -> None:
    made(folder)
    folder.path.parent.chmod(0o777)
    try:
        with pytest.raises(ConfigError, match="not a folder of this user's alone"):
            USES[use](folder)
        assert (folder.control / "connection.json").exists()
    finally:
        folder.path.parent.chmod(0o700)
        folder.delete()


def test_a_lease_in_a_folder_of_others_is_not_touched_and_that_is_logged(
    folder: KernelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    made(folder)
    lease = folder.control / "lease"
    os.utime(lease, (1, 1))
    folder.path.parent.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        folder.touch_lease()
    assert "not renewed" in caplog.text
    assert lease.stat().st_mtime == 1
    folder.path.parent.chmod(0o700)
    folder.touch_lease()
    assert lease.stat().st_mtime > 1
    folder.delete()


def test_a_folder_that_cannot_be_removed_is_told_as_a_fault_of_the_disk(
    folder: KernelFolder,
) -> None:
    folder.path.parent.mkdir(mode=0o700)
    folder.path.write_text("a file in its place")
    with pytest.raises(StorageError, match="cannot be removed"):
        folder.delete()


def test_sockets_that_the_session_locked_away_are_removed_all_the_same(
    as_ordinary_user: Callable[[str], str],
) -> None:
    said = as_ordinary_user("""
folder = KernelFolder(root / "run", "aaaaaaaaaa")
folder.create(os.geteuid(), os.getegid(), {}, restore="none")
(folder.sockets / "k-1").touch()
folder.sockets.chmod(0)
folder.delete()
print(list((root / "run").iterdir()))
""")
    assert said == "[]"
