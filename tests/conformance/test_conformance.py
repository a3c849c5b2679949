"""The protocol's own conformance suite, and its Inspector as a client in another language."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.conftest import ROOT, Node
from tests.serving import Served, make_token, serving

FOLDER = Path(__file__).parent
FIXTURE_SERVER = FOLDER / "fixture_server.py"
LOCAL_SERVER = ROOT / "tests" / "interaction" / "local_server.py"

ERAS = ["legacy", "modern"]
UNSCORED = {"2025-11-25": "server-session-lifecycle", "2026-07-28": "http-header-validation"}
"""Revision to what the suite runs with its requirements without counting it; it must pass, too."""


@pytest.fixture
async def fixture_server(short_dir: Path) -> AsyncIterator[Served]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(FIXTURE_SERVER), str(short_dir)]
    async with serving(command, short_dir / "state", env) as found:
        yield found


@pytest.fixture
async def real_server(short_dir: Path) -> AsyncIterator[Served]:
    command = [sys.executable, str(LOCAL_SERVER), str(short_dir), "serve"]
    async with serving(command, short_dir / "state") as found:
        yield found


async def judge(node: Node, server: Served, revision: str, baseline: str) -> None:
    """Fails where a server fails a requirement that is not in the baseline, or passes one that is."""
    accepted = ("--expected-failures", str(FOLDER / baseline))
    code, report, trouble = await node.run(
        "conformance", "server", "--url", server.url, "--requirements", revision, *accepted
    )
    assert code == 0, report[report.rfind("=== SUMMARY") :] + trouble
    assert re.search(r"Total: \d{2,} passed", report)
    assert f"✓ {UNSCORED[revision]}:" in report


@pytest.mark.parametrize("revision", UNSCORED)
async def test_every_requirement_of_a_revision_is_met(
    node: Node, fixture_server: Served, revision: str
) -> None:
    await judge(node, fixture_server, revision, "fixture_server.yml")


TASKS = [
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-dispatch-and-envelope",
    "tasks-request-headers",
]
"""Scenarios of the Tasks extension, which no revision scores. The others want a tool that asks two things at
once, or that is a task for everybody: a cell does neither."""

NOT_FOR_CELLS = {"sep-2663-tasks-get-status-failed"}
"""Checks of these scenarios that want a task to fail by a protocol error; a cell always has an answer."""


@pytest.mark.parametrize("scenario", TASKS)
async def test_a_cell_is_a_task_as_the_extension_has_it(
    node: Node, fixture_server: Served, short_dir: Path, scenario: str
) -> None:
    chosen = ("--scenario", scenario, "-o", str(short_dir / "out"))
    await node.run("conformance", "server", "--url", fixture_server.url, *chosen)
    [report] = (short_dir / "out").rglob("checks.json")
    checks = json.loads(report.read_text())
    assert len(checks) > 2
    failed = {check["id"] for check in checks if check["status"] == "FAILURE"}
    assert failed <= NOT_FOR_CELLS, report.read_text()


@pytest.mark.parametrize("revision", UNSCORED)
async def test_the_real_server_meets_every_requirement_that_applies_to_it(
    node: Node, real_server: Served, revision: str
) -> None:
    await judge(node, real_server, revision, "real_server.yml")


@asynccontextmanager
async def inspectable(transport: str, folder: Path) -> AsyncIterator[list[str]]:
    """What tells the Inspector where a server is; over stdio it starts one for each call."""
    command = [sys.executable, str(LOCAL_SERVER), str(folder)]
    if transport == "stdio":
        yield command
        return
    token = make_token(folder / "state", "alice")
    async with serving([*command, "serve"], folder / "state") as served:
        yield [served.url, "--header", f"Authorization: Bearer {token}"]


async def inspect(node: Node, target: list[str], era: str, *what: str) -> Any:
    """The Inspector's answer."""
    code, answer, trouble = await node.run(
        "mcp-inspector", "--cli", *target, "--protocol-era", era, *what, "--format", "json"
    )
    assert code == 0, answer + trouble
    told = json.loads(answer)
    # Of warnings, the exit code says nothing.
    assert "schemaFindings" not in told, told["schemaFindings"]
    return told["result"]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_the_inspector_finds_nothing_wrong_with_the_tools_and_can_call_them(
    node: Node, short_dir: Path, era: str, transport: str
) -> None:
    async with inspectable(transport, short_dir) as target:
        listed = await inspect(node, target, era, "--method", "tools/list", "--strict")
        assert len(listed["tools"]) == 12
        arguments = ("--tool-args-json", json.dumps({"code": "2**64"}))
        called = await inspect(
            node, target, era, "--method", "tools/call", "--tool-name", "sage_run", *arguments
        )
        assert called["isError"] is False
        assert called["content"][-1]["text"] == str(2**64)
        for method, key in (("resources/list", "resources"), ("prompts/list", "prompts")):
            assert (await inspect(node, target, era, "--method", method))[key]
