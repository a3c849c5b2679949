"""Every endless computation, stopped in each of three ways through a real MCP client over stdio.

After each stop it is checked that the answer's claim about the variables is true, that the next cell
works, and that no late signal hits it. Times are printed at the end, not asserted: `HANG_GUARD_S`
only bounds a test that hangs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult
from tests.interaction.reading import is_error, result_text, status, text_of

pytestmark = pytest.mark.sage

HANG_GUARD_S = 120.0
BEGUN_S = 1.0
"""Given to a computation before it is stopped, so that it is inside its C code."""

CASES = json.loads(
    (Path(__file__).parent.parent / "data" / "interrupts.json").read_text(encoding="utf-8")
)
WAYS = ["cancellation", "sage_interrupt", "time_limit_s"]

_times: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module", autouse=True)
def _print_times(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    lines = ["", f"{'seconds to stop':45}" + "".join(f"{way:>16}" for way in WAYS)]
    for case in CASES:
        cells = [_times.get((case["name"], way), "") for way in WAYS]
        lines.append(f"{case['name']:45}" + "".join(f"{cell:>16}" for cell in cells))
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\n".join(lines))


async def call(client: Client, tool: str, **arguments: object) -> CallToolResult:
    with anyio.fail_after(HANG_GUARD_S):
        found = await client.call_tool(tool, arguments)
    assert isinstance(found, CallToolResult)
    return found


async def stop(client: Client, code: str, way: str) -> tuple[CallToolResult, float]:
    """Run ``code``, stop it, and return the cell's answer and the seconds from the wish to the end."""
    if way == "time_limit_s":
        result = await call(client, "sage_run", code=code, time_limit_s=BEGUN_S)
        took = float(text_of(result).split("]", 1)[0].split()[3])
        return result, took - BEGUN_S
    if way == "cancellation":
        with anyio.move_on_after(BEGUN_S) as scope:
            await client.call_tool("sage_run", {"code": code})
        assert scope.cancelled_caught
        began = time.monotonic()
        listed = await call(client, "sage_sessions")
        assert listed.structured_content is not None
        number = listed.structured_content["sessions"][0]["last_cell"]
        result = await call(client, "sage_wait", session="default", cell=number)
        return result, time.monotonic() - began
    result = await call(client, "sage_run", code=code, wait_s=BEGUN_S)
    assert status(result) == "running"
    began = time.monotonic()
    return await call(client, "sage_interrupt"), time.monotonic() - began


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
async def test_it_is_stopped_and_what_the_answer_says_of_the_variables_is_true(
    client: Client, case: dict[str, str], way: str
) -> None:
    assert not is_error(await call(client, "sage_run", code="keep = 12345"))
    stopped, seconds = await stop(client, case["code"], way)
    text = text_of(stopped)
    assert status(stopped) == "interrupted", text
    after = await call(client, "sage_run", code="keep")
    if "is being started" in text:
        # What is back was not known yet: the next answer says it.
        text = text_of(after)
    claims = {
        "kept": "All variables are kept" in text,
        "back": "A new kernel takes its place with" in text,
        "lost": "All variables are lost" in text,
    }
    (claim,) = [word for word, is_said in claims.items() if is_said]
    _times[case["name"], way] = f"{seconds:.2f} {claim}"
    if claim in ("kept", "back"):
        assert result_text(after) == "12345"
    else:
        assert status(after) == "error"
        assert "name 'keep' is not defined" in text_of(after)
    # Long enough for a late signal to arrive in it.
    calm = await call(client, "sage_run", code="import time; time.sleep(1); factor(2^64 + 1)")
    assert result_text(calm) == "274177 * 67280421310721"
