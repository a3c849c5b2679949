"""Every file in `examples/` is run; each checks itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RUN_LIMIT_S = 240
"""A hang guard: the longest, the demonstration, takes some 20 s."""
DRAWS = {"demo.py", "mcp_client.py"}
"""The examples that write pictures."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

pytestmark = [pytest.mark.docker, pytest.mark.sage]


@pytest.fixture
def served_from(tmp_path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and folders for the example's broker that are no one else's."""
    monkeypatch.setenv("SAGEBROKER_STATE_DIR", str(short_dir / "state"))
    monkeypatch.setenv("SAGEBROKER_RUNTIME_DIR", str(short_dir / "run"))
    return tmp_path


@pytest.mark.core
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_an_example_runs_and_finds_what_it_expects(
    example: Path, served_from: Path, sage_image: str
) -> None:
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=served_from,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pictures = list(served_from.rglob("*.png"))
    assert bool(pictures) == (example.name in DRAWS)
    assert all(p.read_bytes().startswith(PNG_SIGNATURE) for p in pictures)
