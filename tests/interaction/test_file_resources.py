"""A session's notebook and files as resources, read by a real client in both eras."""

from __future__ import annotations

import base64
import json
import re

import nbformat
import pytest
from mcp import Client, MCPError
from mcp_types import BlobResourceContents, TextResourceContents
from tests.interaction.calling import call, run
from tests.interaction.reading import is_error

from sagebroker.broker import Broker
from sagebroker.server.file_resources import FILE_BYTES
from sagebroker.server.notebook_resource import NOTEBOOK_BYTES, NOTEBOOK_TYPE

OPEN_TO_ALL = "import os; os.umask(0)"
"""Local kernels are this process's user, who may be root: what they make is the session's in a container only."""

ROOT = "sage://sessions/default"

EVENT_BYTES = 2**20
"""Where clients cut an event off."""


async def read(client: Client, uri: str) -> TextResourceContents | BlobResourceContents:
    result = await client.read_resource(uri)
    assert len(result.model_dump_json().encode()) < EVENT_BYTES
    [content] = result.contents
    return content


async def text(client: Client, uri: str) -> str:
    content = await read(client, uri)
    assert isinstance(content, TextResourceContents)
    return content.text


async def write(client: Client, path: str, data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    done = await call(
        client, "sage_files", action="write", path=path, content=encoded, encoding="base64"
    )
    assert not is_error(done)


async def test_the_notebook_of_a_session_has_its_cells_and_says_what_is_not_repeated(
    client: Client,
) -> None:
    await run(client, "import sys, random\nprint('é\\ud800')\nprint('w', file=sys.stderr)\n6 * 7")
    await run(client, "1/0")
    await run(client, "random.random()")
    content = await read(client, f"{ROOT}/notebook.ipynb")
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == NOTEBOOK_TYPE
    notebook = nbformat.reads(content.text, as_version=4)
    nbformat.validate(notebook)
    shown = [[output.output_type for output in cell.outputs] for cell in notebook.cells]
    assert shown == [["stream", "stream", "execute_result"], ["error"], ["execute_result"]]
    assert notebook.cells[0].outputs[2].data["text/plain"] == "42"
    assert notebook.cells[1].metadata.tags == ["raises-exception"]
    assert notebook.cells[2].metadata.sagebroker.replay.reasons == [
        "depends on chance: random.random"
    ]
    [kernel] = notebook.metadata.sagebroker.kernels
    assert re.fullmatch(r"ipython \d+\.\d+\.\d+", kernel)


async def test_the_notebook_of_a_session_that_shows_much_fits_into_a_message(
    memory_client: Client,
) -> None:
    await run(memory_client, "print('\"\\\\' * 300_000)")
    await run(
        memory_client,
        "from IPython.display import display\n"
        "display({'image/png': 'A' * 900_000, 'text/plain': 'a picture'}, raw=True)",
    )
    content = await text(memory_client, f"{ROOT}/notebook.ipynb")
    assert len(content.encode()) < NOTEBOOK_BYTES + 2_000
    notebook = nbformat.reads(content, as_version=4)
    nbformat.validate(notebook)
    picture = notebook.cells[1].outputs[0].data
    assert picture == {"text/plain": "a picture"}
    left = [one.kind for cell in notebook.cells for one in cell.metadata.sagebroker.left_out]
    assert left == ["stdout", "image/png"]


async def test_the_notebook_of_a_session_that_sleeps_is_read_and_nothing_is_woken(
    broker: Broker, memory_client: Client
) -> None:
    await run(memory_client, "x = 5\nx")
    awake = json.loads(await text(memory_client, f"{ROOT}/notebook.ipynb"))
    assert await broker.session("default").hibernate() == ""
    asleep = json.loads(await text(memory_client, f"{ROOT}/notebook.ipynb"))
    assert broker.sessions() == []
    assert asleep["cells"] == awake["cells"]


async def test_files_are_listed_with_addresses_that_read_them(client: Client) -> None:
    await run(client, OPEN_TO_ALL + "; os.symlink('/etc', 'out')")
    await write(client, "data/é ?#%.txt", "Grüße\n\x1b[1m".encode())
    await write(client, "data/plot.bin", bytes(range(256)))
    listed = json.loads(await text(client, f"{ROOT}/files"))
    assert listed["is_cut"] is False
    entries = {entry["path"]: entry for entry in listed["files"]}
    assert {path: entry["kind"] for path, entry in entries.items()} == {
        "data": "folder",
        "out": "link",
        "data/plot.bin": "file",
        "data/é ?#%.txt": "file",
    }
    assert "uri" not in entries["out"]
    assert entries["data/plot.bin"]["bytes"] == 256
    assert await text(client, entries["data/é ?#%.txt"]["uri"]) == "Grüße\n\x1b[1m"
    blob = await read(client, entries["data/plot.bin"]["uri"])
    assert isinstance(blob, BlobResourceContents)
    assert base64.b64decode(blob.blob) == bytes(range(256))


async def test_files_up_to_the_limit_are_read_whole_and_larger_ones_refused(
    memory_client: Client,
) -> None:
    await run(memory_client, "1")
    for name, byte in (("text", b'"'), ("bytes", b"\xff")):
        await write(memory_client, name, byte * FILE_BYTES)
        content = await read(memory_client, f"{ROOT}/files/{name}")
        if isinstance(content, TextResourceContents):
            assert content.text.encode() == byte * FILE_BYTES
        else:
            assert base64.b64decode(content.blob) == byte * FILE_BYTES
    await run(memory_client, "open('empty', 'w').close()")
    assert await text(memory_client, f"{ROOT}/files/empty") == ""
    await write(memory_client, "text", b"x" * (FILE_BYTES + 1))
    with pytest.raises(MCPError, match="sage_files"):
        await read(memory_client, f"{ROOT}/files/text")


async def test_a_list_of_many_files_fits_into_a_message(memory_client: Client) -> None:
    await run(memory_client, "for n in range(4000): open(f'{n:04}' + '\"' * 200, 'w').close()")
    listed = json.loads(await text(memory_client, f"{ROOT}/files"))
    assert listed["is_cut"] is True
    assert len(listed["files"]) > 100


@pytest.mark.parametrize(
    "path",
    [
        "../lock",
        "..%2f..%2fstore.sqlite",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "data/../../lock",
        "out/passwd",
        "fifo",
        "a%00b",
        "none",
        "data",
        "",
    ],
)
async def test_nothing_else_than_files_of_the_session_is_read(
    memory_client: Client, path: str
) -> None:
    await run(
        memory_client,
        OPEN_TO_ALL + "; os.symlink('/etc', 'out'); os.mkfifo('fifo'); os.mkdir('data')",
    )
    with pytest.raises(MCPError) as caught:
        await read(memory_client, f"{ROOT}/files/{path}")
    assert "root:" not in str(caught.value)


async def test_a_session_that_is_not_there_is_told_with_those_that_are(
    memory_client: Client,
) -> None:
    await run(memory_client, "1")
    for end in ("notebook.ipynb", "files", "files/a"):
        with pytest.raises(MCPError, match="'default'"):
            await read(memory_client, f"sage://sessions/curves/{end}")
