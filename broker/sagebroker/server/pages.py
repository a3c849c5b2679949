"""Pages and searches of a cell's whole output: what ``sage_output`` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock

from sagebroker.server import limits
from sagebroker.server.outline import Stream, all_text, images, stream_text
from sagebroker.server.render import MAX_INLINE_IMAGES, block, image_block, next_call, status_line

if TYPE_CHECKING:
    from sagebroker.session.cell import Cell

OutputStream = Literal["all", "stdout", "stderr", "result", "traceback", "html", "images"]

MAX_LINE_CHARS: Final = 400
"""Characters shown of a line that matches; the offset leads to the rest."""


def text_of(cell: Cell, stream: Stream | Literal["all"]) -> str:
    """The text that ``stream`` names."""
    return all_text(cell) if stream == "all" else stream_text(cell, stream)


async def page(
    session: str, cell: Cell, stream: OutputStream, *, offset: int, limit: int, pattern: str
) -> CallToolResult:
    """One page of the output, or the lines in which ``pattern`` occurs.

    Args:
        session: The session's name.
        cell: In any state.
        stream: What to read; for ``images``, ``offset`` counts images.
        offset: First character, in the whole text.
        limit: Most characters to answer.
        pattern: Plain text to look for, whatever its case; empty for a page.

    Raises:
        ToolError: The offset lies outside.
    """
    limits.check_start(offset)
    if stream == "images":
        return await _image_page(session, cell, offset)
    text = text_of(cell, stream)
    where = f"{status_line(session, cell)} {stream}"
    if not text:
        return _answer([block("status", f"{where}: empty.")])
    limits.check_within(offset, len(text), f"{stream} has {len(text)} characters")
    if pattern:
        head, shown, following = _search(text, pattern, offset, limit)
    else:
        end = min(len(text), offset + limit)
        head = f"characters {offset} to {end} of {len(text)}"
        shown, following = text[offset:end], end if end < len(text) else None
    blocks = [block("status", f"{where}, {head}:")]
    if shown:
        blocks.append(block("page", shown))
    if following is not None:
        arguments = {"session": session, "cell": cell.number, "stream": stream, "offset": following}
        if pattern:
            arguments["pattern"] = pattern
        blocks.append(next_call("sage_output", **arguments))
    return _answer(list(blocks))


def _search(text: str, pattern: str, offset: int, limit: int) -> tuple[str, str, int | None]:
    """Lines with the pattern from ``offset`` on, each with its offset; where to go on."""
    wanted = pattern.casefold()
    found: list[str] = []
    used, position = 0, offset
    for line in text[offset:].splitlines(keepends=True):
        if wanted in line.casefold():
            shown = line.rstrip("\r\n")
            if len(shown) > MAX_LINE_CHARS:
                shown = (
                    f"{shown[:MAX_LINE_CHARS]} … [{len(shown) - MAX_LINE_CHARS} more characters]"
                )
            entry = f"{position}: {shown}"
            if found and used + len(entry) > limit:
                return f"{len(found)} lines with {pattern!r} so far", "\n".join(found), position
            found.append(entry)
            used += len(entry) + 1
        position += len(line)
    return f"{len(found)} lines with {pattern!r}", "\n".join(found), None


async def _image_page(session: str, cell: Cell, offset: int) -> CallToolResult:
    found = images(cell)
    if offset >= len(found):
        raise ToolError(f"Cell {cell.number} has {len(found)} images; offset counts from 0.")
    end = min(len(found), offset + MAX_INLINE_IMAGES)
    head = f"{status_line(session, cell)} images {offset} to {end - 1} of {len(found)}:"
    blocks: list[ContentBlock] = [block("status", head)]
    blocks.extend([await image_block(image) for image in found[offset:end]])
    if end < len(found):
        blocks.append(
            next_call("sage_output", session=session, cell=cell.number, stream="images", offset=end)
        )
    return _answer(blocks)


def _answer(blocks: list[ContentBlock]) -> CallToolResult:
    return CallToolResult(content=blocks, is_error=False)
