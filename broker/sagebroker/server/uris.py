"""Addresses of the resources, and of what an answer links to."""

from __future__ import annotations

from typing import Final, get_args
from urllib.parse import quote

from sagebroker.server.displays import SOURCE_TYPES
from sagebroker.server.outline import Stream

SESSIONS: Final = "sage://sessions"
CELLS: Final = "sage://sessions/{session}/cells"
CELL: Final = "sage://sessions/{session}/cells/{cell}"
OUTPUT: Final = "sage://sessions/{session}/cells/{cell}/{stream}{?offset,limit}"
FILES: Final = "sage://sessions/{session}/files"
FILE: Final = "sage://sessions/{session}/files/{+path}"
NOTEBOOK: Final = "sage://sessions/{session}/notebook.ipynb"
IMAGE: Final = "sage://sessions/{session}/cells/{cell}/images/{number}"

DISPLAY_KINDS: Final = {
    "text/html": "html",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
}
"""The last word of a display's address by MIME type: a template has one type for all it gives."""


def display_template(mime_type: str) -> str:
    """The template of displays of a type; texts come by pages."""
    pages = "{?offset,limit}" if mime_type in SOURCE_TYPES else ""
    return f"{CELL}/displays/{{number}}/{DISPLAY_KINDS[mime_type]}{pages}"


def cell_uri(session: str, cell: int) -> str:
    """A cell."""
    return f"{SESSIONS}/{quote(session, safe='')}/cells/{cell}"


def session_uris(session: str) -> list[str]:
    """The addresses of what changes whenever something happens in a session."""
    root = f"{SESSIONS}/{quote(session, safe='')}"
    return [f"{root}/cells", f"{root}/notebook.ipynb"]


def file_uri(session: str, path: str) -> str:
    """A file of a session."""
    return f"{SESSIONS}/{quote(session, safe='')}/files/{quote(path)}"


def cell_uris(session: str, cell: int) -> list[str]:
    """The addresses of a cell and of its streams."""
    uri = cell_uri(session, cell)
    return [uri, *(f"{uri}/{stream}" for stream in get_args(Stream))]


def image_uri(session: str, cell: int, number: int) -> str:
    """An image of a cell, counted from 0 as ``sage_output`` counts them."""
    return f"{cell_uri(session, cell)}/images/{number}"


def display_uri(session: str, cell: int, number: int, mime_type: str) -> str:
    """A display of a cell, counted from 0, as it was sent."""
    return f"{cell_uri(session, cell)}/displays/{number}/{DISPLAY_KINDS[mime_type]}"
