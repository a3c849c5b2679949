"""The protocol's own conformance suite, and its Inspector as a client in another language."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.conftest import ROOT, Node
from tests.serving import Served, make_token, serving

FIXTURE_SERVER = Path(__file__).with_name("fixture_server.py")
LOCAL_SERVER = ROOT / "tests" / "interaction" / "local_server.py"

REVISIONS = ["2025-11-25", "2026-07-28"]
ERAS = ["legacy", "modern"]

SCENARIOS = {
    "2025-11-25": [
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "completion-complete",
        "tools-list",
        "resources-list",
        "prompts-list",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
    ],
    "2026-07-28": [
        "completion-complete",
        "tools-list",
        "resources-list",
        "prompts-list",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
        "sep-2164-resource-not-found",
        "caching",
        "http-header-validation",
        "input-required-result-unsupported-methods",
        "input-required-result-missing-input-response",
        "input-required-result-ignore-extra-params",
        "input-required-result-validate-input",
    ],
}
"""What says something about a server without the suite's own tools, resources and prompts. The other
scenarios call those by name; the fixture server has them."""


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


@pytest.mark.parametrize("revision", REVISIONS)
async def test_every_requirement_of_a_revision_is_met(
    node: Node, fixture_server: Served, revision: str
) -> None:
    code, report, trouble = await node.run(
        "conformance", "server", "--url", fixture_server.url, "--requirements", revision
    )
    # What a revision does not score is told after the summary.
    assert code == 0, report[report.rfind("=== SUMMARY") :] + trouble
    assert re.search(r"Total: \d{2,} passed", report)


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


@pytest.mark.parametrize(
    ("revision", "scenario"), [(r, s) for r in REVISIONS for s in SCENARIOS[r]]
)
async def test_the_real_server_passes_what_applies_to_it(
    node: Node, real_server: Served, revision: str, scenario: str
) -> None:
    chosen = ("--scenario", scenario, "--spec-version", revision)
    code, report, _ = await node.run("conformance", "server", "--url", real_server.url, *chosen)
    assert code == 0, report


def stdio_target(folder: Path) -> list[str]:
    return [sys.executable, str(LOCAL_SERVER), str(folder)]


async def inspect(node: Node, target: list[str], era: str, *what: str) -> Any:
    """The Inspector's answer, in its strict mode."""
    code, answer, trouble = await node.run(
        "mcp-inspector", "--cli", *target, "--protocol-era", era, *what, "--format", "json"
    )
    assert code == 0, answer + trouble
    return json.loads(answer)["result"]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_the_inspector_finds_nothing_wrong_with_the_tools_and_can_call_them(
    node: Node, short_dir: Path, era: str, transport: str
) -> None:
    token = make_token(short_dir / "state", "alice")
    command = [*stdio_target(short_dir), "serve"]
    async with serving(command, short_dir / "state") as served:
        target = stdio_target(short_dir / "own")
        if transport == "http":
            target = [served.url, "--header", f"Authorization: Bearer {token}"]
        listed = await inspect(node, target, era, "--method", "tools/list", "--strict")
        assert len(listed["tools"]) == 12
        arguments = ("--tool-args-json", json.dumps({"code": "2^64 - 2^63"}))
        called = await inspect(
            node, target, era, "--method", "tools/call", "--tool-name", "sage_run", *arguments
        )
        assert called["isError"] is False
        assert called["content"][-1]["text"] == str(2 ^ 64 - 2 ^ 63)
        for method, key in (("resources/list", "resources"), ("prompts/list", "prompts")):
            assert (await inspect(node, target, era, "--method", method))[key]
