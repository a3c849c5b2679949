"""Small file systems of the tests' own, to be filled up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def mount_small_disk(folder: Path, size_bytes: int) -> None:
    """Make ``folder`` with a file system of its own; the test is skipped where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "small-disk", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")


def fill_up(folder: Path) -> None:
    """Use up the disk to the last byte."""
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        for size in (65_536, 512, 1):
            try:
                while ballast.write(b"x" * size) == size:
                    pass
            except OSError:
                continue
