"""Pages of a session's files and of lists of them: what ``sage_files`` answers."""

from __future__ import annotations

import base64
import codecs
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from sagebroker.protocol.text import strip_ansi
from sagebroker.server import limits
from sagebroker.server.outline import ImagePart
from sagebroker.server.render import block, image_block, next_call
from sagebroker.session.file_access import MAX_LISTED, parts_of, quoted, shown

if TYPE_CHECKING:
    from mcp_types import ContentBlock

    from sagebroker.session.file_access import SessionFiles
    from sagebroker.store.confined import Entry

MAX_IMAGE_FILE_BYTES: Final = 8 * 2**20
"""Largest file that is shown as an image: a plot has less than 1 MiB, a photograph about 5."""

_ESCAPE: Final = "\x1b"
_MOST_CONTINUATIONS: Final = 3
"""Bytes of a character of UTF-8 after its first."""

_IMAGE_STARTS: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}


async def list_page(
    files: SessionFiles, path: str, *, offset: int, limit: int
) -> list[ContentBlock]:
    """The entries from ``offset`` on that have room in ``limit`` characters, one at least.

    Raises:
        ToolError: The offset lies outside.
        BrokerError: See `SessionFiles.list`.
    """
    found = await files.list(path)
    total = f"more than {MAX_LISTED}" if found.is_cut else str(len(found.entries))
    where = f"Session {files.session!r}: {found.path}"
    if not found.entries:
        return [block("status", f"{where} is empty.")]
    limits.check_within(offset, len(found.entries), f"there are {total} entries")
    lines: list[str] = []
    used = 0
    for entry in found.entries[offset:]:
        line = entry_line(entry)
        used += len(line) + 1
        if lines and used > limit:
            break
        lines.append(line)
    end = offset + len(lines)
    head = f"{where} has {total} entries"
    head += "." if len(lines) == len(found.entries) else f"; {offset} to {end - 1} are these."
    blocks: list[ContentBlock] = [block("status", head), block("page", "\n".join(lines))]
    if end < len(found.entries):
        blocks.append(_next(files, path, "list", end))
    elif found.is_cut:
        said = "The other entries are not listed: list a sub-folder, or look in a cell."
        blocks.append(block("next", said))
    return blocks


def entry_line(entry: Entry) -> str:
    """An entry in one line; its path is one that the tool takes."""
    path = "/".join(entry.parts)
    name = quoted(path)
    if entry.kind == "folder":
        name += "/" if name == path else ""
        size = "folder" if entry.is_open else "folder, not looked into"
    elif entry.kind == "file":
        size = f"{entry.bytes} bytes"
    else:
        size = "link, not followed" if entry.kind == "link" else entry.kind
    if not _is_unicode(path):
        size += ", its name is not UTF-8: rename it in a cell to use it here"
    return f"{name}  {size}, {_stamp(entry.changed_at)}"


async def read_page(
    files: SessionFiles,
    path: str,
    encoding: Literal["text", "base64"],
    *,
    offset: int,
    limit: int,
) -> list[ContentBlock]:
    """A page of a file: text where it is text, else base64; a whole image as an image.

    Args:
        files: The session's.
        path: The file's.
        encoding: ``base64`` for the bytes, whatever they are.
        offset: The first byte.
        limit: Characters of the page.

    Raises:
        ToolError: The offset lies outside.
        BrokerError: See `SessionFiles.read`.
    """
    piece = await files.read(path, offset, limit)
    where = f"Session {files.session!r}: {shown(parts_of(path))}"
    if not piece.size:
        return [block("status", f"{where} is empty.")]
    limits.check_within(offset, piece.size, f"the file has {piece.size} bytes")
    if encoding == "text":
        kind = image_type(piece.data) if offset == 0 else ""
        if kind and piece.size <= MAX_IMAGE_FILE_BYTES:
            return await _image(files, path, where, kind)
        text = text_in(
            piece.data, is_start=offset == 0, is_end=_ends(piece.data, offset, piece.size)
        )
        if text is not None:
            return _text_page(files, path, where, text, offset=offset, size=piece.size)
    data = piece.data[: limit * 3 // 4]
    end = offset + len(data)
    said = "as base64" if encoding == "base64" else "as base64, since it is not text"
    blocks: list[ContentBlock] = [
        block("status", f"{where}, bytes {offset} to {end} of {piece.size}, {said}:"),
        block("page", base64.b64encode(data).decode("ascii")),
    ]
    if end < piece.size:
        blocks.append(_next(files, path, "read", end, encoding=encoding))
    return blocks


def image_type(data: bytes) -> str:
    """The MIME type of an image that clients can be shown, by its first bytes; empty for others."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _IMAGE_STARTS.items() if data.startswith(start)), "")


def text_in(data: bytes, *, is_start: bool, is_end: bool) -> tuple[int, str] | None:
    """The whole characters in part of a file, and where they begin; None where it is not text.

    A NUL is no text: no one writes it, and files that are all holes consist of it.

    Args:
        data: The part.
        is_start: It begins where the file begins; else it may begin in the midst of a character.
        is_end: It ends where the file ends; else it may end in the midst of a character.
    """
    begin = 0
    if not is_start:
        while begin < min(_MOST_CONTINUATIONS, len(data)) and data[begin] & 0xC0 == 0x80:
            begin += 1
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[begin:], final=is_end)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text or not text else (begin, text)


def _ends(data: bytes, offset: int, size: int) -> bool:
    return offset + len(data) >= size


def _text_page(
    files: SessionFiles, path: str, where: str, found: tuple[int, str], *, offset: int, size: int
) -> list[ContentBlock]:
    begin, text = found
    end = offset + begin + len(text.encode())
    head = f"{where}, bytes {offset + begin} to {end} of {size}:"
    plain = strip_ansi(text).replace(_ESCAPE, "")
    if plain != text:
        head += ' Terminal codes are left out; encoding="base64" has all bytes.'
    blocks: list[ContentBlock] = [block("status", head), block("page", plain)]
    if end < size:
        blocks.append(_next(files, path, "read", end))
    return blocks


async def _image(files: SessionFiles, path: str, where: str, kind: str) -> list[ContentBlock]:
    whole = await files.read(path, 0, MAX_IMAGE_FILE_BYTES)
    data = base64.b64encode(whole.data).decode("ascii")
    head = f'{where}, an image of {whole.size} bytes; encoding="base64" has the bytes.'
    return [block("status", head), await image_block(ImagePart(data=data, mime_type=kind))]


def _next(files: SessionFiles, path: str, action: str, offset: int, **more: Any) -> ContentBlock:
    arguments = {"session": files.session, "action": action, "path": path, "offset": offset} | more
    if arguments.get("encoding") == "text":
        del arguments["encoding"]
    return next_call("sage_files", **arguments)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stamp(seconds: float) -> str:
    """A time as people read it; a session may have set one that is none."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "time unknown"
