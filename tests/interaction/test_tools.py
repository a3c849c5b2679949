"""What the tools do, seen by a real client in memory and over stdio, in both protocol eras."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent
from tests.interaction.calling import HANG_GUARD_S, call, run
from tests.interaction.conftest import open_broker, open_in_memory
from tests.interaction.reading import is_error, parts, result_text, status, text_of

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.server.app import make_server
from sagebroker.server.limits import MAX_CODE_CHARS

TOOLS = [
    "sage_run",
    "sage_wait",
    "sage_output",
    "sage_interrupt",
    "sage_open",
    "sage_sessions",
    "sage_restart",
    "sage_close",
    "sage_variables",
    "sage_checkpoint",
    "sage_files",
    "sage_inspect",
]
READING_TOOLS = {"sage_output", "sage_sessions", "sage_variables", "sage_inspect"}


async def test_tools_are_few_small_described_and_in_a_fixed_order(memory_client: Client) -> None:
    listed = (await memory_client.list_tools()).tools
    again = (await memory_client.list_tools()).tools
    assert [tool.name for tool in listed] == TOOLS
    assert listed == again
    as_sent = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in listed]
    assert len(json.dumps(as_sent)) < 12_000
    for tool in listed:
        assert tool.title
        assert tool.description
        assert len(tool.description.encode()) < 2048
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (tool.name in READING_TOOLS)


async def test_the_server_introduces_itself_in_under_2_kb(memory_client: Client) -> None:
    assert memory_client.server_info is not None
    assert memory_client.server_info.name == "sagebroker"
    assert memory_client.server_info.version
    assert memory_client.server_info.icons
    assert memory_client.instructions
    assert len(memory_client.instructions.encode()) < 2048


async def test_the_first_cell_opens_the_default_session_and_variables_persist(
    client: Client,
) -> None:
    assert is_error(await call(client, "sage_wait", session="default", cell=1))
    first = await run(client, "a = 20\na + 1")
    assert text_of(first).startswith("[default #1 ok ")
    assert result_text(first) == "21"
    assert first.structured_content is None
    assert result_text(await run(client, "a * 2")) == "40"


async def test_a_session_that_was_not_opened_is_told_with_the_known_ones(client: Client) -> None:
    await run(client, "1")
    result = await run(client, "1", session="other")
    assert is_error(result)
    assert "'default'" in text_of(result)
    assert "sage_open" in text_of(result)
    assert not text_of(result).startswith("Error executing")


async def test_sessions_are_apart_and_opening_twice_gives_the_same(client: Client) -> None:
    assert not is_error(await call(client, "sage_open", name="one"))
    assert "was open already" in text_of(await call(client, "sage_open", name="one"))
    await run(client, "a = 1", session="one")
    result = await run(client, "a")
    assert status(result) == "error"
    assert "name 'a' is not defined" in text_of(result)
    assert result_text(await run(client, "a", session="one")) == "1"


async def test_an_exception_is_an_error_with_the_users_frames(client: Client) -> None:
    result = await run(client, "def f(n):\n    return 1/n\nf(0)")
    assert is_error(result)
    [error] = parts(result, "error")
    assert error.startswith("ZeroDivisionError: division by zero\n")
    assert "return 1/n" in error
    assert "\x1b" not in error


async def test_a_long_cell_answers_running_and_is_waited_for(client: Client) -> None:
    await run(client, "41")  # A kernel that has yet to start would use the wait up.
    result = await run(
        client, "import time\nprint('begun', flush=True)\ntime.sleep(1.5)\n42", wait_s=0.6
    )
    assert status(result) == "running"
    assert not is_error(result)
    assert 'sage_wait(session="default", cell=2)' in text_of(result)
    queued = await run(client, "43", wait_s=0)
    assert status(queued) == "queued"
    result = await call(client, "sage_wait", session="default", cell=2)
    assert result_text(result) == "42"
    assert parts(result, "stdout") == ["stdout:\nbegun\n"]
    assert result_text(await call(client, "sage_wait", session="default", cell=3)) == "43"


@pytest.mark.parametrize("tool", ["sage_run", "sage_wait"])
async def test_cancelling_a_call_interrupts_the_cell_and_keeps_the_variables(
    client: Client, tool: str
) -> None:
    await run(client, "keep = 12345")
    endless = "import time\nwhile True: time.sleep(0.01)"
    if tool == "sage_wait":
        await run(client, endless, wait_s=0)
        cancelled: dict[str, object] = {"session": "default", "cell": 2}
    else:
        cancelled = {"code": endless}
    with anyio.move_on_after(0.7) as scope:
        await client.call_tool(tool, cancelled)
    assert scope.cancelled_caught
    assert result_text(await run(client, "keep")) == "12345"
    stopped = await call(client, "sage_wait", session="default", cell=2)
    assert status(stopped) == "interrupted"
    assert is_error(stopped)
    assert "variables are kept" in text_of(stopped)


async def test_interrupting_stops_the_cell_and_says_that_variables_are_kept(
    client: Client,
) -> None:
    await run(client, "keep = 12345")
    await run(client, "import time\ntime.sleep(100)", wait_s=0.3)
    result = await call(client, "sage_interrupt")
    assert not is_error(result)
    assert text_of(result).startswith("[default #2 interrupted ")
    assert "variables are kept" in text_of(result)
    assert result_text(await run(client, "keep")) == "12345"
    assert "Nothing runs" in text_of(await call(client, "sage_interrupt"))


async def test_a_time_limit_interrupts_and_says_what_to_do(client: Client) -> None:
    await run(client, "keep = 12345")
    result = await run(client, "import time\ntime.sleep(100)", time_limit_s=0.5)
    assert is_error(result)
    assert status(result) == "interrupted"
    assert "time limit of 0.5 s" in text_of(result)
    assert "larger time_limit_s" in text_of(result)
    assert result_text(await run(client, "keep")) == "12345"


async def test_progress_is_reported_while_a_cell_runs(client: Client) -> None:
    await run(client, "1")
    seen: list[tuple[float, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        seen.append((progress, message))

    with anyio.fail_after(HANG_GUARD_S):
        await client.call_tool(
            "sage_run",
            {"code": "import time\ntime.sleep(6.5)"},
            progress_callback=note,
        )
    assert [message for _, message in seen] == ["cell 2 running 1 s", "cell 2 running 6 s"]
    assert seen[0][0] < seen[1][0]


async def test_a_long_output_is_cut_and_read_by_pages(client: Client) -> None:
    result = await run(client, "for i in range(5000): print('line', i)", max_chars=1000)
    [shown] = parts(result, "stdout")
    assert shown.startswith("stdout:\nline 0\n")
    assert "line 4999" in shown
    found = re.search(r'stream="stdout", offset=(\d+)\)', shown)
    assert found
    arguments = {"session": "default", "cell": 1, "stream": "stdout"}
    page = await call(client, "sage_output", **arguments, offset=int(found.group(1)), limit=300)
    assert len(parts(page, "page")[0]) == 300
    hits = await call(client, "sage_output", **arguments, pattern="LINE 4321")
    assert parts(hits, "page")[0].endswith(": line 4321")


async def test_a_megabyte_and_odd_characters_pass_through(client: Client) -> None:
    result = await run(client, "print('é' * 90_000)", max_chars=100_000)
    assert len(parts(result, "stdout")[0]) > 90_000
    result = await run(
        client, "print('a\\u2028' + chr(0) + '∫' + chr(0x1f600) + chr(27) + '[31mred')"
    )
    assert parts(result, "stdout") == ["stdout:\na\u2028\0∫\U0001f600red\n"]
    assert result_text(await run(client, "2**200")) == str(2**200)


async def test_images_arrive_as_images(client: Client) -> None:
    result = await run(
        client,
        "import io\nfrom PIL import Image as P\nfrom IPython.display import Image\n"
        "b = io.BytesIO(); P.new('RGB', (3000, 30), 'red').save(b, 'PNG'); Image(b.getvalue())",
    )
    [image] = [block for block in result.content if isinstance(block, ImageContent)]
    assert image.mime_type == "image/png"
    assert result.structured_content is None


async def test_the_list_of_sessions_says_the_same_as_text_and_as_structure(
    client: Client,
) -> None:
    assert "0 of at most 8" in text_of(await call(client, "sage_sessions"))
    await run(client, "1")
    await run(client, "import time\ntime.sleep(100)", wait_s=0.3)
    result = await call(client, "sage_sessions")
    assert result.structured_content is not None
    [session] = result.structured_content["sessions"]
    assert (session["name"], session["state"], session["running_cell"]) == ("default", "busy", 2)
    text = text_of(result)
    assert "default: busy, cell 2 running" in text
    assert f"of {session['memory_limit_mib']} MiB" in text
    await call(client, "sage_interrupt")


async def test_a_restart_gives_a_fresh_kernel_and_says_what_is_lost(client: Client) -> None:
    await run(client, "a = 1")
    result = await call(client, "sage_restart")
    assert "variables are gone" in text_of(result)
    assert status(await run(client, "a")) == "error"


async def test_a_closed_session_is_gone_and_can_be_opened_again(client: Client) -> None:
    await run(client, "a = 1")
    assert "closed" in text_of(await call(client, "sage_close", session="default"))
    assert is_error(await call(client, "sage_close", session="default"))
    assert status(await run(client, "a")) == "error"


async def test_a_cell_that_ends_the_kernel_says_so_and_the_next_one_works(client: Client) -> None:
    result = await run(client, "import os\nos._exit(3)")
    assert is_error(result)
    assert status(result) == "died"
    assert "code 3" in text_of(result)
    assert "variables are lost" in text_of(result)
    assert result_text(await run(client, "1 + 1")) == "2"


async def test_a_kernel_that_died_while_idle_is_told_once_in_the_next_answer(
    memory_client: Client, broker: Broker
) -> None:
    await run(
        memory_client, "import os, threading\nthreading.Timer(0.2, lambda: os._exit(3)).start()"
    )
    session = broker.session("default")
    with anyio.fail_after(HANG_GUARD_S):
        while session.info().kernel_generation != 2:
            await anyio.sleep(0.02)
    result = await run(memory_client, "1 + 1")
    assert "While no cell ran: The kernel exited by itself with code 3" in text_of(result)
    assert result_text(result) == "2"
    assert "While no cell ran" not in text_of(await run(memory_client, "1 + 1"))


@pytest.mark.parametrize(("hard_life_s", "told"), [(86_400.0, "24 h"), (1_000.0, "1000 s")])
async def test_a_kept_session_says_how_long_its_variables_can_stay(
    config: BrokerConfig, hard_life_s: float, told: str
) -> None:
    limits = config.container.model_copy(update={"hard_life_s": hard_life_s})
    config = config.model_copy(update={"container": limits})
    async with open_broker(config) as broker, open_in_memory(broker, "auto") as client:
        opened = text_of(await call(client, "sage_open", name="kept", keep=True))
        assert f"at most {told}" in opened
        assert "end of this connection" not in opened
        opened = text_of(await call(client, "sage_open", name="other"))
        assert "until sage_close or the end of this connection" in opened
        await call(client, "sage_close", session="kept")


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("sage_run", {}, "code is missing"),
        ("sage_run", {"code": "  "}, "The code is empty"),
        (
            "sage_run",
            {"code": "#" * (MAX_CODE_CHARS + 1)},
            "1000001 characters, more than the 1000000",
        ),
        ("sage_run", {"code": "1", "wait_s": -1}, "wait_s must be between"),
        ("sage_run", {"code": "1", "wait_s": "soon"}, "wait_s must be a number"),
        ("sage_run", {"code": "1", "time_limit_s": 0}, "time_limit_s"),
        ("sage_run", {"code": "1", "max_chars": 1}, "max_chars"),
        ("sage_run", {"code": "1", "session": "a b"}, "no session named 'a b'"),
        ("sage_open", {"name": "../x"}, "cannot name a session"),
        ("sage_wait", {"session": "nope", "cell": 1}, "no session named 'nope'"),
        ("sage_output", {"session": "default", "cell": 1, "stream": "x"}, "stream must be one of"),
        ("sage_nope", {}, "sage_nope"),
    ],
)
async def test_wrong_arguments_are_tool_errors_that_say_what_is_right(
    memory_client: Client, tool: str, arguments: dict[str, object], expected: str
) -> None:
    result = await call(memory_client, tool, **arguments)
    assert is_error(result)
    assert expected in text_of(result)
    assert "pydantic" not in text_of(result)


@pytest.mark.parametrize("code", ["[1, 2]", '{"a": 1}', "null", "12"])
async def test_code_that_looks_like_json_is_still_code(memory_client: Client, code: str) -> None:
    result = await run(memory_client, code.replace("null", "None is None"))
    assert not is_error(result)


async def test_too_long_a_wait_is_lowered_and_said(memory_client: Client) -> None:
    assert "wait_s was lowered to 3600 s" in text_of(await run(memory_client, "1", wait_s=1e6))


async def test_two_first_cells_at_once_share_the_default_session(memory_client: Client) -> None:
    results: list[CallToolResult] = []

    async def one(code: str) -> None:
        results.append(await run(memory_client, code))

    async with anyio.create_task_group() as tg:
        tg.start_soon(one, "1")
        tg.start_soon(one, "2")
    assert sorted(result_text(result) for result in results) == ["1", "2"]


async def test_a_first_call_cancelled_while_the_kernel_starts_leaves_a_usable_server(
    client: Client,
) -> None:
    with anyio.move_on_after(0.05) as scope:
        await client.call_tool("sage_run", {"code": "1"})
    assert scope.cancelled_caught
    assert result_text(await run(client, "1 + 1")) == "2"


async def test_the_configured_time_limit_is_the_default_that_clients_are_told(
    broker: Broker,
) -> None:
    server = make_server(lambda: nullcontext(broker), time_limit_s=0.5)
    async with Client(server) as client:
        [described] = [t for t in (await client.list_tools()).tools if t.name == "sage_run"]
        assert described.input_schema["properties"]["time_limit_s"]["default"] == 0.5
        assert "time limit of 0.5 s" in text_of(await run(client, "while True: pass"))
