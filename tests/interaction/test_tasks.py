"""The Tasks extension over HTTP: a long cell is a task, found again by whoever owns it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from tests.interaction.conftest import local_serve
from tests.interaction.test_http import GUARD_S
from tests.serving import Served, make_token, serving, serving_in

from sagebroker.server.auth import READ
from sagebroker.server.tasks import EXTENSION

VERSION = "2026-07-28"
WAITS = "import os, time\nx = 6\nwhile not os.path.exists('go'): time.sleep(0.01)\nx * 7"


class ModernClient:
    """JSON-RPC as of 2026-07-28, with capabilities of one's own choice."""

    def __init__(self, served: Served, token: str, *extensions: str) -> None:
        self._url, self._token = served.url, token
        self.capabilities: dict[str, Any] = {
            "extensions": {name: {} for name in extensions},
            "elicitation": {},
        }
        self._ids = itertools.count(1)

    async def ask(self, method: str, named: str, /, **params: Any) -> dict[str, Any]:
        prefix = "io.modelcontextprotocol/"
        meta = {
            f"{prefix}protocolVersion": VERSION,
            f"{prefix}clientInfo": {"name": "test", "version": "1"},
            f"{prefix}clientCapabilities": self.capabilities,
        }
        body = {
            "jsonrpc": "2.0",
            "id": next(self._ids),
            "method": method,
            "params": {**params, "_meta": meta},
        }
        headers = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {self._token}",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": method,
            "Mcp-Name": named,
        }
        async with httpx2.AsyncClient(timeout=GUARD_S) as http:
            found: dict[str, Any] = (await http.post(self._url, json=body, headers=headers)).json()
        return found

    async def run(self, code: str, **arguments: Any) -> dict[str, Any]:
        call = {"code": code, **arguments}
        answer = await self.ask("tools/call", "sage_run", name="sage_run", arguments=call)
        result: dict[str, Any] = answer["result"]
        return result

    async def task(self, method: str, task_id: str, **params: Any) -> dict[str, Any]:
        return await self.ask(f"tasks/{method}", task_id, taskId=task_id, **params)

    async def until(self, task_id: str, status: str) -> dict[str, Any]:
        with anyio.fail_after(GUARD_S):
            while True:
                found: dict[str, Any] = (await self.task("get", task_id))["result"]
                if found["status"] == status:
                    return found


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Served]:
    async with serving_in(local_serve, "tasks") as found:
        yield found


@pytest.fixture
def served(server: Served) -> Served:
    return server.for_one_test()


@pytest.fixture
def alice(served: Served) -> ModernClient:
    return ModernClient(served, served.token("alice"), EXTENSION)


def files_of(served: Served, user: str) -> Path:
    [session] = (served.state_dir / "users" / served.user(user) / "sessions").iterdir()
    return session / "files"


async def test_a_cell_that_ends_soon_is_answered_at_once(alice: ModernClient) -> None:
    answer = await alice.run("1 + 1")
    assert answer["resultType"] == "complete"
    assert answer["content"][-1]["text"] == "2"


async def test_a_cell_that_goes_on_is_a_task_with_the_same_answer(
    alice: ModernClient, served: Served
) -> None:
    task = await alice.run(WAITS)
    assert (task["resultType"], task["status"]) == ("task", "working")
    found = (await alice.task("get", task["taskId"]))["result"]
    assert found["status"] == "working"
    assert "running" in found["statusMessage"]
    (files_of(served, "alice") / "go").touch()
    ended = await alice.until(task["taskId"], "completed")
    assert ended["result"]["content"][-1]["text"] == "42"
    failed = await alice.until((await alice.run("time.sleep(1.5); 1/0"))["taskId"], "completed")
    assert failed["result"]["isError"] is True


async def test_a_cancelled_task_stops_its_cell_and_keeps_the_variables(
    alice: ModernClient,
) -> None:
    task = await alice.run(WAITS)
    assert (await alice.task("cancel", task["taskId"]))["result"]["resultType"] == "complete"
    await alice.until(task["taskId"], "cancelled")
    # Once more does no harm, and a later cell is not hit by it.
    assert (await alice.task("cancel", task["taskId"]))["result"]["resultType"] == "complete"
    assert (await alice.run("x"))["content"][-1]["text"] == "6"


async def test_a_task_asks_and_is_answered(alice: ModernClient) -> None:
    task = await alice.run("time = __import__('time'); time.sleep(1.5); input('Who? ')")
    asking = await alice.until(task["taskId"], "input_required")
    [(key, request)] = asking["inputRequests"].items()
    assert request["params"]["message"] == "Who? "
    stale = {"input99": {"action": "accept", "content": {"text": "wrong"}}}
    await alice.task("update", task["taskId"], inputResponses=stale)
    given = {key: {"action": "accept", "content": {"text": "me"}}}
    await alice.task("update", task["taskId"], inputResponses=given)
    ended = await alice.until(task["taskId"], "completed")
    assert ended["result"]["content"][-1]["text"] == "'me'"


async def test_a_client_that_cannot_ask_is_told_how_to_answer(
    alice: ModernClient, served: Served
) -> None:
    task = await alice.run("time = __import__('time'); time.sleep(1.5); input('Who? ')")
    await alice.until(task["taskId"], "input_required")
    silent = ModernClient(served, served.token("alice"), EXTENSION)
    del silent.capabilities["elicitation"]
    found = (await silent.task("get", task["taskId"]))["result"]
    assert found["status"] == "working"
    assert "inputRequests" not in found
    assert "sage_wait" in found["statusMessage"]


async def test_a_task_is_found_again_by_the_next_server(short_dir: Path) -> None:
    token = make_token(short_dir / "state", "alice")
    async with serving(local_serve(short_dir), short_dir / "state") as first:
        client = ModernClient(first, token, EXTENSION)
        task = await client.run(WAITS)
        (files_of(first, "alice") / "go").touch()
        before = await client.until(task["taskId"], "completed")
    async with serving(local_serve(short_dir), short_dir / "state") as second:
        client = ModernClient(second, token, EXTENSION)
        after = (await client.task("get", task["taskId"]))["result"]
        assert after["status"] == "completed"
        assert after["result"]["content"] == before["result"]["content"]


async def test_a_task_belongs_to_its_user_and_to_clients_that_know_tasks(
    alice: ModernClient, served: Served
) -> None:
    task = await alice.run(WAITS)
    bob = ModernClient(served, served.token("bob"), EXTENSION)
    foreign = await bob.task("get", task["taskId"])
    missing = await bob.task("get", "absent.1")
    assert foreign["error"] == missing["error"]
    [session, number] = task["taskId"].split(".")
    for odd in ("", ".", "a", f"{session}.00{number}", f"{session}.{10**20}"):
        assert (await alice.task("get", odd))["error"]["code"] in (-32602, -32020)
    reader = ModernClient(served, served.token("alice", READ), EXTENSION)
    assert "sage:run" in (await reader.task("cancel", task["taskId"]))["error"]["message"]
    plain = ModernClient(served, served.token("alice"))
    assert (await plain.task("get", task["taskId"]))["error"]["code"] == -32021
    waited = await plain.run("1", wait_s=1.5)
    assert waited["resultType"] == "complete"
    await alice.task("cancel", task["taskId"])
    await alice.until(task["taskId"], "cancelled")
