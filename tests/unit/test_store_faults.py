"""What the store says and keeps when its file or its disk fails; the real thing is made to happen."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.disks import fill_up, mount_small_disk
from tests.unit.store_rows import STREAM, cell_row, fill, open_store, session_row

from sagebroker.errors import StorageError
from sagebroker.store import schema, sqlite_file
from sagebroker.store.database import Database
from sagebroker.store.faults import storage_error

ID = "aaaaaaaaaa"
ROOT = Path(__file__).resolve().parents[2]

SMALL_DISK_BYTES = 2 * 2**20
"""Room for the store, its log and some cells."""


def python(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process that runs ``code`` with the store of ``folder`` open as ``store``."""
    start = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from tests.unit.store_rows import *\nstore = open_store(Path(sys.argv[1]))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", start + code, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A folder with a store of some pages, closed, and a session's files beside it."""
    store = open_store(tmp_path)
    fill(store, tmp_path, cells=200)
    store.close()
    (tmp_path / "sessions" / "precious").write_text("x")
    return tmp_path


def assert_told_as_damaged(folder: Path, said: pytest.ExceptionInfo[StorageError]) -> None:
    text = str(said.value)
    assert str(folder / "store.db") in text
    for part in ("damaged", "Nothing was changed", "untouched beside it", "move it away", "a copy"):
        assert part in text
    assert (folder / "sessions" / "precious").read_text() == "x"


def test_a_file_that_is_no_database_is_told_and_left_alone(filled: Path) -> None:
    content = b"This is no database. " * 1000
    (filled / "store.db").write_bytes(content)
    with pytest.raises(StorageError) as said:
        open_store(filled)
    assert_told_as_damaged(filled, said)
    assert (filled / "store.db").read_bytes() == content


@pytest.mark.parametrize("kept", [50, 1000, 4096, 20_000, -4096])
def test_a_file_that_was_cut_off_is_told_and_left_alone(filled: Path, kept: int) -> None:
    content = (filled / "store.db").read_bytes()[:kept]
    (filled / "store.db").write_bytes(content)
    with pytest.raises(StorageError) as said:
        open_store(filled)
    assert_told_as_damaged(filled, said)
    assert (filled / "store.db").read_bytes() == content


def test_pages_that_were_overwritten_are_told_when_they_are_read(filled: Path) -> None:
    content = bytearray((filled / "store.db").read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    (filled / "store.db").write_bytes(content)
    with pytest.raises(StorageError) as said:
        look_through(filled)
    assert_told_as_damaged(filled, said)
    assert (filled / "store.db").read_bytes() == content


def look_through(folder: Path) -> None:
    store = open_store(folder)
    try:
        store.sessions()
        store.cells(ID)
    finally:
        store.close()


def test_a_row_that_cannot_be_understood_is_told_as_damage(filled: Path) -> None:
    with sqlite3.connect(filled / "store.db") as sql:
        sql.execute("UPDATE cells SET notices = x'7b' WHERE number = 3")
    sql.close()
    with pytest.raises(StorageError, match="cannot be understood") as said:
        look_through(filled)
    assert_told_as_damaged(filled, said)


def test_what_a_killed_writer_had_stored_is_there_and_what_it_was_at_is_not(tmp_path: Path) -> None:
    writer = python(
        "fill(store, Path(sys.argv[1]), cells=200)\n"
        "store.save(outputs={('aaaaaaaaaa', 3): [STREAM]})\n"
        "with store._writing() as sql:\n"
        "    sql.execute('PRAGMA cache_size = 1')\n"  # so that half of it is in the log
        "    sql.execute('DELETE FROM cells')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n",
        tmp_path,
    )
    _, said = writer.communicate()
    assert writer.returncode == -signal.SIGKILL, said
    assert (tmp_path / "store.db-wal").stat().st_size > 0
    store = open_store(tmp_path)
    assert len(store.cells(ID)) == 200
    assert [row.content for row in store.outputs(ID, 3)] == [STREAM[1], STREAM[1]]
    store.close()


def test_a_log_that_was_cut_off_loses_its_last_transaction_only(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, tmp_path, cells=1)
    store.save(cells=[cell_row(2)])
    for name in ("store.db", "store.db-wal"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content[:-100] if "wal" in name else content)
    store.close()
    copy = open_store(tmp_path / "copy")
    assert [cell.number for cell in copy.cells(ID)] == [1]
    copy.save(cells=[cell_row(2)])
    copy.close()


def test_a_store_that_others_hold_too_long_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_LIMIT_S", 0.05)
    store = open_store(tmp_path)
    store.add_session(session_row())
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"held by another process.*Try again"):
        store.save(cells=[cell_row()])
    assert store.cells(ID) == []  # reading goes on
    other.execute("ROLLBACK")
    store.save(cells=[cell_row()])
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.close()
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="held by another process"):
        open_store(tmp_path)
    other.close()


