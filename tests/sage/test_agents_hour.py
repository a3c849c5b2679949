"""An agent's hour: some two hundred calls as agents make them, wrong ones among them.

Each answer that is an error, or not the end of the matter, must by its text alone say what to do, and that must work.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult
from tests.interaction.reading import is_error, result_text, status, text_of
from tests.sage.agents_hour import script
from tests.sage.agents_hour.recovery import Arguments, next_step
from tests.serving import real_server_env

pytestmark = pytest.mark.sage

CALL_LIMIT_S = 120.0
MOST_STEPS = 6
"""Actions that one answer may lead to, one after the other."""
MOST_WAIT_S = 40.0


class Agent:
    """Calls tools, and follows what answers say."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.calls = self.errors = self.recovered = 0
        self.texts: list[str] = []

    async def call(self, tool: str, arguments: Arguments) -> CallToolResult:
        self.calls += 1
        with anyio.fail_after(CALL_LIMIT_S):
            found = await self.client.call_tool(tool, arguments)
        assert isinstance(found, CallToolResult)
        self.texts.append(text_of(found))
        return found

    async def follow(self, tool: str, arguments: Arguments, *, is_refused: bool = False) -> None:
        """Make a call; where its answer is an error, or says that there is more, do what it says."""
        answer = await self.call(tool, arguments)
        assert is_error(answer) or not is_refused, (tool, arguments, text_of(answer))
        if not is_error(answer) and not _goes_on(answer):
            return
        self.errors += 1
        if not _is_about_the_code(answer):
            await self._recover(tool, arguments, answer)
            return
        # The code is wrong: an agent does what is named, where something is, and writes other code.
        assert _says_why(answer), (tool, arguments, text_of(answer))
        step = next_step(text_of(answer), tool, arguments)
        if step is not None and step.then_again:
            await self._recover(tool, arguments, answer)
            return
        if step is not None and step.tool != "sage_run":
            assert not is_error(await self.call(step.tool, step.arguments)), step
        simple = {"code": "1 + 1", "session": arguments.get("session", "default")}
        again = await self.call("sage_run", simple)
        if is_error(again):
            await self._recover("sage_run", simple, again)
        else:
            assert result_text(again) == "2"
            self.recovered += 1

    async def _recover(self, tool: str, arguments: Arguments, answer: CallToolResult) -> None:
        trail = [(tool, arguments, text_of(answer)[-600:])]
        first = (tool, arguments)
        for _ in range(MOST_STEPS):
            step = next_step(text_of(answer), tool, arguments)
            assert step is not None, f"nothing is said of what to do: {trail}"
            assert step.wait_s <= MOST_WAIT_S
            await anyio.sleep(step.wait_s)
            tool, arguments = step.tool, step.arguments
            answer = await self.call(tool, arguments)
            trail.append((tool, arguments, text_of(answer)[-600:]))
            if step.then_again and not is_error(answer):
                tool, arguments = first
                answer = await self.call(tool, arguments)
                trail.append((tool, arguments, text_of(answer)[-600:]))
            if not is_error(answer) and not _goes_on(answer):
                self.recovered += 1
                return
        raise AssertionError(f"what answers say leads nowhere: {trail}")


def _goes_on(answer: CallToolResult) -> bool:
    text = text_of(answer)
    return text.startswith("[") and status(answer) in ("running", "queued", "awaiting_input")


def _is_about_the_code(answer: CallToolResult) -> bool:
    text = text_of(answer)
    return text.startswith("[") and status(answer) in ("error", "interrupted", "died")


def _says_why(answer: CallToolResult) -> bool:
    return len(text_of(answer).split("]", 1)[1].strip()) > 10


