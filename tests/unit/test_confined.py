"""A session's folder with every trick in it: nothing outside is read, changed or waited for."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.conftest import NOBODY
from tests.unit.test_trees import make_deep

from sagebroker.errors import FileRefusedError
from sagebroker.store import confined
from sagebroker.store.confined import (
    entered,
    folder_at,
    list_tree,
    look,
    put_file,
    read_piece,
    remove_one,
    size_of,
)

US = os.geteuid()
of_root = pytest.mark.skipif(US != 0, reason="needs root, whose rights are given up")
"""A broker that is root does nothing in the folder that the session could not do itself."""
ROUNDS = 1500
"""Looks during which another thread exchanges a folder: some hit each moment of it."""


@pytest.fixture
def outside(short_dir: Path) -> Path:
    """A folder of somebody else's with a file in it."""
    path = short_dir / "outside"
    path.mkdir()
    (path / "f").write_bytes(b"secret")
    return path


@pytest.fixture
def inside(short_dir: Path) -> Path:
    path = short_dir / "files"
    (path / "d").mkdir(parents=True)
    (path / "d" / "f").write_bytes(b"inside")
    return path


@pytest.fixture
def top(inside: Path) -> Iterator[int]:
    with entered(inside, US) as handle:
        yield handle


def read(top: int, *parts: str) -> bytes:
    with folder_at(top, parts[:-1]) as folder:
        return read_piece(folder, parts[-1], 0, 100).data


def test_a_file_is_read_by_pieces(top: int) -> None:
    with folder_at(top, ("d",)) as folder:
        piece = read_piece(folder, "f", 2, 3)
        assert (piece.data, piece.size) == (b"sid", 6)
        assert read_piece(folder, "f", 100, 3).data == b""


def test_a_link_at_the_end_of_a_path_is_not_followed(top: int, inside: Path, outside: Path) -> None:
    (inside / "link").symlink_to(outside / "f")
    with pytest.raises(FileRefusedError, match=r"It is a link.*delete the link"):
        read(top, "link")
    with pytest.raises(FileRefusedError, match="It is a link"):
        size_of(top, "link")
    put_file(top, "link", b"new")
    assert (outside / "f").read_bytes() == b"secret"
    assert not (inside / "link").is_symlink()


@pytest.mark.parametrize("target", ["../outside", "/etc", "d", "nowhere", "loop"])
def test_a_link_on_the_way_is_not_followed_wherever_it_leads(
    top: int, inside: Path, outside: Path, target: str
) -> None:
    (inside / "loop").symlink_to(target)
    for make in (False, True):
        with (
            pytest.raises(FileRefusedError, match="A link is on the way"),
            folder_at(top, ("loop", "below"), make=make),
        ):
            pass
    assert sorted(p.name for p in outside.iterdir()) == ["f"]


def test_deleting_a_link_leaves_its_target(top: int, inside: Path, outside: Path) -> None:
    (inside / "file").symlink_to(outside / "f")
    (inside / "folder").symlink_to(outside)
    remove_one(top, "file")
    remove_one(top, "folder")
    assert (outside / "f").read_bytes() == b"secret"
    assert [p.name for p in inside.iterdir()] == ["d"]


def test_what_is_no_file_is_neither_opened_nor_waited_for(top: int, inside: Path) -> None:
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(inside / "socket"))
    for name, kind in {"fifo": "FIFO", "socket": "socket", "d": "folder"}.items():
        with pytest.raises(FileRefusedError, match=f"It is a {kind}"):
            read(top, name)
        with pytest.raises(FileRefusedError, match=f"It is a {kind}"):
            size_of(top, name)
    for name in ("fifo", "socket"):
        remove_one(top, name)


