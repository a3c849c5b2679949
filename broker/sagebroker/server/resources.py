"""Sessions, cells and outputs as MCP resources, read from the transcript; and what completes their names.

Whatever a resource shows a tool shows, too: most clients read resources only when their user asks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Final, get_args

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    PromptReference,
    ResourceTemplateReference,
)
from pydantic import Field

from sagebroker.errors import BrokerError
from sagebroker.protocol.text import clean
from sagebroker.server.callers import broker_of, current_user
from sagebroker.server.display_resources import add_displays
from sagebroker.server.file_resources import add_file_resources
from sagebroker.server.notebook_resource import add_notebook_resource
from sagebroker.server.outline import Stream, all_text, stream_text
from sagebroker.server.render import status_line
from sagebroker.server.resource_pages import Offset, answering, page, read
from sagebroker.server.session_tools import list_sessions
from sagebroker.server.uris import (
    CELL,
    CELLS,
    OUTPUT,
    SESSIONS,
    cell_uri,
)
from sagebroker.users import Users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sagebroker.session.cell import Cell

PAGE_CHARS: Final = 200_000
"""Most characters of one read: in UTF-8 below the 1 MiB at which clients cut an event off."""
MOST_CELLS: Final = 500
"""Newest cells in a session's list."""
MOST_COMPLETIONS: Final = 100
"""The protocol allows no more."""
FIRST_LINE_CHARS: Final = 120

Limit = Annotated[int, Field(ge=1, le=PAGE_CHARS)]


def add_resources(server: MCPServer[Users], users: Callable[[], Users | None]) -> None:
    """Register the resources and the completion of their names.

    Args:
        server: Where to.
        users: Whose brokers serve now; None before the server serves. What is read without a
            template, and completions, have no context that would tell it.
    """

    async def sessions() -> str:
        serving = users()
        with answering():
            if serving is None:
                return "{}"
            return (await list_sessions(await serving.broker_of(current_user()))).model_dump_json()

    server.resource(
        SESSIONS,
        name="sessions",
        title="Sessions",
        description="Every session, open or asleep.",
        mime_type="application/json",
    )(sessions)
    server.resource(
        CELLS,
        name="cells",
        title="Cells of a session",
        description="Number, status, time and first line of the newest cells.",
        mime_type="application/json",
    )(cells)
    server.resource(
        CELL,
        name="cell",
        title="A cell",
        description="A cell's code and its whole output, as far as one page holds it.",
        mime_type="text/plain",
    )(cell_text)
    server.resource(
        OUTPUT,
        name="output",
        title="An output of a cell",
        description="stdout, stderr, result, traceback or html (HTML and SVG as sent) of a cell, by pages.",
        mime_type="text/plain",
    )(output_text)
    add_displays(server)
    add_file_resources(server)
    add_notebook_resource(server)

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]
    async def complete(
        ref: PromptReference | ResourceTemplateReference,
        argument: CompletionArgument,
        context: CompletionContext | None,
    ) -> Completion | None:
        del ref  # an argument means the same wherever it stands
        serving = users()
        if serving is None:
            return None
        given = (context.arguments if context is not None else None) or {}
        return await _complete(serving, argument, given.get("session", ""))


async def cells(ctx: Context[Users], session: str) -> str:
    """The newest cells of a session, as JSON."""
    with answering():
        listed = await (await broker_of(ctx)).directory.list_cells(session, most=MOST_CELLS)
    return json.dumps({"session": session, "cells": [_cell_view(session, cell) for cell in listed]})


async def cell_text(ctx: Context[Users], session: str, cell: int) -> str:
    """A cell's code and all its streams."""
    found = await read(ctx, session, cell)
    whole = "\n".join(
        [status_line(session, found), *found.notices, found.code, "", all_text(found)]
    )
    more = f"{cell_uri(session, cell)}/stdout, /stderr, /result and /traceback"
    return page(whole, 0, PAGE_CHARS, more)


async def output_text(
    ctx: Context[Users],
    session: str,
    cell: int,
    stream: Stream,
    offset: Offset = 0,
    limit: Limit = PAGE_CHARS,
) -> str:
    """A page of one stream of a cell."""
    text = stream_text(await read(ctx, session, cell), stream)
    more = f"{cell_uri(session, cell)}/{stream}?offset={offset + limit}"
    return page(text, offset, limit, more)


def _cell_view(session: str, cell: Cell) -> dict[str, object]:
    return {
        "number": cell.number,
        "uri": cell_uri(session, cell.number),
        "status": cell.word,
        "author": cell.author,
        "seconds": None if cell.started_at is None else round(cell.elapsed_s, 3),
        "code": clean(cell.code.lstrip().partition("\n")[0][:FIRST_LINE_CHARS]),
    }


async def _complete(users: Users, argument: CompletionArgument, session: str) -> Completion:
    """Names with the given beginning."""
    try:
        broker = await users.broker_of(current_user())
        match argument.name:
            case "session":
                opened = {session.name for session in broker.sessions()}
                stored = {row.name for row in await broker.stored_sessions()}
                return _completion(sorted(opened | stored), argument.value)
            case "cell" if session:
                known = await broker.directory.list_cells(session, most=MOST_CELLS)
                return _completion([str(cell.number) for cell in reversed(known)], argument.value)
            case "stream":
                return _completion(get_args(Stream), argument.value)
            case _:
                return _completion([], "")
    except BrokerError:
        # Nothing to complete in what is not there, or cannot be read.
        return _completion([], "")


def _completion(values: Iterable[str], begun: str) -> Completion:
    found = [value for value in values if value.startswith(begun)]
    return Completion(
        values=found[:MOST_COMPLETIONS],
        total=len(found),
        has_more=len(found) > MOST_COMPLETIONS,
    )
