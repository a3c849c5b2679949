"""Reading a tool's answer as a program does."""

from __future__ import annotations

from mcp_types import CallToolResult, TextContent

from sagebroker.server.render import PART_KEY


def text_of(result: object) -> str:
    """All text of an answer, as a model reads it."""
    assert isinstance(result, CallToolResult)
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def parts(result: object, kind: str) -> list[str]:
    """The texts of one kind of part."""
    assert isinstance(result, CallToolResult)
    return [
        block.text
        for block in result.content
        if isinstance(block, TextContent) and (block.meta or {}).get(PART_KEY) == kind
    ]


def result_text(result: object) -> str:
    """The cell's value as text."""
    [text] = parts(result, "result")
    return text


def status(result: object) -> str:
    """The status word of an answer."""
    return text_of(result).split("]", 1)[0].split()[2]


def is_error(result: object) -> bool:
    assert isinstance(result, CallToolResult)
    return bool(result.is_error)
