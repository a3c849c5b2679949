"""The documents say what is so: version, settings, tools, commands, event words, links, paths."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

import sagebroker
from sagebroker.cli.main import app
from sagebroker.logs import EVENTS
from sagebroker.model import SessionState
from sagebroker.server.app import make_server

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sagebroker.broker import Broker

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "tests/README.md",
    )
] + sorted((ROOT / "docs").glob("*.md"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The part of a document below a heading, up to the next of its level."""
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def first_cells(table: str) -> list[str]:
    """What stands in backquotes in the first column of a table's rows."""
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_the_newest_entry_of_the_changelog_is_the_version_of_the_package() -> None:
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", read("CHANGELOG.md"), re.MULTILINE)
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert newest
    assert newest[1] == sagebroker.__version__ == project["version"]


async def test_the_readme_lists_exactly_the_tools_that_the_server_offers() -> None:
    def never() -> AbstractAsyncContextManager[Broker]:
        raise AssertionError("listing tools opens no broker")

    offered = [tool.name for tool in await make_server(never).list_tools()]
    listed = first_cells(section(read("README.md"), "Tools"))
    assert sorted(listed) == sorted(offered)


def test_the_readme_lists_exactly_the_commands_of_the_command_line() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    listed = first_cells(section(read("README.md"), "Command line"))
    words = {entry.split()[1] for entry in listed if entry.startswith("sagebroker ")}
    assert words == set(commands)
    shown = {entry for entry in listed if not entry.startswith("sagebroker ")} | {"list"}
    assert shown == set(commands["sessions"].commands)
    image = {entry.split()[2] for entry in listed if entry.startswith("sagebroker image ")}
    assert image == set(commands["image"].commands)


def test_the_readme_lists_exactly_the_targets_of_the_makefile_each_of_which_is_one_line() -> None:
    targets = re.findall(r"^(\w+): *; @\S", read("Makefile"), re.MULTILINE)
    listed = first_cells(section(read("README.md"), "Two commands"))
    assert sorted(listed) == sorted(f"make {target}" for target in targets)
    phony = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    assert phony
    assert phony[1].split() == targets


def test_every_setting_is_documented_with_its_default() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/settings_table.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_event_word_is_documented_and_no_other() -> None:
    words = section(read("ARCHITECTURE.md"), "Event words in logs")
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", words)) == EVENTS


def test_every_event_word_is_used_somewhere() -> None:
    source = "\n".join(
        p.read_text() for p in (ROOT / "broker").rglob("*.py") if p.name != "logs.py"
    )
    assert [word for word in sorted(EVENTS) if f'"{word}"' not in source] == []


def test_the_states_of_a_session_are_documented() -> None:
    line = re.search(r"^States: (.*)\.$", read("ARCHITECTURE.md"), re.MULTILINE)
    assert line
    assert re.findall(r"`(\w+)`", line[1]) == [state.value for state in SessionState]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_paths_in_documents_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in t]
    assert [link for link in links if not (path.parent / link).exists()] == []
    places = re.findall(
        r"`((?:tests|scripts|examples|docs|images|kernelspecs|broker)/[\w./-]+)`", text
    )
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_table_of_faults_names_tests_that_are_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", read("tests/README.md")))
    missing = [name for name in named if not (ROOT / "tests" / name).exists()]
    assert sorted(name for name in missing if not name.startswith("scripts/")) == []


def test_the_clients_configurations_in_the_readme_are_json_that_starts_the_server() -> None:
    blocks = re.findall(r"```json\n(.*?)```", read("README.md"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (servers,) = json.loads(block).values()
        server = servers["sagemath"]
        assert server["command"].endswith("/.venv/bin/sagebroker")
        assert server["args"] == ["mcp"]