def test_a_store_of_a_later_version_is_told_and_left_alone(filled: Path) -> None:
    with sqlite3.connect(filled / "store.db") as sql:
        sql.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    sql.close()
    content = (filled / "store.db").read_bytes()
    with pytest.raises(StorageError, match=r"later sagebroker.*Nothing was changed"):
        open_store(filled)
    assert (filled / "store.db").read_bytes() == content


@pytest.mark.parametrize("version", [0, 1])
def test_the_database_of_another_program_is_told_and_left_alone(
    tmp_path: Path, version: int
) -> None:
    with sqlite3.connect(tmp_path / "store.db") as sql:
        sql.execute("CREATE TABLE theirs (x)")
        sql.execute(f"PRAGMA user_version = {version}")
    sql.close()
    content = (tmp_path / "store.db").read_bytes()
    with pytest.raises(StorageError, match="another program"):
        open_store(tmp_path)
    assert (tmp_path / "store.db").read_bytes() == content


def test_an_older_store_is_led_to_this_version_step_by_step(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = (
        *schema.MIGRATIONS,
        ("ALTER TABLE events ADD COLUMN a INTEGER", "ALTER TABLE events ADD COLUMN b INTEGER"),
        ("ALTER TABLE events DROP COLUMN a", "CREATE TABLE sessions (x)"),
    )
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", len(later))
    with pytest.raises(StorageError, match="already exists"):
        open_store(filled)
    # The step that fails leaves nothing; the one before it stands.
    monkeypatch.setattr(schema, "MIGRATIONS", later[:2])
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    store = open_store(filled)
    columns = {row[1] for row in store._sql.execute("PRAGMA table_info(events)")}
    assert {"a", "b"} < columns
    assert len(store.cells(ID)) == 200
    store.close()


def test_a_place_that_cannot_have_a_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be made.*SAGEBROKER_STATE_DIR"):
        open_store(tmp_path / "missing")
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StorageError, match=r"cannot be written.*SAGEBROKER_STATE_DIR"):
        open_store(tmp_path)


def test_a_store_that_was_moved_away_takes_nothing_until_it_is_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.add_session(session_row())
    (tmp_path / "store.db").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"moved or removed.*Put it back"):
        store.save(cells=[cell_row()])
    (tmp_path / "store.db").touch()
    with pytest.raises(StorageError, match="moved or removed"):
        store.save(cells=[cell_row()])
    (tmp_path / "elsewhere").replace(tmp_path / "store.db")
    store.save(cells=[cell_row()])
    assert len(store.cells(ID)) == 1
    store.close()


