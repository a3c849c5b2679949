"""The tool about a session's files."""

import base64
import binascii
from typing import Annotated, Final, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock, ToolAnnotations
from pydantic import Field

from sagebroker.server import limits
from sagebroker.server.arguments import SessionName
from sagebroker.server.callers import broker_of
from sagebroker.server.failures import answering
from sagebroker.server.file_pages import list_page, read_page
from sagebroker.server.news import news
from sagebroker.server.product import DEFAULT_SESSION
from sagebroker.server.render import CHARS, block
from sagebroker.session.file_access import SessionFiles
from sagebroker.users import Users

_FILES: Final = """\
List, read, write or delete a session's files, which cells see in /files; also while a cell runs or the \
session sleeps.

list: a folder and all below it. read: text, an image, or base64 for other data. write: content replaces \
the whole file, at most 3 MiB; missing folders are made. delete: a file or an empty folder. Links are \
not followed.
Example: action="write", path="data/points.csv", content="1,2\\n" """


def add_file_tools(server: MCPServer[Users]) -> None:
    """Register the tool."""
    server.add_tool(
        sage_files,
        title="Use a session's files",
        description=_FILES.rstrip(),
        annotations=ToolAnnotations(
            read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
        ),
        meta={"anthropic/maxResultSizeChars": limits.MAX_CHARS},
        structured_output=False,
    )


async def sage_files(
    ctx: Context[Users],
    action: Literal["list", "read", "write", "delete"],
    path: Annotated[str, Field(description="Relative to /files")] = "",
    session: SessionName = DEFAULT_SESSION,
    content: Annotated[str, Field(description="What to write")] = "",
    encoding: Annotated[
        Literal["text", "base64"], Field(description="Of content or answer")
    ] = "text",
    offset: Annotated[int, Field(description="First byte, or entry of the list")] = 0,
    limit: Annotated[int, Field(description="Characters to return")] = CHARS,
) -> CallToolResult:
    """List, read, write, delete; see `_FILES`."""
    with answering("sage_files"):
        broker = await broker_of(ctx)
        limit, note = limits.char_limit("limit", limit)
        limits.check_start(offset)
        if content and action != "write":
            raise ToolError(
                f'content is for action="write"; with action="{action}" nothing was done.'
            )
        files = await broker.directory.files(session)
        match action:
            case "list":
                blocks = await list_page(files, path, offset=offset, limit=limit)
            case "read":
                blocks = await read_page(files, path, encoding, offset=offset, limit=limit)
            case "write":
                blocks = await _write(files, path, content_bytes(content, encoding))
            case _:
                deleted = await files.delete(path)
                blocks = [block("status", f"Session {files.session!r}: {deleted} is deleted.")]
        found = broker.open_one(session)
        notes = [*([note] if note else []), *(news(found) if found is not None else ())]
        return CallToolResult(content=[*blocks, *(block("note", said) for said in notes)])


def content_bytes(content: str, encoding: Literal["text", "base64"]) -> bytes:
    """What a caller gave to be written.

    Raises:
        ToolError: It is not what ``encoding`` says.
    """
    try:
        if encoding == "text":
            return content.encode()
        return base64.b64decode("".join(content.split()), validate=True)
    except UnicodeEncodeError as error:
        raise ToolError(
            "content is not text that UTF-8 can hold. Nothing was written; give it as base64."
        ) from error
    except (binascii.Error, ValueError) as error:
        raise ToolError(
            'content is not base64. Nothing was written; give plain text with encoding="text".'
        ) from error


async def _write(files: SessionFiles, path: str, data: bytes) -> list[ContentBlock]:
    written = await files.write(path, data)
    was = written.replaced_bytes
    what = "is written" if was is None else f"is replaced (it had {was} bytes)"
    return [
        block("status", f"Session {files.session!r}: {written.path} {what}: {written.bytes} bytes.")
    ]
