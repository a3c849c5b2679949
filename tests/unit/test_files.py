"""How much a session's files take, also where the session hides them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sagebroker.session import files
from sagebroker.session.files import used_bytes

PLENTY = 10**12
MEGABYTE = 2**20


def test_everything_below_counts_and_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(bytes(8 * MEGABYTE))
    inner = tmp_path / "files" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "f").write_bytes(bytes(MEGABYTE))
    (inner / "link").symlink_to(tmp_path / "outside")
    (inner / "folder").symlink_to(tmp_path)
    assert MEGABYTE <= used_bytes(tmp_path / "files", enough=PLENTY) < 2 * MEGABYTE


def test_counting_stops_when_it_is_enough(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(MEGABYTE))
    assert used_bytes(tmp_path, enough=1000) > 1000


def test_very_many_files_count_as_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ENTRIES", 10)
    for n in range(2):
        (tmp_path / f"d{n}").mkdir()
        for m in range(4):
            (tmp_path / f"d{n}" / str(m)).touch()
    assert used_bytes(tmp_path, enough=PLENTY) < PLENTY
    (tmp_path / "eleventh").touch()
    assert used_bytes(tmp_path, enough=PLENTY) == PLENTY + 1


def test_a_file_that_goes_while_it_is_counted_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(5):
        (tmp_path / str(n)).write_bytes(bytes(MEGABYTE))
    scandir = os.scandir

    @contextmanager
    def scan(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as found:
            entries = list(found)
        Path(entries[0].path).unlink()
        yield entries

    monkeypatch.setattr(os, "scandir", scan)
    assert used_bytes(tmp_path, enough=PLENTY) >= 4 * MEGABYTE


@pytest.mark.parametrize("mode", ["0", "0o400", "0o100", "0o200"])
def test_files_in_a_folder_without_rights_count(
    as_ordinary_user: Callable[[str], str], mode: str
) -> None:
    said = as_ordinary_user(f"""
(root / "files" / "a" / "b").mkdir(parents=True)
(root / "files" / "a" / "b" / "f").write_bytes(bytes(2**20))
(root / "files" / "a" / "b").chmod({mode})
(root / "files" / "a").chmod({mode})
(root / "files").chmod({mode})
print(used_bytes(root / "files", enough=10**12))
""")
    assert MEGABYTE <= int(said) < 2 * MEGABYTE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a folder of another user")
def test_a_folder_of_others_that_nobody_may_look_into_counts_as_too_much(
    short_dir: Path, as_ordinary_user: Callable[[str], str]
) -> None:
    (short_dir / "files" / "theirs").mkdir(parents=True)
    (short_dir / "files" / "theirs").chmod(0o700)
    assert as_ordinary_user("print(used_bytes(root / 'files', enough=10**6))") == "1000001"


def test_folders_deeper_than_any_path_count_as_too_much(short_dir: Path) -> None:
    name = "d" * 250
    here = os.open(short_dir, os.O_RDONLY)
    for _ in range(20):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert used_bytes(short_dir, enough=PLENTY) == PLENTY + 1
