"""Removing folders that a session wrote into, whatever it did to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sagebroker.store.trees import open_up, remove_tree


def make_deep(top: Path, depth: int) -> None:
    """Folders in one another, deeper than a path may be long."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)


def test_a_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    for place in ("a/b/c", "a/d", "e"):
        (tmp_path / "top" / place).mkdir(parents=True)
        (tmp_path / "top" / place / "f").write_text("x")
    remove_tree(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_removing_what_is_gone_is_harmless(tmp_path: Path) -> None:
    remove_tree(tmp_path / "none")


def test_a_tree_deeper_than_any_path_can_be_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "top", 3000)
    remove_tree(tmp_path / "top")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(outside)
    remove_tree(tmp_path / "top")
    assert outside.stat().st_mode & 0o777 == 0o500
    (tmp_path / "link").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "link")


def test_folders_without_rights_can_be_removed_by_their_owner(
    as_ordinary_user: Callable[[str], str],
) -> None:
    said = as_ordinary_user("""
for place in ("top/a/b/c", "top/d/e", "top/f"):
    (root / place).mkdir(parents=True)
    (root / place / "file").write_text("x")
for place in ("top/a/b/c", "top/a/b", "top/a", "top/d", "top"):
    (root / place).chmod(0)
(root / "top").chmod(0o300)
remove_tree(root / "top")
print(list(root.iterdir()))
""")
    assert said == "[]"


def test_two_may_remove_the_same_tree_at_once(tmp_path: Path) -> None:
    failures: list[OSError] = []

    def work() -> None:
        try:
            remove_tree(tmp_path / "top")
        except OSError as error:
            failures.append(error)

    for _ in range(20):
        for n in range(100):
            (tmp_path / "top" / str(n % 10) / str(n)).mkdir(parents=True)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert list(tmp_path.iterdir()) == []


def test_a_removal_stops_when_its_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "f").write_text("x")
    with pytest.raises(TimeoutError):
        remove_tree(tmp_path / "top", limit_s=-1.0)
    assert (tmp_path / "top" / "f").exists()


def test_a_folder_is_opened_up_by_its_own_way_only(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside" / "in").mkdir(parents=True, mode=0o700)
    (tmp_path / "outside" / "in").chmod(0o500)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(NotADirectoryError):
        open_up(tmp_path / "root", tmp_path / "root" / "link" / "in")
    assert (tmp_path / "outside" / "in").stat().st_mode & 0o777 == 0o500
    (tmp_path / "root" / "own").mkdir()
    (tmp_path / "root" / "own").chmod(0o100)
    open_up(tmp_path / "root", tmp_path / "root" / "own")
    assert (tmp_path / "root" / "own").stat().st_mode & 0o777 == 0o700