async def test_every_answer_alone_says_how_to_go_on_and_that_works(
    short_dir: Path, sage_image: str
) -> None:
    env = real_server_env(short_dir, sage_image, SAGEBROKER_CONTAINER__MEMORY_BYTES=str(2**30))
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "sagebroker", "mcp"], env=env
    )
    async with Client(command) as client:
        agent = Agent(client)
        for tool, arguments in script.FIRST_STEPS:
            answer = await agent.call(tool, arguments)
            assert not is_error(answer), (tool, arguments, text_of(answer))
        for tool, arguments in (*script.WRONG_ARGUMENTS, *script.FORGOTTEN):
            await agent.follow(tool, arguments, is_refused=True)
            await _close_what_was_opened(agent)
        for tool, arguments in (*script.CODE_THAT_FAILS, *script.HEAVY):
            await agent.follow(tool, arguments)
        await _what_was_lost_was_told(agent)
        await _flood(agent)
        await _cancel(agent)
        await _pages(agent)
        await _too_many_sessions(agent)
        # Nothing that went wrong has cost what was there in the beginning.
        assert result_text(await agent.call(*script.run("keep_me == 2^89 - 1"))) == "True"
        read = await agent.call("sage_files", {"action": "read", "path": "notes.txt"})
        assert "first line" in text_of(read)
        listed = await agent.call("sage_sessions", {})
        assert listed.structured_content is not None
        for view in listed.structured_content["sessions"]:
            await agent.call("sage_close", {"session": view["name"]})
        print(f"{agent.calls} calls, {agent.errors} not as wished, {agent.recovered} recovered")
        assert agent.calls >= 200
        assert agent.recovered == agent.errors > 70


async def _close_what_was_opened(agent: Agent) -> None:
    """Sessions that were opened on the way, so that there is always room for one more."""
    listed = await agent.call("sage_sessions", {})
    assert listed.structured_content is not None
    for view in listed.structured_content["sessions"]:
        if view["name"] not in ("default", "side"):
            await agent.call("sage_close", {"session": view["name"]})


async def _what_was_lost_was_told(agent: Agent) -> None:
    """A variable of a session whose kernel died three times is there, or its loss was said."""
    answer = await agent.call(*script.run("side", session="side"))
    if is_error(answer):
        assert any("variables are gone" in text or "lost" in text for text in agent.texts)
    else:
        assert result_text(answer) == "5"


async def _flood(agent: Agent) -> None:
    """More cells than a queue takes; all that were taken come to their end."""
    code = "import time; time.sleep(float(1/2))"
    for _ in range(19):
        answer = await agent.call(*script.run(code, wait_s=0, session="side"))
        if is_error(answer):
            agent.errors += 1
            arguments: dict[str, Any] = {"code": code, "wait_s": 30, "session": "side"}
            await agent._recover("sage_run", arguments, answer)


async def _cancel(agent: Agent) -> None:
    with anyio.move_on_after(1):
        await agent.client.call_tool("sage_run", {"code": "while True: pass"})
    assert result_text(await agent.call(*script.run("2 + 2"))) == "4"
    twice = {"code": "3 + 3", "request_id": "once"}
    await agent.call("sage_run", twice)
    await agent.follow("sage_run", {**twice, "code": "4 + 4"}, is_refused=True)


async def _pages(agent: Agent) -> None:
    """A long output, page by page, by the calls that the answers name."""
    answer = await agent.call(*script.run("for k in range(3000): print(k)", max_chars=2000))
    tool = "sage_run"
    arguments: Arguments = {}
    for _ in range(20):
        step = next_step(text_of(answer), tool, arguments)
        if step is None:
            break
        assert step.tool == "sage_output"
        tool, arguments = step.tool, step.arguments
        answer = await agent.call(tool, arguments)
        assert not is_error(answer)
    assert "2999" in text_of(answer)


async def _too_many_sessions(agent: Agent) -> None:
    """The limit is told; after a session was closed there is room."""
    opened = []
    for number in range(9):
        answer = await agent.call("sage_open", {"name": f"more{number}"})
        if is_error(answer):
            assert "sage_close" in text_of(answer)
            assert "retry_after" in text_of(answer)
            break
        opened.append(f"more{number}")
    else:
        raise AssertionError("there is no limit")
    for name in opened or ["side"]:
        await agent.call("sage_close", {"session": name})
    assert not is_error(await agent.call("sage_open", {"name": "more9"}))
