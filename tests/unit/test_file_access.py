"""Paths that clients name, and what they are told of a session's files."""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.store_rows import session_row

from sagebroker.config import BrokerConfig
from sagebroker.errors import (
    FileRefusedError,
    FilesFullError,
    NoSuchFileError,
    SessionGoneError,
    SessionInUseError,
    StorageError,
)
from sagebroker.session import file_access
from sagebroker.session.file_access import (
    MAX_NAME_BYTES,
    MAX_WRITE_BYTES,
    SessionFiles,
    parts_of,
    quoted,
    shown,
)
from sagebroker.store.folders import SessionFolder, StateFolder

ID = "aaaaaaaaaa"
LIMIT_BYTES = 2**20
ROW = session_row(ID, name="work", uid=os.geteuid())


@pytest.fixture
def folder(config: BrokerConfig) -> SessionFolder:
    state = StateFolder(config.state_dir)
    state.open()
    return state.create(ID)


@pytest.fixture
def files(folder: SessionFolder) -> SessionFiles:
    return SessionFiles(folder, ROW, LIMIT_BYTES)


@pytest.mark.parametrize("path", ["a/b", "/files/a/b", "./a//b/", "//files/./a/b", "a/./b"])
def test_a_path_is_relative_or_as_cells_see_it(path: str) -> None:
    assert parts_of(path) == ("a", "b")


@pytest.mark.parametrize("path", ["", ".", "/files", "/files/", "./"])
def test_the_folder_itself_has_several_names(path: str) -> None:
    assert parts_of(path) == ()


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../b",
        "/files/../etc/passwd",
        "/etc/passwd",
        "/",
        "/filesystem",
        "//etc",
        "a\0b",
        "/files/\0",
        "n" * (MAX_NAME_BYTES + 1),
        "é" * (MAX_NAME_BYTES // 2 + 1),
        "d/" * 3000,
        "\ud800",
    ],
)
async def test_a_path_that_leads_out_or_can_be_none_is_refused_by_each_action(
    files: SessionFiles, path: str
) -> None:
    for refused in (
        files.list(path),
        files.read(path, 0, 10),
        files.write(path, b"x"),
        files.delete(path),
    ):
        with pytest.raises(FileRefusedError) as caught:
            await refused
        str(caught.value).encode("utf-8", "backslashreplace")
        assert len(str(caught.value)) < 5000


@pytest.mark.parametrize("name", ["...", "..a", "a..", "~", "$HOME", "*", "a b", "n" * 255, "a\nb"])
async def test_odd_names_are_names(files: SessionFiles, name: str) -> None:
    await files.write(f"d/{name}", b"x")
    assert (await files.read(f"d/{name}", 0, 10)).data == b"x"
    listed = await files.list("")
    assert [e.parts for e in listed.entries] == [("d",), ("d", name)]
    assert await files.delete(f"d/{name}") == shown(("d", name))
    assert "\n" not in shown(("d", name))


def test_a_path_that_would_forge_a_line_is_told_as_a_json_string() -> None:
    assert quoted("a b/é") == "a b/é"
    assert quoted("a\nb") == '"a\\nb"'
    assert quoted("a\u202eb") == '"a\\u202eb"'
    assert quoted(os.fsdecode(b"\xff")) == '"\\udcff"'


async def test_writing_says_what_was_there(files: SessionFiles) -> None:
    first = await files.write("/files/a/b.txt", b"1234")
    assert (first.path, first.bytes, first.replaced_bytes) == ("/files/a/b.txt", 4, None)
    second = await files.write("a/b.txt", b"12")
    assert second.replaced_bytes == 4
    listed = await files.list("a/b.txt")
    assert [(e.parts, e.bytes) for e in listed.entries] == [(("a", "b.txt"), 2)]


async def test_what_is_missing_is_said_with_how_to_see_what_is_there(files: SessionFiles) -> None:
    for missing in (files.read("a/b", 0, 1), files.delete("none"), files.list("none")):
        with pytest.raises(NoSuchFileError, match=r'does not exist.*action="list"'):
            await missing


async def test_nothing_to_write_does_not_empty_a_file(files: SessionFiles) -> None:
    await files.write("f", b"precious")
    with pytest.raises(FileRefusedError, match="the file has 8 bytes"):
        await files.write("f", b"")
    assert (await files.read("f", 0, 100)).data == b"precious"
    await files.write("empty", b"")
    await files.write("empty", b"")
    assert (await files.read("empty", 0, 100)).size == 0