def test_a_fifo_that_takes_a_files_place_in_the_last_moment_makes_nobody_wait(
    top: int, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = confined._check_regular

    def exchange(mode: int) -> None:
        check(mode)
        monkeypatch.setattr(confined, "_check_regular", check)
        (inside / "d" / "f").unlink()
        os.mkfifo(inside / "d" / "f")

    monkeypatch.setattr(confined, "_check_regular", exchange)
    with pytest.raises(FileRefusedError, match="It is a FIFO"):
        read(top, "d", "f")


def test_a_link_that_takes_a_files_place_in_the_last_moment_is_not_followed(
    top: int, inside: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = confined._check_regular

    def exchange(mode: int) -> None:
        check(mode)
        (inside / "d" / "f").unlink()
        (inside / "d" / "f").symlink_to(outside / "f")

    monkeypatch.setattr(confined, "_check_regular", exchange)
    with pytest.raises(OSError, match="symbolic") as caught:
        read(top, "d", "f")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.skipif(US != 0, reason="needs the right to make a device")
def test_a_device_is_not_opened(top: int, inside: Path) -> None:
    try:
        os.mknod(inside / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no devices may be made here")
    with pytest.raises(FileRefusedError, match="It is a device"):
        read(top, "zero")


def test_a_file_of_holes_as_large_as_may_be_costs_no_more_than_a_page(
    top: int, inside: Path
) -> None:
    huge = 2**40
    with (inside / "huge").open("wb") as file:
        file.truncate(huge)
    piece = read_piece(top, "huge", huge - 10, 100)
    assert (piece.data, piece.size) == (bytes(10), huge)
    assert len(read_piece(top, "huge", 2**30, 100).data) == 100


def test_another_name_of_a_file_keeps_the_old_content_when_it_is_replaced(
    top: int, inside: Path
) -> None:
    (inside / "other").hardlink_to(inside / "d" / "f")
    assert read(top, "other") == b"inside"
    put_file(top, "other", b"new")
    assert (read(top, "other"), read(top, "d", "f")) == (b"new", b"inside")


def test_a_folder_exchanged_for_a_link_after_it_was_entered_is_still_the_folder(
    top: int, inside: Path, outside: Path
) -> None:
    with folder_at(top, ("d",)) as folder:
        (inside / "d").rename(inside / "moved")
        (inside / "d").symlink_to(outside)
        assert read_piece(folder, "f", 0, 100).data == b"inside"
        put_file(folder, "g", b"new")
        remove_one(folder, "f")
    assert [p.name for p in (inside / "moved").iterdir()] == ["g"]
    assert [p.name for p in outside.iterdir()] == ["f"]


@contextmanager
def exchanged(inside: Path, outside: Path) -> Iterator[None]:
    """Meanwhile the folder ``d`` becomes a link and a folder again, all the time."""
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            (inside / "d").rename(inside / "e")
            (inside / "d").symlink_to(outside)
            (inside / "d").unlink()
            (inside / "e").rename(inside / "d")

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_folder_that_is_exchanged_for_a_link_all_the_time_never_leads_out(
    top: int, inside: Path, outside: Path
) -> None:
    (outside / "theirs").touch()
    reads = 0
    with exchanged(inside, outside):
        for _ in range(ROUNDS):
            try:
                with folder_at(top, ("d",)) as folder:
                    assert read_piece(folder, "f", 0, 100).data == b"inside"
                    put_file(folder, "g", b"new")
                    remove_one(folder, "g")
                    reads += 1
            except (FileNotFoundError, FileRefusedError):
                pass
            listed, _ = list_tree(top, (), 100)
            assert "theirs" not in {entry.parts[-1] for entry in listed}
    assert sorted(p.name for p in outside.iterdir()) == ["f", "theirs"]
    assert (outside / "f").read_bytes() == b"secret"
    # Both were tried: an exchange that always wins would prove nothing.
    assert reads


def test_a_write_that_the_disk_refuses_leaves_the_old_file_and_no_draft(
    top: int, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", refuse)
    with folder_at(top, ("d",)) as folder, pytest.raises(OSError, match="full"):
        put_file(folder, "f", b"new")
    assert [p.name for p in (inside / "d").iterdir()] == ["f"]
    assert read(top, "d", "f") == b"inside"


def test_a_file_is_its_owners_alone_and_one_that_is_replaced_keeps_its_rights(
    top: int, inside: Path
) -> None:
    put_file(top, "new", b"x")
    assert stat.S_IMODE((inside / "new").stat().st_mode) == 0o600
    (inside / "d" / "f").chmod(0o4555)
    with folder_at(top, ("d",)) as folder:
        put_file(folder, "f", b"x")
    assert stat.S_IMODE((inside / "d" / "f").stat().st_mode) == 0o755


def test_a_folder_with_something_in_it_is_not_removed(top: int, inside: Path) -> None:
    with pytest.raises(OSError, match="not empty"):
        remove_one(top, "d")
    (inside / "d" / "f").unlink()
    remove_one(top, "d")
    assert list(inside.iterdir()) == []


def test_a_list_shows_each_entry_itself_nearest_first(
    top: int, inside: Path, outside: Path
) -> None:
    (inside / "link").symlink_to(outside)
    os.mkfifo(inside / "d" / "fifo")
    (inside / os.fsdecode(b"\xff\n")).touch()
    listed, is_cut = list_tree(top, (), 100)
    assert not is_cut
    assert [("/".join(e.parts), e.kind) for e in listed] == [
        ("d", "folder"),
        ("link", "link"),
        (os.fsdecode(b"\xff\n"), "file"),
        ("d/f", "file"),
        ("d/fifo", "FIFO"),
    ]
    assert next(e for e in listed if e.parts == ("d", "f")).bytes == 6
    assert {e.parts for e in list_tree(top, ("d",), 100)[0]} == {("d", "f"), ("d", "fifo")}


def test_a_list_of_very_many_entries_is_cut_and_has_the_nearest(top: int, inside: Path) -> None:
    for n in range(3000):
        (inside / "d" / str(n)).touch()
    (inside / "z").touch()
    listed, is_cut = list_tree(top, (), 1000)
    assert is_cut
    assert len(listed) == 1000
    assert [e.parts for e in listed[:2]] == [("d",), ("z",)]
    listed, is_cut = list_tree(top, (), 3003)
    assert (len(listed), is_cut) == (3003, False)


def test_folders_are_listed_to_a_depth_and_the_deepest_can_be_asked_for(short_dir: Path) -> None:
    make_deep(short_dir / "files", 3 * confined.MAX_DEPTH)
    with entered(short_dir / "files", US) as top:
        listed, _ = list_tree(top, (), 5000)
        assert [entry.is_open for entry in listed[-2:]] == [True, False]
        deepest = listed[-1].parts
        assert len(deepest) == confined.MAX_DEPTH
        assert len(list_tree(top, deepest, 5000)[0]) == confined.MAX_DEPTH


@pytest.fixture
def theirs(inside: Path) -> Path:
    for path in (inside, inside / "d", inside / "d" / "f"):
        os.chown(path, NOBODY, NOBODY)
    (inside / "roots").write_bytes(b"root's")
    (inside / "roots").chmod(0o600)
    (inside / "roots-folder").mkdir(mode=0o755)
    return inside


@of_root
def test_what_is_made_belongs_to_the_session(theirs: Path) -> None:
    with entered(theirs, NOBODY) as top, folder_at(top, ("new", "er"), make=True) as folder:
        put_file(folder, "f", b"x")
    for path in (theirs / "new", theirs / "new" / "er", theirs / "new" / "er" / "f"):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (NOBODY, NOBODY)
        assert not found.st_mode & 0o077


@of_root
def test_files_and_folders_of_others_are_as_shut_as_they_are_for_the_session(theirs: Path) -> None:
    with entered(theirs, NOBODY) as top:
        assert read(top, "d", "f") == b"inside"
        with pytest.raises(PermissionError):
            read(top, "roots")
        with folder_at(top, ("roots-folder",)) as folder, pytest.raises(PermissionError):
            put_file(folder, "f", b"x")
    assert list((theirs / "roots-folder").iterdir()) == []


@of_root
def test_another_name_of_a_file_of_the_machines_gives_no_right_on_it(
    theirs: Path, outside: Path
) -> None:
    (outside / "f").chmod(0o600)
    (theirs / "shadow").hardlink_to(outside / "f")
    with entered(theirs, NOBODY) as top, pytest.raises(PermissionError):
        read(top, "shadow")


@of_root
def test_the_rights_are_back_afterwards_also_after_a_failure(theirs: Path) -> None:
    with pytest.raises(FileNotFoundError), entered(theirs, NOBODY) as top:
        look(top, ("none",))
    assert (theirs / "roots").read_bytes() == b"root's"
    (theirs / "made").touch()
    assert (theirs / "made").stat().st_uid == 0


@of_root
def test_a_folder_that_no_container_has_had_yet_is_given_to_the_session(inside: Path) -> None:
    inside.chmod(0o700)
    with entered(inside, NOBODY) as top:
        put_file(top, "f", b"x")
    assert inside.stat().st_uid == (inside / "f").stat().st_uid == NOBODY