def test_a_store_that_is_closed_says_so(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.sessions()


@pytest.mark.parametrize(
    "code",
    [value for name, value in vars(sqlite3).items() if name.startswith("SQLITE_IOERR")],
)
def test_every_failure_of_the_disk_says_what_is_still_there(code: int) -> None:
    assert "stored before is still there" in str(storage_error(Path("/s.db"), code, "said"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of `SMALL_DISK_BYTES`."""
    folder = tmp_path / "disk"
    mount_small_disk(folder, SMALL_DISK_BYTES)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_loses_nothing_that_was_stored_and_is_no_reason_to_begin_anew(
    small_disk: Path,
) -> None:
    store = open_store(small_disk)
    fill(store, small_disk)
    store.save(cells=[cell_row(4)])
    fill_up(small_disk)
    with pytest.raises(StorageError, match=r"cannot grow.*Free some disk"):
        store.save(
            cells=[cell_row(n, code="x" * 10_000) for n in range(5, 105)],
            outputs={(ID, 1): [STREAM]},
        )
    assert [cell.number for cell in store.cells(ID)] == [1, 2, 3, 4]
    assert len(store.outputs(ID, 1)) == 1
    (small_disk / "ballast").unlink()
    store.save(cells=[cell_row(5)], outputs={(ID, 1): [STREAM]})
    store.close()
    again = open_store(small_disk)
    assert [cell.number for cell in again.cells(ID)] == [1, 2, 3, 4, 5]
    again.close()


@pytest.mark.root
def test_a_disk_without_room_for_a_large_output_keeps_neither_its_row_nor_half_a_file(
    small_disk: Path,
) -> None:
    store = open_store(small_disk)
    fill(store, small_disk)
    large = ("stream", {"text": "x" * SMALL_DISK_BYTES})
    with pytest.raises(StorageError, match=r"cannot be stored.*Free some disk"):
        store.save(outputs={(ID, 1): [STREAM, ("stream", {"text": "x" * 300_000}), large]})
    assert len(store.outputs(ID, 1)) == 1
    assert list((small_disk / "sessions" / ID).iterdir()) == []
    store.save(outputs={(ID, 1): [STREAM]})
    assert len(store.outputs(ID, 1)) == 2
    store.close()


@pytest.mark.root
def test_a_store_that_can_only_be_read_is_told_at_once(small_disk: Path) -> None:
    store = open_store(small_disk)
    fill(store, small_disk)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"cannot be written.*SAGEBROKER_STATE_DIR"):
        open_store(small_disk)
    (small_disk.parent / "empty").mkdir()
    with pytest.raises(StorageError, match="cannot be made"):
        Database.open(small_disk / "other.db", lambda session: small_disk / session)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    again = open_store(small_disk)
    assert len(again.cells(ID)) == 3
    again.close()


@pytest.mark.root
def test_a_new_store_on_a_full_disk_is_told(small_disk: Path) -> None:
    fill_up(small_disk)
    with pytest.raises(StorageError, match="Free some disk"):
        open_store(small_disk)


def test_two_processes_write_at_once_and_all_of_both_is_stored(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    writing = (
        "store.add_session(session_row(SESSION))\n"
        "for n in range(1, 201):\n"
        "    store.save(cells=[cell_row(n, SESSION)], outputs={(SESSION, n): [STREAM]})\n"
        "store.close()\n"
    )
    # Both make the store, too, at the same moment.
    writers = [
        python(writing.replace("SESSION", repr(session)), tmp_path)
        for session in ("aaaaaaaaaa", "bbbbbbbbbb")
    ]
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    store = open_store(tmp_path)
    for session in ("aaaaaaaaaa", "bbbbbbbbbb"):
        found = store.cells(session)
        assert [(c.number, c.output_count) for c in found] == [(n, 1) for n in range(1, 201)]
    assert store._sql.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    store.close()


def test_a_store_is_made_by_many_at_once(tmp_path: Path) -> None:
    in_step = threading.Barrier(4)
    failures: list[StorageError] = []

    def make() -> None:
        for n in range(40):
            folder = tmp_path / str(n)
            folder.mkdir(exist_ok=True)
            (folder / "store.db").touch()
            in_step.wait()
            try:
                open_store(folder).close()
            except StorageError as error:
                failures.append(error)

    makers = [threading.Thread(target=make) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert failures == []
