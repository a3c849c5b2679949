"""A session's files, used by a client beside its cells, seen by a real client in both eras."""

from __future__ import annotations

import base64
import io
import re

import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent
from PIL import Image
from tests.interaction.calling import call, run
from tests.interaction.conftest import open_broker, open_in_memory
from tests.interaction.reading import is_error, parts, result_text, status, text_of

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, HibernationConfig
from sagebroker.session.file_access import MAX_WRITE_BYTES

OPEN_TO_ALL = "import os; os.umask(0)"
"""Local kernels are this process's user, who may be root: what they make is the session's in a container only."""


async def files(client: Client, action: str, path: str = "", **arguments: object) -> CallToolResult:
    return await call(client, "sage_files", action=action, path=path, **arguments)


async def page(client: Client, path: str, **arguments: object) -> str:
    [text] = parts(await files(client, "read", path, **arguments), "page")
    return text


async def test_a_file_written_here_is_read_by_a_cell_and_the_other_way_round(
    client: Client,
) -> None:
    await run(client, OPEN_TO_ALL)
    written = await files(client, "write", "/files/data/in.txt", content="é ∑\n'quoted'")
    assert not is_error(written)
    assert "/files/data/in.txt is written: 15 bytes." in text_of(written)
    assert result_text(await run(client, "open('data/in.txt').read()")) == repr("é ∑\n'quoted'")
    await run(client, "os.mkdir('made'); _ = open('made/out.txt', 'w').write('from the cell\\n')")
    assert await page(client, "made/out.txt") == "from the cell\n"
    listed = parts(await files(client, "list"), "page")[0]
    assert re.findall(r"^(\S+)  (folder|\d+ bytes)", listed, re.MULTILINE) == [
        ("data/", "folder"),
        ("made/", "folder"),
        ("data/in.txt", "15 bytes"),
        ("made/out.txt", "14 bytes"),
    ]
    replaced = await files(client, "write", "data/in.txt", content="new")
    assert "is replaced (it had 15 bytes): 3 bytes." in text_of(replaced)
    assert "is deleted" in text_of(await files(client, "delete", "data/in.txt"))
    assert result_text(await run(client, "os.path.exists('data/in.txt')")) == "False"


async def test_content_that_looks_like_json_or_null_is_written_as_it_is(
    memory_client: Client,
) -> None:
    await run(memory_client, "1")
    for content in ('{"a": [1]}', "null", "12", "true", '"x"'):
        await files(memory_client, "write", "f", content=content)
        assert await page(memory_client, "f") == content


async def test_bytes_go_both_ways_as_base64(memory_client: Client) -> None:
    data = bytes(range(256))
    encoded = base64.b64encode(data).decode()
    await run(memory_client, "1")
    await files(memory_client, "write", "f.bin", content=encoded, encoding="base64")
    assert result_text(
        await run(memory_client, "open('f.bin', 'rb').read() == bytes(range(256))")
    ) == ("True")
    read = await files(memory_client, "read", "f.bin")
    assert "as base64, since it is not text" in text_of(read)
    assert parts(read, "page") == [encoded]
    refused = await files(memory_client, "write", "f.bin", content="no base64!", encoding="base64")
    assert is_error(refused)
    assert "Nothing was written" in text_of(refused)
    assert parts(await files(memory_client, "read", "f.bin"), "page") == [encoded]


async def test_the_largest_file_that_may_be_written_arrives(client: Client) -> None:
    await run(client, "import os")
    content = base64.b64encode(bytes(MAX_WRITE_BYTES)).decode()
    written = await files(client, "write", "f", content=content, encoding="base64")
    assert not is_error(written), text_of(written)
    assert result_text(await run(client, "os.path.getsize('f')")) == str(MAX_WRITE_BYTES)


@pytest.mark.parametrize("encoding", ["text", "base64"])
async def test_a_large_file_is_read_by_the_calls_that_the_answers_name(
    memory_client: Client, encoding: str
) -> None:
    content = "".join(f"{n} é∑𝄞\n" for n in range(200))
    await run(memory_client, "1")
    await files(memory_client, "write", "large.txt", content=content)
    arguments: dict[str, object] = {"encoding": encoding}
    found, pages = b"", 0
    while True:
        read = await files(memory_client, "read", "large.txt", limit=1000, **arguments)
        [text] = parts(read, "page")
        found += text.encode() if encoding == "text" else base64.b64decode(text)
        pages += 1
        assert len(text) <= 1000
        following = parts(read, "next")
        if not following:
            break
        named = re.search(r"offset=(\d+)", following[0])
        assert named
        assert following[0].startswith('Next: sage_files(session="default", action="read"')
        assert ('encoding="base64"' in following[0]) is (encoding == "base64")
        arguments["offset"] = int(named[1])
    assert found.decode() == content
    assert pages > 2
    behind = await files(memory_client, "read", "large.txt", offset=10**9)
    assert is_error(behind)
    assert "behind the end" in text_of(behind)


async def test_a_long_list_is_read_by_the_calls_that_the_answers_name(
    memory_client: Client,
) -> None:
    await run(memory_client, "for n in range(50): open(f'file-{n:02}', 'w').close()")
    names: list[str] = []
    offset = 0
    while True:
        listed = await files(memory_client, "list", limit=1000, offset=offset)
        assert "has 50 entries" in text_of(listed)
        names += [line.split()[0] for line in parts(listed, "page")[0].splitlines()]
        following = parts(listed, "next")
        if not following:
            break
        named = re.search(r"offset=(\d+)", following[0])
        assert named
        offset = int(named[1])
    assert names == [f"file-{n:02}" for n in range(50)]
    assert is_error(await files(memory_client, "list", offset=50))


