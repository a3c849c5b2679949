"""What is said of a call that does not fit: an unknown tool, unknown arguments, values of another kind.

The SDK ignores arguments that a tool does not have. Here they are refused: who gives ``timeout=5`` believes that
there is a limit.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, Final

from mcp.server.mcpserver.exceptions import ToolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import ValidationError

_MEANT: Final = {
    "timeout": ("time_limit_s", "wait_s"),
    "timeout_s": ("time_limit_s", "wait_s"),
    "time_limit": ("time_limit_s", "wait_s"),
    "time_limit_s": ("wait_s",),
    "session_id": ("session",),
    "session_name": ("session",),
    "cell_id": ("cell",),
    "cell_number": ("cell",),
    "execution": ("cell",),
    "execution_id": ("cell",),
    "command": ("code",),
    "source": ("code",),
    "expression": ("code",),
    "script": ("code",),
    "input": ("answer",),
    "query": ("pattern",),
    "search": ("pattern",),
    "filename": ("path",),
    "file": ("path",),
    "text": ("content",),
    "data": ("content",),
    "symbol": ("name",),
    "topic": ("name",),
}
"""Names that the tools of other servers have, and ours for the same; the first that the tool has counts."""

_RUNNING: Final = ("run", "exec", "eval", "python", "code", "calc", "comput")
"""What the names of other servers' tools contain that run code."""


def unknown_tool(name: str, known: Iterable[str]) -> str:
    """What is said where there is no tool ``name``."""
    tools = sorted(known)
    runs = any(word in name.lower() for word in _RUNNING)
    meant = "sage_run" if runs and "sage_run" in tools else _nearest(name, tools)
    return f"There is no tool {name!r}. {_did_you_mean(meant)}There are: {', '.join(tools)}."


def check_names(tool: str, schema: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `ToolError` where an argument is given that the tool does not have."""
    known = list(schema.get("properties", {}))
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    hints = "".join(_did_you_mean(_meant(name, known), f" for {name!r}") for name in unknown)
    raise ToolError(
        f"{tool} has no argument {' and no '.join(map(repr, unknown))}. Nothing was done. {hints}"
        f"It has: {', '.join(known)}."
    )


def explain(tool: str, schema: Mapping[str, Any], error: ValidationError) -> str:
    """Arguments that do not fit the schema, told without the validator's jargon, with what does fit."""
    properties = schema.get("properties", {})
    complaints = {}
    for entry in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(entry["loc"][0]) if entry["loc"] else ""
        what = f"must be {_kind(properties.get(name, {}))}"
        if entry["type"] == "missing":
            what = f"is missing; it {what}"
        complaints[name] = f"{name} {what}" if name in properties else str(entry["msg"])
    return (
        f"The arguments of {tool} do not fit: {'; '.join(complaints.values())}. Nothing was done."
    )


def _kind(schema: Mapping[str, Any]) -> str:
    """What a value must be, with an example."""
    if "enum" in schema:
        return f"one of {', '.join(json.dumps(value) for value in schema['enum'])}"
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    example = f", for instance {json.dumps(schema['default'])}" if schema.get("default") else ""
    words = {
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
    }
    return words.get(str(schema.get("type")), "of another kind") + example


def _meant(name: str, known: list[str]) -> str:
    for meant in _MEANT.get(name.lower(), ()):
        if meant in known:
            return meant
    if name.lower() in ("name", "session_id", "id") and "session" in known:
        return "session"
    return _nearest(name, known)


def _nearest(name: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(name.lower(), known, 1, 0.5)), "")


def _did_you_mean(name: str, what: str = "") -> str:
    return f"Did you mean {name!r}{what}? " if name else ""
