from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagebroker.inside.status import StatusFile, purge


@pytest.fixture
def folder(short_dir: Path) -> Path:
    path = short_dir / "s"
    path.mkdir()
    return path


@pytest.fixture
def status(folder: Path) -> Iterator[StatusFile]:
    file = StatusFile(folder / "status.json")
    yield file
    file.close()


def content(folder: Path) -> object:
    return json.loads((folder / "status.json").read_text())


def nothing(name: str, mode: int) -> bool:
    return False


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_a_report_replaces_the_earlier_and_leaves_nothing_else(
    folder: Path, status: StatusFile
) -> None:
    assert status.write({"generation": 1})
    assert status.write({"generation": 2})
    assert content(folder) == {"generation": 2}
    assert names(folder) == ["status.json"]


def test_a_link_in_its_place_is_replaced_and_not_followed(folder: Path, status: StatusFile) -> None:
    other = folder.parent / "other"
    other.write_text("untouched")
    (folder / "status.json").symlink_to(other)
    assert status.write({"generation": 1})
    assert content(folder) == {"generation": 1}
    assert other.read_text() == "untouched"


def test_a_fifo_in_its_place_does_not_make_it_wait(folder: Path, status: StatusFile) -> None:
    os.mkfifo(folder / "status.json")
    assert status.write({"generation": 1})
    assert content(folder) == {"generation": 1}


def test_a_full_folder_in_its_place_is_removed(folder: Path, status: StatusFile) -> None:
    (folder / "status.json" / "deep" / "deeper").mkdir(parents=True)
    (folder / "status.json" / "deep" / "file").touch()
    assert status.write({"generation": 1})
    assert content(folder) == {"generation": 1}


def test_clearing_takes_sockets_and_strangers_and_leaves_the_report(
    folder: Path, status: StatusFile
) -> None:
    status.write({"generation": 1})
    make_socket(folder / "k-1")
    (folder / "k-2").mkdir(mode=0o000)
    (folder / "k-3").symlink_to("/etc")
    (folder / "junk").write_text("x")
    status.clear()
    assert names(folder) == ["status.json"]


def test_making_room_spares_live_sockets(folder: Path, status: StatusFile) -> None:
    make_socket(folder / "k-1")
    (folder / "junk").write_text("x")
    (folder / "status.json").mkdir()
    assert status.write({"generation": 1})
    assert names(folder) == ["k-1", "status.json"]


def test_a_folder_of_any_depth_is_purged(folder: Path) -> None:
    deep = folder / "a"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    descriptor = os.open(folder, os.O_RDONLY)
    assert purge(descriptor, keep=nothing) == 3001
    os.close(descriptor)
    assert not names(folder)


def test_links_are_removed_and_not_followed(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (folder / "inner").mkdir()
    (folder / "inner" / "link").symlink_to(outside)
    descriptor = os.open(folder, os.O_RDONLY)
    purge(descriptor, keep=nothing)
    os.close(descriptor)
    assert (outside / "kept").exists()


def test_a_purge_ends_at_its_limit(folder: Path) -> None:
    for at in range(50):
        (folder / str(at)).touch()
    descriptor = os.open(folder, os.O_RDONLY)
    assert purge(descriptor, keep=nothing, limit=20) == 20
    os.close(descriptor)


def test_what_could_not_be_written_is_owed(folder: Path, status: StatusFile) -> None:
    folder.rename(folder.with_name("moved"))
    moved = folder.with_name("moved")
    assert status.write({"generation": 1})
    assert json.loads((moved / "status.json").read_text()) == {"generation": 1}
    moved.joinpath("status.json").unlink()
    moved.rmdir()
    assert not status.write({"generation": 2})
    assert not status.settle()