async def test_an_image_is_shown_and_a_damaged_one_said(memory_client: Client) -> None:
    await run(memory_client, "1")
    made = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(made, "PNG")
    content = base64.b64encode(made.getvalue()).decode()
    await files(memory_client, "write", "plot.png", content=content, encoding="base64")
    read = await files(memory_client, "read", "plot.png")
    [image] = [block for block in read.content if isinstance(block, ImageContent)]
    assert (image.mime_type, image.data) == ("image/png", content)
    assert await page(memory_client, "plot.png", encoding="base64") == content
    await files(memory_client, "write", "bad.png", content=content[:40], encoding="base64")
    read = await files(memory_client, "read", "bad.png")
    assert not is_error(read)
    assert "cannot be shown" in text_of(read)


async def test_terminal_codes_are_left_out_and_that_is_said(memory_client: Client) -> None:
    await run(memory_client, "1")
    await files(memory_client, "write", "log", content="\x1b[31mred\x1b[0m \x1bend")
    read = await files(memory_client, "read", "log")
    assert "\x1b" not in text_of(read)
    assert "Terminal codes are left out" in text_of(read)


async def test_files_are_used_while_a_cell_runs(memory_client: Client) -> None:
    await run(memory_client, OPEN_TO_ALL)
    waits = "import time\nwhile not os.path.exists('go'): time.sleep(0.01)\nopen('go').read()"
    begun = await run(memory_client, waits, wait_s=0)
    assert status(begun) in ("queued", "running")
    assert not is_error(await files(memory_client, "write", "go", content="gone"))
    ended = await call(memory_client, "sage_wait", session="default", cell=2)
    assert result_text(ended) == "'gone'"


async def test_files_of_a_session_that_sleeps_are_used_and_nothing_is_woken(
    broker: Broker, memory_client: Client
) -> None:
    await run(memory_client, OPEN_TO_ALL + "; _ = open('old', 'w').write('kept')")
    assert await broker.session("default").hibernate() == ""
    assert await page(memory_client, "old") == "kept"
    assert not is_error(await files(memory_client, "write", "new", content="written asleep"))
    assert "has 2 entries" in text_of(await files(memory_client, "list"))
    assert not is_error(await files(memory_client, "delete", "old"))
    assert broker.sessions() == []
    woken = await run(memory_client, "os.listdir(), open('new').read()")
    assert result_text(woken) == "(['new'], 'written asleep')"


async def test_a_session_that_has_files_and_no_cell_is_not_removed_with_its_broker(
    config: BrokerConfig, era: str
) -> None:
    config = config.model_copy(update={"hibernation": HibernationConfig(at_end=True, drain_s=0.1)})
    async with open_broker(config) as broker, open_in_memory(broker, era) as client:
        await call(client, "sage_open", name="work")
        await files(client, "write", "f", content="precious", session="work")
    async with open_broker(config) as broker, open_in_memory(broker, era) as client:
        assert await page(client, "f", session="work") == "precious"
        await call(client, "sage_close", session="work")
        refused = await files(client, "read", "f", session="work")
        assert is_error(refused)
        assert "There is no session named 'work'" in text_of(refused)


async def test_a_session_that_is_not_known_is_told_as_by_other_tools(
    memory_client: Client,
) -> None:
    await run(memory_client, "1")
    refused = await files(memory_client, "list", session="other")
    assert is_error(refused)
    said = text_of(await call(memory_client, "sage_variables", session="other"))
    assert text_of(refused) == said


@pytest.mark.parametrize(
    ("action", "path", "more", "said"),
    [
        ("read", "../../lock", {}, "'..'"),
        ("read", "/etc/passwd", {}, "outside of the session's folder"),
        ("write", "a\0b", {"content": "x"}, "can be no path"),
        ("read", "none", {}, "does not exist"),
        ("read", "", {}, "needs the path of a file"),
        ("delete", "/files", {}, "needs the path of a file"),
        ("list", "out", {}, "link, not followed"),
        ("read", "out/passwd", {}, "links are not followed"),
        ("write", "out/new", {"content": "x"}, "links are not followed"),
        ("read", "fifo", {}, "It is a FIFO"),
        ("delete", "full", {}, "something in it"),
        ("read", "f", {"content": "x"}, 'action="write"'),
        ("read", "f", {"offset": -1}, "offset must be 0 or more"),
        ("read", "f", {"limit": 1}, "limit must be between"),
        ("write", "f", {}, "Nothing was changed"),
        ("move", "f", {}, "The arguments of sage_files do not fit"),
    ],
)
async def test_what_is_refused_says_why_and_changes_nothing(
    memory_client: Client, action: str, path: str, more: dict[str, object], said: str
) -> None:
    await run(
        memory_client,
        OPEN_TO_ALL + "; os.symlink('/etc', 'out'); os.mkfifo('fifo'); os.mkdir('full')\n"
        "_ = [open(name, 'w').write('kept') for name in ('f', 'full/f')]",
    )
    answer = await files(memory_client, action, path, **more)
    assert is_error(answer) is (action != "list")
    assert said in text_of(answer)
    left = result_text(await run(memory_client, "sorted(os.listdir()), open('f').read()"))
    assert left == "(['f', 'fifo', 'full', 'out'], 'kept')"


async def test_a_write_over_the_files_limit_is_refused(config: BrokerConfig, era: str) -> None:
    container = config.container.model_copy(update={"files_bytes": 2**20})
    config = config.model_copy(update={"container": container})
    async with open_broker(config) as broker, open_in_memory(broker, era) as client:
        await run(client, "1")
        refused = await files(client, "write", "f", content="x" * 2**20 + "x")
        assert is_error(refused)
        assert "limit of 1048576 bytes" in text_of(refused)
        assert "is empty" in text_of(await files(client, "list"))
