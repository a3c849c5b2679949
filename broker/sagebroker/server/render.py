"""A cell's answer: the status line, what happened to the kernel, the outputs, the next call.

Content only, never structured content: some clients show the one in place of the other, and then
lose images. Each part is a content block of its own and carries its kind in ``_meta``, so that
programs find the result without parsing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mcp_types import CallToolResult, ContentBlock, ImageContent, ResourceLink, TextContent

from sagebroker.model import CellStatus, InputRequest
from sagebroker.protocol.text import clean
from sagebroker.server.displays import SOURCE_TYPES
from sagebroker.server.images import BadImageError, Picture, prepare
from sagebroker.server.outline import ImagePart, OriginalPart, Part, outline
from sagebroker.server.uris import display_uri, image_uri

if TYPE_CHECKING:
    from sagebroker.session.cell import Cell

CHARS: Final = 8000
"""Default length of an answer's outputs; some clients cut errors at 11,000."""

MAX_INLINE_IMAGES: Final = 2
"""Images in one answer; more make some clients drop the whole answer."""

MAX_LINKS: Final = 8
"""Links in one answer; the calls that stand beside them lead to all the rest."""

PART_KEY: Final = "org.sagebroker/part"
"""Key in a block's ``_meta`` that names its kind."""

_FAILED = frozenset({CellStatus.ERROR, CellStatus.INTERRUPTED, CellStatus.DIED})


def call_text(tool: str, **arguments: Any) -> str:
    """A tool call as it is written in answers: ``sage_wait(session="default", cell=7)``."""
    inner = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items()
    )
    return f"{tool}({inner})"


def next_call(tool: str, **arguments: Any) -> TextContent:
    """The block that names the call for the next page."""
    return block("next", f"Next: {call_text(tool, **arguments)}")


def status_line(session: str, cell: Cell) -> str:
    """``[default #7 ok 0.42 s]``; a cell that has not begun has no time."""
    if cell.started_at is None:
        return f"[{session} #{cell.number} {cell.word}]"
    seconds = cell.elapsed_s
    shown = f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"
    return f"[{session} #{cell.number} {cell.word} {shown} s]"


def next_step(session: str, cell: Cell) -> str:
    """What the caller can do now; empty after a cell that ended by itself."""
    wait = call_text("sage_wait", session=session, cell=cell.number)
    stop = call_text("sage_interrupt", session=session)
    match cell.status:
        case CellStatus.RUNNING if cell.asks is not None:
            return _question(cell.asks, session, cell.number, stop)
        case CellStatus.RUNNING:
            return f"Call {wait} to go on waiting, or {stop} to stop it."
        case CellStatus.QUEUED:
            return f"It waits for earlier cells. Call {wait} to go on waiting, or {stop} to stop the running one."
        case CellStatus.INTERRUPTED if cell.stop_reason == "time_limit":
            return "Give sage_run a larger time_limit_s, or make the computation smaller."
        case CellStatus.DIED:
            return "Run again what is missing, then this cell if it should not end the same way."
        case _:
            return ""


def _question(asked: InputRequest, session: str, number: int, stop: str) -> str:
    """What a cell asks, and how it is answered."""
    call = call_text("sage_wait", session=session, cell=number, answer="…")
    what = "a password" if asked.is_password else "input"
    prompt = f" It asks: {json.dumps(asked.prompt, ensure_ascii=False)}" if asked.prompt else ""
    return (
        f'The cell waits for {what}.{prompt}\nAnswer with {call} (answer="\\n" for an empty line), or '
        f"stop it with {stop}."
    )


