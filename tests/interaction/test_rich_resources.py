"""What an answer links to can be read, as it was sent and by its right type."""

from __future__ import annotations

import base64
import io

import pytest
from mcp import Client, MCPError
from mcp_types import (
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolResult,
    ResourceLink,
    TextResourceContents,
)
from PIL import Image
from tests.interaction.calling import call, run
from tests.interaction.reading import parts

from sagebroker.server.display_resources import MAX_ORIGINAL_BYTES, ORIGINAL_CHARS
from sagebroker.server.images import MAX_IMAGE_BYTES

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="5"/></svg>'
CELL = "sage://sessions/default/cells/1"


def publishing(*bundles: str) -> str:
    """Code that sends MIME bundles."""
    sent = "\n".join(f"display({bundle}, raw=True)" for bundle in bundles)
    return f"from IPython.display import display\n{sent}"


NOISE = """
import io, PIL.Image
buffer = io.BytesIO()
PIL.Image.effect_noise((1500, 1500), 200).save(buffer, "PNG")
noise = base64.b64encode(buffer.getvalue()).decode()
"""
"""Code of a PNG that does not shrink; it needs base64."""


def links(result: CallToolResult) -> list[ResourceLink]:
    return [block for block in result.content if isinstance(block, ResourceLink)]


async def read_text(client: Client, uri: str) -> tuple[str, str | None]:
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return content.text, content.mime_type


async def read_bytes(client: Client, uri: str) -> tuple[bytes, str | None]:
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, BlobResourceContents)
    return base64.b64decode(content.blob), content.mime_type


async def test_every_link_of_an_answer_leads_to_what_was_sent(client: Client) -> None:
    gif = base64.b64encode(b"GIF89a, damaged").decode()
    result = await run(
        client,
        publishing(
            "{'text/plain': 'first'}",
            "{'text/html': '<b>bold</b>'}",
            repr({"image/svg+xml": SVG}),
            repr({"image/gif": gif}),
        ),
    )
    html, svg, damaged = links(result)
    assert [link.uri for link in (html, svg, damaged)] == [
        f"{CELL}/displays/1/html",
        f"{CELL}/displays/2/svg",
        f"{CELL}/displays/3/gif",
    ]
    assert await read_text(client, html.uri) == ("<b>bold</b>", "text/html")
    assert await read_text(client, svg.uri) == (SVG, "image/svg+xml")
    assert await read_bytes(client, damaged.uri) == (b"GIF89a, damaged", "image/gif")
    for link in (html, svg, damaged):
        [content] = (await client.read_resource(link.uri)).contents
        assert content.mime_type == link.mime_type
    found = await call(client, "sage_output", session="default", cell=1, stream="html")
    [text] = parts(found, "page")
    assert text == f"display 1, text/html:\n<b>bold</b>\ndisplay 2, image/svg+xml:\n{SVG}"


async def test_images_beyond_two_are_read_as_png_that_fits(memory_client: Client) -> None:
    big = "{'image/png': noise}"
    shown = publishing(big, big, repr({"image/svg+xml": SVG}), big)
    result = await run(memory_client, f"import base64{NOISE}{shown}")
    drawn, last = [link for link in links(result) if "/images/" in link.uri]
    for link in (drawn, last):
        data, mime_type = await read_bytes(memory_client, link.uri)
        assert mime_type == link.mime_type == "image/png"
        assert Image.open(io.BytesIO(data)).format == "PNG"
        assert len(data) <= MAX_IMAGE_BYTES
    with pytest.raises(MCPError, match=f"at most {MAX_ORIGINAL_BYTES}.*sage_files"):
        await memory_client.read_resource(f"{CELL}/displays/3/png")


async def test_a_long_page_comes_by_pieces(memory_client: Client) -> None:
    await run(memory_client, publishing(f"{{'text/html': 'x' * {ORIGINAL_CHARS} + 'end'}}"))
    text, _ = await read_text(memory_client, f"{CELL}/displays/0/html")
    following = f"{CELL}/displays/0/html?offset={ORIGINAL_CHARS}"
    assert text[ORIGINAL_CHARS:] == f"\n… 3 characters left out; {following} has more …\n"
    assert await read_text(memory_client, following) == ("end", "text/html")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("images/0", "has 0 images"),
        ("displays/1/html", "has 1 displays"),
        ("displays/0/html", "is text/plain"),
        ("displays/0/png", "is text/plain"),
    ],
)
async def test_what_is_not_there_is_told(memory_client: Client, place: str, said: str) -> None:
    await run(memory_client, publishing("{'text/plain': 'one'}"))
    with pytest.raises(MCPError, match=said) as caught:
        await memory_client.read_resource(f"{CELL}/{place}")
    assert caught.value.error.code == INVALID_PARAMS


async def test_places_that_are_none_are_refused(memory_client: Client) -> None:
    await run(memory_client, publishing("{'image/png': 'no base64!'}"))
    for place in ("images/-1", "images/x", "images/0", "displays/0/exe", "displays/0/png"):
        with pytest.raises(MCPError):
            await memory_client.read_resource(f"{CELL}/{place}")
