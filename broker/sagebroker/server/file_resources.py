"""A session's files as resources: the list of them, and each file whole, up to what clients take."""

import json
from typing import Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError

from sagebroker.protocol.text import clean
from sagebroker.server.callers import broker_of
from sagebroker.server.file_pages import text_in
from sagebroker.server.resource_pages import answering
from sagebroker.server.uris import FILE, FILES, file_uri
from sagebroker.session.file_access import parts_of, shown
from sagebroker.store.confined import Entry
from sagebroker.users import Users

FILE_BYTES: Final = 500_000
"""Largest file that is read whole: inside the message quotes of a text are escaped, and bytes are base64;
at 1 MiB clients cut an event off."""

LIST_BYTES: Final = 500_000
"""Of the list; a session may make a million files with long names."""


def add_file_resources(server: MCPServer[Users]) -> None:
    """Register the resources."""
    server.resource(
        FILES,
        name="files",
        title="Files of a session",
        description="Path, kind, size and address of what lies in a session's folder.",
        mime_type="application/json",
    )(file_list)
    server.resource(
        FILE,
        name="file",
        title="A file of a session",
        description="A file of up to 500 kB: text, or base64 for other data. sage_files reads larger ones by pages.",
        mime_type="application/octet-stream",
    )(file_content)


async def file_list(ctx: Context[Users], session: str) -> str:
    """What lies in the session's folder, as JSON."""
    with answering():
        found = await (await (await broker_of(ctx)).directory.files(session)).list("")
    views, is_cut, room = [], found.is_cut, LIST_BYTES
    for entry in found.entries:
        view = _view(session, entry)
        # As it stands in the message, where its quotes are escaped.
        room -= len(json.dumps(json.dumps(view)))
        if room < 0:
            is_cut = True
            break
        views.append(view)
    return json.dumps({"session": session, "files": views, "is_cut": is_cut})


async def file_content(ctx: Context[Users], session: str, path: str) -> str | bytes:
    """A whole file: text where it is text."""
    with answering():
        files = await (await broker_of(ctx)).directory.files(session)
        piece = await files.read(path, 0, FILE_BYTES)
    if piece.size > FILE_BYTES:
        raise ResourceError(
            f"{shown(parts_of(path))} has {piece.size} bytes, and {FILE_BYTES} are read at once. "
            f'sage_files(session="{session}", action="read", path="…") reads it by pages.'
        )
    text = text_in(piece.data, is_start=True, is_end=True)
    if not piece.data:
        return ""
    return piece.data if text is None else text[1]


def _view(session: str, entry: Entry) -> dict[str, object]:
    path = "/".join(entry.parts)
    view: dict[str, object] = {"path": clean(path), "kind": entry.kind}
    if entry.kind == "file":
        view["bytes"] = entry.bytes
        if clean(path) == path:
            view["uri"] = file_uri(session, path)
    return view