async def test_a_file_over_the_limit_of_a_call_or_of_the_session_is_refused_whole(
    files: SessionFiles, folder: SessionFolder
) -> None:
    await files.write("f", b"old")
    with pytest.raises(FileRefusedError, match="more than the 3145728"):
        await files.write("f", bytes(MAX_WRITE_BYTES + 1))
    with pytest.raises(FilesFullError, match="limit of 1048576 bytes"):
        await files.write("new/f", bytes(LIMIT_BYTES))
    (folder.files / "by-a-cell").write_bytes(os.urandom(LIMIT_BYTES))
    with pytest.raises(FilesFullError):
        await files.write("f", b"x")
    assert (await files.read("f", 0, 100)).data == b"old"
    assert sorted(p.name for p in folder.files.iterdir()) == ["by-a-cell", "f"]
    await files.delete("by-a-cell")
    await files.write("f", b"new")


async def test_a_folder_is_deleted_when_it_is_empty_only(files: SessionFiles) -> None:
    await files.write("d/f", b"x")
    with pytest.raises(FileRefusedError, match=r"something in it.*shutil.rmtree"):
        await files.delete("d")
    await files.delete("d/f")
    await files.delete("d")
    assert (await files.list("")).entries == []


async def test_links_are_told_and_not_followed(
    files: SessionFiles, folder: SessionFolder, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"secret")
    (folder.files / "out").symlink_to(tmp_path)
    (folder.files / "file").symlink_to(tmp_path / "f")
    for refused in (
        files.read("out/f", 0, 10),
        files.write("out/g", b"x"),
        files.write("out/d/g", b"x"),
        files.delete("out/f"),
        files.list("out/d"),
        files.read("file", 0, 10),
        files.write("file", b"x"),
    ):
        with pytest.raises(FileRefusedError, match="links are not followed"):
            await refused
    [link] = (await files.list("out")).entries
    assert link.kind == "link"
    assert not (tmp_path / "g").exists()
    assert not (tmp_path / "d").exists()
    assert (tmp_path / "f").read_bytes() == b"secret"


async def test_a_file_under_a_file_and_a_file_over_a_folder_are_refused(
    files: SessionFiles,
) -> None:
    await files.write("d/f", b"x")
    with pytest.raises(FileRefusedError, match="On the way there is a file"):
        await files.write("d/f/g", b"x")
    with pytest.raises(FileRefusedError, match="It is a folder"):
        await files.write("d", b"x")
    with pytest.raises(FileRefusedError, match="It is a folder"):
        await files.read("d", 0, 10)


async def test_a_lease_on_a_file_makes_nobody_wait(
    files: SessionFiles, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.files / "f").write_bytes(b"x")
    handle = os.open(folder.files / "f", os.O_RDWR)
    try:
        # The kernel tells its holder by a signal that a reader comes; unheard, it waits for 45 s.
        fcntl.fcntl(handle, fcntl.F_SETSIG, 23)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(FileRefusedError, match="held by a process"):
            await files.read("f", 0, 10)
    finally:
        os.close(handle)
    assert (await files.read("f", 0, 10)).data == b"x"


async def test_the_files_of_a_session_that_is_gone_are_told_to_be_gone(
    files: SessionFiles, folder: SessionFolder
) -> None:
    folder.delete()
    for late in (files.list(""), files.read("f", 0, 1)):
        with pytest.raises(SessionGoneError, match="closed meanwhile"):
            await late


async def test_a_session_of_another_process_is_read_and_not_changed(
    files: SessionFiles, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await files.write("f", b"x")
    monkeypatch.setattr(SessionFolder, "owner", lambda _: 1)
    assert (await files.read("f", 0, 10)).data == b"x"
    for change in (files.write("f", b"y"), files.delete("f")):
        with pytest.raises(SessionInUseError, match="pid 1"):
            await change
    assert (await files.read("f", 0, 10)).data == b"x"


@pytest.mark.parametrize(
    ("code", "said"), [("ENOSPC", "disk is full"), ("EIO", "refuses"), ("EROFS", "refuses")]
)
async def test_what_the_disk_refuses_is_told_without_the_hosts_paths(
    files: SessionFiles, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    await files.write("f", b"old")

    def refuse(_: int) -> None:
        raise OSError(getattr(__import__("errno"), code), "x", "/host/path")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=said) as caught:
            await files.write("f", b"new")
    assert "/host" not in str(caught.value)
    assert (await files.read("f", 0, 10)).data == b"old"


async def test_a_disk_that_hangs_is_told(
    files: SessionFiles, folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_access, "LIMIT_S", 0.05)
    # A pipe nobody writes to stands for a disk that does not answer.
    reading, writing = os.pipe()
    monkeypatch.setattr(SessionFiles, "_read", lambda *_: os.read(reading, 1))
    try:
        with pytest.raises(StorageError, match="did not answer"):
            await files.read("f", 0, 1)
    finally:
        os.write(writing, b"x")
        os.close(writing)


async def test_who_writes_is_counted_as_a_user_of_the_session(folder: SessionFolder) -> None:
    uses: list[int] = []
    files = SessionFiles(
        folder, replace(ROW, uid=os.geteuid()), LIMIT_BYTES, on_write=lambda: uses.append(1)
    )
    await files.list("")
    assert uses == []
    await files.write("f", b"x")
    assert uses == [1]
