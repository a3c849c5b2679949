"""A session's files, shared by real Sage in its container and `sage_files` on the host."""

from __future__ import annotations

from contextlib import nullcontext

import anyio
import pytest
from mcp import Client
from mcp_types import CallToolResult
from tests.cells import ended, result
from tests.interaction.reading import is_error, parts, text_of

from sagebroker.broker import Broker
from sagebroker.server.app import make_server

pytestmark = [pytest.mark.sage, pytest.mark.docker]

HANG_GUARD_S = 120.0


async def files(client: Client, action: str, path: str = "", **arguments: object) -> CallToolResult:
    with anyio.fail_after(HANG_GUARD_S):
        found = await client.call_tool("sage_files", {"action": action, "path": path, **arguments})
    assert isinstance(found, CallToolResult)
    assert not is_error(found), text_of(found)
    return found


async def page(client: Client, path: str) -> str:
    [text] = parts(await files(client, "read", path), "page")
    return text


@pytest.mark.core
async def test_files_of_cells_and_of_clients_are_the_same(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with Client(make_server(lambda: nullcontext(broker))) as client:
        await files(client, "write", "/files/in/points.csv", content="2,3\n5,7\n")
        total = "sum(int(n) for line in open('in/points.csv') for n in line.split(','))"
        assert result(await ended(session, total)) == "17"
        await ended(session, "import os; os.makedirs('out/deep'); save(2^100, 'out/power')")
        await ended(session, "_ = open('out/deep/made.txt', 'w').write(str(factor(2^64 - 1)))")
        assert (await page(client, "out/deep/made.txt")).startswith("3 * 5 * 17")
        # Each may change and remove what the other has made.
        await files(client, "write", "out/deep/made.txt", content="changed here")
        await files(client, "write", "out/deep/new.txt", content="new")
        assert result(await ended(session, "open('out/deep/made.txt').read()")) == (
            "'changed here'"
        )
        await ended(
            session, "_ = open('in/points.csv', 'a').write('11,13'); os.remove('out/deep/new.txt')"
        )
        assert await page(client, "in/points.csv") == "2,3\n5,7\n11,13"
        await files(client, "delete", "out/deep/made.txt")
        await files(client, "delete", "out/deep")
        assert result(await ended(session, "sorted(os.listdir('out'))")) == "['power.sobj']"
        owners = "len({os.stat(p).st_uid for p in ('.', 'in', 'in/points.csv', 'out')})"
        assert result(await ended(session, owners)) == "1"
        shown = await files(client, "list")
        assert "out/power.sobj" in text_of(shown)


@pytest.mark.core
async def test_links_that_a_cell_makes_lead_a_client_nowhere(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(
        session, "import os; os.symlink('/etc', 'etc'); os.symlink('/etc/passwd', 'passwd')"
    )
    async with Client(make_server(lambda: nullcontext(broker))) as client:
        for path in ("etc/passwd", "passwd", "etc/../passwd"):
            with anyio.fail_after(HANG_GUARD_S):
                found = await client.call_tool("sage_files", {"action": "read", "path": path})
            assert is_error(found)
            assert "root:" not in text_of(found)


@pytest.mark.core
async def test_a_plot_that_a_cell_saves_is_shown(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "plot(sin, (0, 6)).save('sine.png')")
    async with Client(make_server(lambda: nullcontext(broker))) as client:
        read = await files(client, "read", "sine.png")
        assert [block.type for block in read.content] == ["text", "image"]
