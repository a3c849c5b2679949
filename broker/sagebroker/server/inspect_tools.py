"""The tool that explains names: documentation, source, completions, search."""

from __future__ import annotations

from typing import Annotated, Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, ToolAnnotations
from pydantic import Field

from sagebroker.kernel.inspection import Detail, Inspected, Question
from sagebroker.protocol.text import strip_ansi
from sagebroker.server import limits
from sagebroker.server.arguments import MaxChars, SessionName
from sagebroker.server.failures import answering
from sagebroker.server.news import news
from sagebroker.server.product import DEFAULT_SESSION
from sagebroker.server.render import CHARS, block, next_call
from sagebroker.server.waiting import awake, with_progress
from sagebroker.users import Users

_INSPECT: Final = """\
Explain a name: doc (signature, docstring, examples), source, complete (names with this beginning), or \
search (Sage's documentation by words; offline). No code is run; no cell may be running.
Examples: name="EllipticCurve"; name="chromatic number", detail="search" """


def add_inspect_tools(server: MCPServer[Users]) -> None:
    """Register the tool."""
    server.add_tool(
        sage_inspect,
        title="Explain a name, search the documentation",
        description=_INSPECT.rstrip(),
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        structured_output=False,
    )


async def sage_inspect(
    ctx: Context[Users],
    name: Annotated[str, Field(description="Dotted name like E.rank, its beginning, or words")],
    detail: Detail = "doc",
    session: SessionName = DEFAULT_SESSION,
    offset: Annotated[int, Field(description="First character to show", ge=0)] = 0,
    max_chars: MaxChars = CHARS,
) -> CallToolResult:
    """Explain a name; see `_INSPECT`."""
    with answering("sage_inspect"):
        name = limits.name_text(name)
        max_chars, note = limits.char_limit("max_chars", max_chars)
        question = Question(name=name, detail=detail, offset=offset, limit=max_chars)
        found = await awake(ctx, session)
        said = await with_progress(ctx, lambda: "looking it up,", lambda: found.inspect(question))
        if offset:
            limits.check_within(offset, said.total, f"there are {said.total} characters")
        arguments: dict[str, object] = {"session": found.name, "name": name, "detail": detail}
        if max_chars != CHARS:
            arguments["max_chars"] = max_chars
        return CallToolResult(content=_blocks(said, offset, arguments, [note, *news(found)]))


def _blocks(
    said: Inspected, offset: int, arguments: dict[str, object], notes: list[str]
) -> list[ContentBlock]:
    """What it is, the text, and the call that shows the rest."""
    end = offset + len(said.text)
    head = said.title
    if len(said.text) < said.total:
        head += f", characters {offset} to {end} of {said.total}"
    blocks: list[ContentBlock] = [
        block("status", "\n".join([f"{head}:", *(one for one in notes if one)]))
    ]
    if said.text:
        blocks.append(block("page", strip_ansi(said.text)))
    if said.text and end < said.total:
        blocks.append(next_call("sage_inspect", **arguments, offset=end))
    return blocks
