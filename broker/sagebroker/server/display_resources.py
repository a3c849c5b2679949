"""Images and displays of a cell as MCP resources: what an answer links to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from pydantic import Field

from sagebroker.server.displays import SOURCE_TYPES
from sagebroker.server.images import BadImageError, decode, prepare
from sagebroker.server.outline import images
from sagebroker.server.resource_pages import Number, Offset, page, read
from sagebroker.server.uris import DISPLAY_KINDS, IMAGE, display_template, display_uri
from sagebroker.users import Users

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sagebroker.session.cell import Cell

ORIGINAL_CHARS: Final = 500_000
"""Most characters of a page of HTML or SVG, which is nearly all ASCII; a 3D plot has 250,000."""
MAX_ORIGINAL_BYTES: Final = 700_000
"""Most bytes of an image as it was sent; as base64 below the 1 MiB at which clients cut an event off."""


def add_displays(server: MCPServer[Users]) -> None:
    """Register the templates; one for each type, since a template has one type for all it gives."""
    server.resource(
        IMAGE,
        name="image",
        title="An image of a cell",
        description="An image, counted from 0, scaled where it is large.",
        mime_type="image/png",
    )(image_png)
    for mime_type, kind in DISPLAY_KINDS.items():
        make = _text_reader if mime_type in SOURCE_TYPES else _bytes_reader
        server.resource(
            display_template(mime_type),
            name=f"display_{kind}",
            title=f"A display of a cell as {kind}",
            description=f"What the kernel sent as {mime_type}; displays are counted from 0.",
            mime_type=mime_type,
        )(make(mime_type))


async def image_png(ctx: Context[Users], session: str, cell: int, number: Number) -> bytes:
    """An image of a cell as PNG."""
    found = images(await read(ctx, session, cell))
    if number >= len(found):
        raise ResourceNotFoundError(f"Cell {cell} has {len(found)} images, counted from 0.")
    try:
        picture = await prepare(found[number].data, found[number].mime_type, as_png=True)
    except BadImageError as error:
        raise ResourceError(f"The image cannot be shown: {error}.") from error
    return picture.data


def _text_reader(mime_type: str) -> Callable[..., Awaitable[str]]:
    async def display_text(
        ctx: Context[Users],
        session: str,
        cell: int,
        number: Number,
        offset: Offset = 0,
        limit: Annotated[int, Field(ge=1, le=ORIGINAL_CHARS)] = ORIGINAL_CHARS,
    ) -> str:
        text = _content(await read(ctx, session, cell), number, mime_type)
        more = f"{display_uri(session, cell, number, mime_type)}?offset={offset + limit}"
        return page(text, offset, limit, more)

    return display_text


def _bytes_reader(mime_type: str) -> Callable[..., Awaitable[bytes]]:
    async def display_bytes(ctx: Context[Users], session: str, cell: int, number: Number) -> bytes:
        text = _content(await read(ctx, session, cell), number, mime_type)
        try:
            data = decode(text)
        except BadImageError as error:
            raise ResourceError(f"The image is damaged: it is {error}.") from error
        if len(data) > MAX_ORIGINAL_BYTES:
            raise ResourceError(
                f"The image has {len(data)} bytes, and a resource at most {MAX_ORIGINAL_BYTES}. "
                "Save it to a file in a cell and read that with sage_files."
            )
        return data

    return display_bytes


def _content(cell: Cell, number: int, mime_type: str) -> str:
    displays = cell.outputs.displays
    if number >= len(displays):
        raise ResourceNotFoundError(
            f"Cell {cell.number} has {len(displays)} displays, counted from 0."
        )
    content = displays[number].data.get(mime_type)
    if not isinstance(content, str):
        kinds = ", ".join(sorted(displays[number].data))
        raise ResourceNotFoundError(f"Display {number} of cell {cell.number} is {kinds}.")
    return content
