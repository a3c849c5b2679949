"""Node and the tools that judge a server, where they are; see ``scripts/conformance``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("package-lock.json")
INSTALLED = ROOT / ".node" / "installed.json"
TOOLS = ROOT / ".node" / "node_modules" / ".bin"
NEEDED_MAJOR = 22
LIMIT_S = 240.0
"""Bounds a run that hangs: a whole requirement set takes 15 s."""


def find_node() -> str:
    """Node 22 or newer; skips where there is none, or not the tools in the versions of the lock file."""
    for node in (str(TOOLS / "node"), shutil.which("node")):
        if node is None or not Path(node).exists():
            continue
        told = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
        if told.returncode == 0 and int(told.stdout.lstrip("v").split(".")[0]) >= NEEDED_MAJOR:
            break
    else:
        pytest.skip("Node 22 is not there; 'make conformance' gets it")
    if not INSTALLED.exists():
        pytest.skip("the conformance suite is not there; 'make conformance' gets it")
    if INSTALLED.read_bytes() != LOCK.read_bytes():
        pytest.skip("the conformance suite is of another version; 'make conformance' renews it")
    return str(node)


class Node:
    """Runs the tools."""

    def __init__(self, folder: Path) -> None:
        self._node = find_node()
        self._folder = folder

    async def run(self, tool: str, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a tool."""
        # The Inspector starts a server itself, and finds Node by the path.
        path = f"{Path(self._node).parent}:{os.environ['PATH']}"
        command = [self._node, str(TOOLS / tool), *arguments]
        env = {**os.environ, "PATH": path, "NO_COLOR": "1", "HOME": str(self._folder)}
        with anyio.fail_after(LIMIT_S):
            done = await anyio.run_process(command, check=False, cwd=self._folder, env=env)
        return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def node(short_dir: Path) -> Node:
    return Node(short_dir)
