"""Every era over every real transport, on real Sage: what a client may count on wherever it comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, ImageContent
from tests.conftest import PREFIX, remove_folder
from tests.interaction.reading import is_error, parts, result_text, status, text_of
from tests.serving import REAL_SERVE, Served, make_token, real_server_env, serving

pytestmark = pytest.mark.sage

GUARD_S = 120.0
HARD = "factor((2^300).next_prime()*(2^305).next_prime())"
"""PARI works on it for hours, and obeys SIGINT."""
LONG_PRINT = "for k in range(50000): print('x'*99)"
"""5 MB."""


class Peer:
    """A client of one era over one transport, that can come again."""

    def __init__(self, transport: str, era: str, served: Served, env: dict[str, str]) -> None:
        self.transport, self.era, self.served, self.env = transport, era, served, env
        self.token = served.token(f"{transport}-{era}")
        self._stack = AsyncExitStack()
        self.client: Client

    def connect(self, **options: Any) -> Any:
        if self.transport == "http":
            return self.served.client(self.token, mode=self.era, **options)
        command = [sys.executable, "-m", "sagebroker", "mcp"]
        server = StdioServerParameters(command=command[0], args=command[1:], env=self.env)
        return Client(server, mode=self.era, **options)

    async def open(self) -> None:
        self._stack = AsyncExitStack()
        self.client = await self._stack.enter_async_context(self.connect())

    async def close(self) -> None:
        await self._stack.aclose()

    async def call(self, tool: str, **arguments: object) -> CallToolResult:
        with anyio.fail_after(GUARD_S):
            found = await self.client.call_tool(tool, arguments)
        assert isinstance(found, CallToolResult)
        return found

    async def run(self, code: str, **arguments: object) -> CallToolResult:
        return await self.call("sage_run", code=code, **arguments)

    async def result(self, code: str, **arguments: object) -> str:
        return result_text(await self.run(code, **arguments))

    async def last_cell(self) -> int:
        listed = await self.call("sage_sessions")
        assert listed.structured_content is not None
        [view] = [s for s in listed.structured_content["sessions"] if s["name"] == "default"]
        return int(view["last_cell"])


@pytest.fixture(scope="module")
async def served(sage_image: str) -> AsyncIterator[Served]:
    folder = Path("/tmp") / f"{PREFIX}matrix"
    make_token(folder / "state", "nobody")
    env = real_server_env(folder, sage_image)
    try:
        async with serving(REAL_SERVE, folder / "state", env) as found:
            yield found
    finally:
        remove_folder(folder)


@asynccontextmanager
async def environment(transport: str, served: Served, image: str) -> AsyncIterator[dict[str, str]]:
    """Of a stdio server: with a state folder of its own, or that of the server it joins."""
    folder = served.state_dir.parent
    if transport == "stdio":
        folder = Path("/tmp") / f"{PREFIX}alone"
    yield real_server_env(folder, image)
    if transport == "stdio":
        remove_folder(folder)


@pytest.fixture(
    scope="module",
    params=[(t, e) for t in ("stdio", "bridge", "http") for e in ("auto", "legacy")],
    ids=lambda pair: "-".join(pair),
)
async def peer(
    request: pytest.FixtureRequest, served: Served, sage_image: str
) -> AsyncIterator[Peer]:
    transport, era = request.param
    async with environment(transport, served, sage_image) as env:
        found = Peer(transport, era, served, env)
        await found.open()
        try:
            yield found
        finally:
            await found.call("sage_close", session="default")
            await found.close()


async def test_a_value_comes_back_and_stays(peer: Peer) -> None:
    assert await peer.result("x = 2^100; x") == "1267650600228229401496703205376"
    assert await peer.result("x.nbits()") == "101"


async def test_an_error_is_one_and_names_its_cause(peer: Peer) -> None:
    failed = await peer.run("1/0")
    assert is_error(failed)
    assert status(failed) == "error"
    assert "ZeroDivisionError" in text_of(failed)


async def test_a_plot_is_an_image(peer: Peer) -> None:
    plotted = await peer.run("plot(sin, (0, 6))")
    [image] = [block for block in plotted.content if isinstance(block, ImageContent)]
    assert image.mime_type == "image/png"
    assert len(image.data) > 5000


async def test_progress_is_told_while_a_cell_runs(peer: Peer) -> None:
    told: list[tuple[float, str]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message or ""))

    with anyio.fail_after(GUARD_S):
        await peer.client.call_tool(
            "sage_run", {"code": "import time; time.sleep(float(5/2))"}, progress_callback=note
        )
    assert told
    assert told == sorted(told)
    assert "running" in told[0][1]


async def test_a_cancelled_call_stops_the_computation_and_keeps_the_variables(peer: Peer) -> None:
    await peer.run("kept = 77")
    before = await peer.last_cell()
    with anyio.move_on_after(1.5):
        await peer.client.call_tool("sage_run", {"code": f"also = 78\n{HARD}"})
    ended = await peer.call("sage_wait", session="default", cell=before + 1, wait_s=30)
    assert status(ended) == "interrupted"
    assert await peer.result("(kept, also)") == "(77, 78)"


async def test_a_time_limit_stops_the_computation_and_keeps_the_variables(peer: Peer) -> None:
    stopped = await peer.run(f"limit = 5\n{HARD}", time_limit_s=1)
    assert status(stopped) == "interrupted"
    assert "kept" in text_of(stopped)
    assert await peer.result("limit") == "5"


async def test_a_broken_connection_costs_no_cell(peer: Peer) -> None:
    """What a client that is gone has left is found again, with its variables."""
    before = await peer.last_cell()
    if peer.transport == "http":
        await post_and_hang_up(peer, "left = 9\nsleep(3)\nleft")
    else:
        with anyio.move_on_after(1.5):
            await peer.client.call_tool("sage_run", {"code": "left = 9\nsleep(30)\nleft"})
        await peer.close()
        await peer.open()
    found = await peer.call("sage_wait", session="default", cell=before + 1, wait_s=30)
    assert status(found) in ("ok", "interrupted")
    assert await peer.result("left") == "9"


async def post_and_hang_up(peer: Peer, code: str) -> None:
    """A call over a connection that breaks: by the protocol that stops the call from 2026-07-28 on."""
    params: dict[str, Any] = {"name": "sage_run", "arguments": {"code": code}}
    headers = {
        "Accept": "application/json, text/event-stream",
        "Authorization": f"Bearer {peer.token}",
    }
    url = peer.served.url
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        if peer.era == "legacy":
            version = "2025-11-25"
            hello = {
                "protocolVersion": version,
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            }
            body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            answer = await http.post(url, json=body, headers=headers)
            headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
            done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            await http.post(url, json=done, headers=headers)
        else:
            version = "2026-07-28"
            prefix = "io.modelcontextprotocol/"
            params["_meta"] = {
                f"{prefix}protocolVersion": version,
                f"{prefix}clientInfo": {"name": "test", "version": "1"},
                f"{prefix}clientCapabilities": {},
            }
            headers |= {"Mcp-Method": "tools/call", "Mcp-Name": "sage_run"}
        headers["MCP-Protocol-Version"] = version
        body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
        with anyio.move_on_after(1.5):
            await http.post(url, json=body, headers=headers)
            pytest.fail("the call was to take longer")


async def test_five_megabytes_are_cut_and_paged(peer: Peer) -> None:
    flooded = await peer.run(LONG_PRINT)
    assert status(flooded) == "ok"
    assert len(text_of(flooded)) < 12_000
    assert "sage_output(" in text_of(flooded)
    cell = await peer.last_cell()
    page = await peer.call(
        "sage_output", session="default", cell=cell, stream="stdout", offset=4000, limit=1000
    )
    assert "x" * 99 in text_of(page)
    largest = await peer.run(LONG_PRINT, max_chars=100_000)
    assert len(text_of(largest)) > 90_000


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (r"print('a\ud800b')", r"a\ud800b"),
        (r"'a\ud800b'", r"'a\ud800b'"),
        (r"print('a\0b')", "a\0b"),
        ("10^29 + 7", "100000000000000000000000000007"),
        ("float('nan'), -float('inf')", "(nan, -inf)"),
        ("print('\\x1b[31mred\\x1b[0m é ∑ 🎲')", "red é ∑ 🎲"),
    ],
)
async def test_odd_text_arrives_whole_and_hurts_nobody(peer: Peer, code: str, shown: str) -> None:
    assert shown in text_of(await peer.run(code))
    assert await peer.result("1 + 1") == "2"


async def test_an_unknown_session_is_answered_by_what_to_do(peer: Peer) -> None:
    missing = await peer.run("1", session="nowhere")
    assert is_error(missing)
    assert "sage_open(name='nowhere')" in text_of(missing)


async def test_another_users_session_is_answered_like_none(peer: Peer, served: Served) -> None:
    async with served.client(served.token("somebody"), mode=peer.era) as other:
        await other.call_tool("sage_open", {"name": "theirs"})
        foreign = text_of(await peer.call("sage_wait", session="theirs", cell=1))
        missing = text_of(await peer.call("sage_wait", session="absent", cell=1))
        assert foreign.replace("theirs", "absent") == missing
        await other.call_tool("sage_close", {"session": "theirs"})


async def test_a_question_is_answered(peer: Peer) -> None:
    asked = await peer.run("int(input('A number? '))^2")
    assert status(asked) == "awaiting_input"
    cell = await peer.last_cell()
    answered = await peer.call("sage_wait", session="default", cell=cell, answer="12")
    assert parts(answered, "result") == ["144"]


async def test_the_tools_are_listed_in_the_same_words_everywhere(peer: Peer) -> None:
    listed = (await peer.client.list_tools()).tools
    sent = json.dumps(
        [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in listed],
        sort_keys=True,
    )
    assert len(listed) == 12
    assert len(sent) < 12_000
    assert SEEN.setdefault("tools", sent) == sent


SEEN: dict[str, str] = {}


async def test_two_users_with_twenty_cells_each_are_served_side_by_side(served: Served) -> None:
    """No answer goes to the wrong user, and none waits for all of the other's."""
    order: list[str] = []
    ready = {"ann": anyio.Event(), "ben": anyio.Event()}

    async def work(user: str, factor: int, mode: str) -> None:
        async with (
            served.client(served.token(user), mode=mode) as client,
            anyio.create_task_group() as tg,
        ):
            for name in ("a", "b"):
                await client.call_tool("sage_open", {"name": name})
                await client.call_tool("sage_run", {"code": f"who = {user!r}", "session": name})

            ready[user].set()
            for event in ready.values():
                await event.wait()

            async def one(k: int) -> None:
                code = f"import time; time.sleep(float(1/20)); (who, {k} * {factor})"
                arguments = {"code": code, "session": "ab"[k % 2], "wait_s": 100}
                answer = await client.call_tool("sage_run", arguments)
                assert status(answer) == "ok", text_of(answer)
                assert result_text(answer) == f"({user!r}, {k * factor})"
                order.append(user)

            for k in range(20):
                tg.start_soon(one, k)

    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(work, "ann", 3, "auto")
            tg.start_soon(work, "ben", 5, "legacy")
    assert order.count("ann") == order.count("ben") == 20
    first_half = order[:20]
    assert 3 <= first_half.count("ann") <= 17
    for user in ("ann", "ben"):
        async with served.client(served.token(user)) as client:
            for name in ("a", "b"):
                await client.call_tool("sage_close", {"session": name})


async def test_a_kept_session_computes_on_while_the_server_is_restarted(
    short_dir: Path, sage_image: str
) -> None:
    token = make_token(short_dir / "state", "alice")
    env = real_server_env(short_dir, sage_image, SAGEBROKER_SERVE__DRAIN_S="3")
    async with (
        serving(REAL_SERVE, short_dir / "state", env) as first,
        first.client(token) as client,
    ):
        await client.call_tool("sage_open", {"name": "default", "keep": True})
        code = "y = 5\nsleep(12)\ny"
        begun = await client.call_tool("sage_run", {"code": code, "wait_s": 1})
        assert status(begun) == "running"
    async with (
        serving(REAL_SERVE, short_dir / "state", env) as again,
        again.client(token) as client,
    ):
        arguments = {"session": "default", "cell": 1, "wait_s": 60}
        assert result_text(await client.call_tool("sage_wait", arguments)) == "5"
        await client.call_tool("sage_close", {"session": "default"})
    assert list((short_dir / "run").iterdir()) == []