def shares(lengths: Sequence[int], budget: int) -> list[int]:
    """Divide ``budget`` characters fairly: who needs less than an equal share leaves the rest."""
    given = [0] * len(lengths)
    left, waiting = max(0, budget), sorted(range(len(lengths)), key=lambda i: lengths[i])
    while waiting:
        index = waiting.pop(0)
        given[index] = min(lengths[index], left // (len(waiting) + 1))
        left -= given[index]
    return given


def cut(part: Part, limit: int, session: str, number: int) -> str:
    """The part's text, its head and tail where it is longer than ``limit`` characters."""
    text = part.text
    if len(text) <= limit:
        return text
    tail = limit // 2
    head = limit - tail
    more = call_text(
        "sage_output", session=session, cell=number, stream=part.stream, offset=part.offset + head
    )
    if part.kind == "error":
        # What is shown of an exception is not the traceback's text; its offsets are others.
        more = call_text("sage_output", session=session, cell=number, stream="traceback")
    gap = f"\n… {len(text) - limit} characters left out; {more} shows them …\n"
    return text[:head] + gap + (text[-tail:] if tail else "")


async def answer(
    session: str, cell: Cell, *, max_chars: int, notes: Sequence[str] = ()
) -> CallToolResult:
    """The answer of ``sage_run`` and ``sage_wait``.

    Args:
        session: The session's name.
        cell: In any state; what it shows so far is told.
        max_chars: Characters of outputs, all parts together.
        notes: Sentences that stand before the outputs.
    """
    parts = outline(cell)
    texts = [part for part in parts if isinstance(part, Part)]
    limits = dict(zip(map(id, texts), shares([len(p.text) for p in texts], max_chars), strict=True))
    head = [status_line(session, cell), *notes, *cell.notices, *_gaps(cell)]
    blocks: list[ContentBlock] = [block("status", "\n".join(head))]
    hidden: list[ImagePart] = []
    originals = [part for part in parts if isinstance(part, OriginalPart)]
    for part in parts:
        if isinstance(part, Part):
            shown = cut(part, limits[id(part)], session, cell.number)
            lines = [part.label, shown, part.note]
            blocks.append(block(part.kind, "\n".join(line for line in lines if line)))
        elif isinstance(part, ImagePart):
            if part.number < MAX_INLINE_IMAGES:
                blocks.append(await image_block(part))
            else:
                hidden.append(part)
    links = [link_to_original(session, cell.number, part) for part in originals]
    links += [link_to_image(session, cell.number, part) for part in hidden]
    blocks.extend(links[:MAX_LINKS])
    blocks.extend(_tail(session, cell, len(hidden), originals))
    return CallToolResult(content=blocks, is_error=cell.status in _FAILED)


def block(kind: str, text: str) -> TextContent:
    """A text block that says what it is; the one output boundary for text."""
    return TextContent(type="text", text=clean(text), _meta={PART_KEY: kind})


async def image_block(image: ImagePart) -> TextContent | ImageContent:
    """The image fit for a client, or a sentence about why it cannot be shown."""
    try:
        picture = await prepare(image.data, image.mime_type)
    except BadImageError as error:
        return block("note", f"(An image that cannot be shown: {error}.)")
    return _image(picture)


def _image(picture: Picture) -> ImageContent:
    return ImageContent(
        type="image",
        data=picture.base64,
        mime_type=picture.mime_type,
        _meta={PART_KEY: "image", "org.sagebroker/original": picture.original},
    )


def _gaps(cell: Cell) -> list[str]:
    """What is missing in the outputs, told."""
    said = []
    if cell.output_lost:
        said.append("Some of the last output may be missing.")
    if cell.outputs.dropped_displays:
        said.append(
            f"{cell.outputs.dropped_displays} displays are not kept: there were too many or too large ones."
        )
    return said


def link_to_original(session: str, cell: int, part: OriginalPart) -> ResourceLink:
    """Where a display can be read in the form the kernel sent it."""
    return ResourceLink(
        type="resource_link",
        uri=display_uri(session, cell, part.display, part.mime_type),
        name=f"display {part.display}",
        description=f"As the kernel sent it: {part.mime_type}.",
        mime_type=part.mime_type,
        size=part.size_bytes,
        _meta={PART_KEY: "link"},
    )


def link_to_image(session: str, cell: int, part: ImagePart) -> ResourceLink:
    """Where an image can be read that is not in the answer."""
    return ResourceLink(
        type="resource_link",
        uri=image_uri(session, cell, part.number),
        name=f"image {part.number}",
        mime_type="image/png",
        _meta={PART_KEY: "link"},
    )


def _tail(
    session: str, cell: Cell, hidden_images: int, originals: Sequence[OriginalPart]
) -> list[ContentBlock]:
    def more(stream: str, **arguments: int) -> str:
        return call_text(
            "sage_output", session=session, cell=cell.number, stream=stream, **arguments
        )

    lines = []
    if hidden_images:
        call = more("images", offset=MAX_INLINE_IMAGES)
        lines.append(f"{hidden_images} more images: {call} shows them.")
    if any(part.mime_type in SOURCE_TYPES for part in originals):
        lines.append(f"{more('html')} has the HTML and SVG itself.")
    step = next_step(session, cell)
    if step:
        lines.append(step)
    return [block("next", "\n".join(lines))] if lines else []
