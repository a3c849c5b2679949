"""What a cell has to show, as parts in order: the decision, without MCP and without images' bytes.

`outline` turns a cell into parts; `streams` gives the texts that ``sage_output`` pages through.
Both use the same texts, so that an offset named in one is right in the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from sagebroker.model import CellStatus
from sagebroker.protocol.text import clean, strip_ansi
from sagebroker.server import tracebacks
from sagebroker.server.displays import SOURCE_TYPES, display_texts, image_type, originals, sources

if TYPE_CHECKING:
    from sagebroker.model import RichOutput
    from sagebroker.protocol.text import BoundedText
    from sagebroker.session.cell import Cell

Stream = Literal["stdout", "stderr", "result", "traceback", "html"]
PartKind = Literal["stdout", "stderr", "result", "display", "help", "error"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of text in an answer."""

    kind: PartKind
    text: str
    label: str = ""
    """A line before the text, such as ``stdout:``."""
    note: str = ""
    """A line after the text, never cut."""
    offset: int = 0
    """Where the text begins in its stream."""

    @property
    def stream(self) -> Stream:
        """The stream of ``sage_output`` that has the whole text."""
        match self.kind:
            case "stdout" | "stderr":
                return self.kind
            case "error":
                return "traceback"
            case _:
                return "result"


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """An image in an answer, not yet decoded."""

    data: str
    """Base64; of an SVG its text."""
    mime_type: str
    number: int = 0
    """Its place among the cell's images."""


@dataclass(frozen=True, kw_only=True)
class OriginalPart:
    """Something of which an answer shows less: an image of a page, the first picture of several."""

    mime_type: str
    display: int
    """The display's place among the cell's."""
    size_bytes: int


def outline(cell: Cell) -> list[Part | ImagePart | OriginalPart]:
    """Everything the cell shows so far: streams, displays in order, help, the exception."""
    parts: list[Part | ImagePart | OriginalPart] = []
    if text := kept_text(cell.outputs.stdout):
        parts.append(Part(kind="stdout", text=text, label="stdout:"))
    if text := kept_text(cell.outputs.stderr):
        parts.append(Part(kind="stderr", text=text, label="stderr:"))
    offset = number = 0
    displays = cell.outputs.displays
    for place, (output, text) in enumerate(zip(displays, display_texts(displays), strict=True)):
        if text:
            kind: PartKind = "result" if output.is_result else "display"
            parts.append(Part(kind=kind, text=text, offset=offset))
            offset += len(text) + 1
        image = image_of(output, number)
        if image is not None:
            parts.append(image)
            number += 1
        parts += [
            OriginalPart(mime_type=kind, display=place, size_bytes=size_of(output, kind))
            for kind in originals(output)
        ]
    if cell.payload_text:
        parts.append(Part(kind="help", text=help_text(cell), offset=offset))
    if cell.failure is not None:
        parts.append(error_part(cell))
    return parts


def images(cell: Cell) -> list[ImagePart]:
    """The cell's images in order."""
    found = [image_of(output) for output in cell.outputs.displays]
    shown = [image for image in found if image is not None]
    return [replace(image, number=number) for number, image in enumerate(shown)]


def stream_text(cell: Cell, stream: Stream) -> str:
    """The whole kept text of one stream of the cell."""
    match stream:
        case "stdout":
            return kept_text(cell.outputs.stdout)
        case "stderr":
            return kept_text(cell.outputs.stderr)
        case "traceback":
            return tracebacks.full_text(cell.failure) if cell.failure else ""
        case "result":
            texts = display_texts(cell.outputs.displays)
            return "\n".join([t for t in [*texts, help_text(cell)] if t])
        case "html":
            found = [
                f"display {place}, {kind}:\n{text}"
                for place, output in enumerate(cell.outputs.displays)
                for kind, text in sources(output)
            ]
            return "\n".join(found)


def all_text(cell: Cell) -> str:
    """Every stream but the sources of pages, one after the other, each under its name."""
    labelled: list[tuple[Stream, str]] = [
        ("stdout", "stdout:\n"),
        ("stderr", "stderr:\n"),
        ("result", "result:\n"),
        ("traceback", "traceback:\n"),
    ]
    texts = [(label, stream_text(cell, stream)) for stream, label in labelled]
    return "\n".join(label + text.rstrip("\n") for label, text in texts if text)


def kept_text(stream: BoundedText) -> str:
    """What is kept of a stream, without terminal colours; a line stands for what is not."""
    return strip_ansi(stream.text())


def help_text(cell: Cell) -> str:
    """What the pager would show."""
    return strip_ansi(clean(cell.payload_text)).strip("\n")


def image_of(output: RichOutput, number: int = 0) -> ImagePart | None:
    """The image of a display, if it has one."""
    kind = image_type(output)
    if kind is None:
        return None
    return ImagePart(data=output.data[kind], mime_type=kind, number=number)


def size_of(output: RichOutput, kind: str) -> int:
    """Bytes of a type of a display as it was before base64."""
    content = str(output.data[kind])
    return len(content) if kind in SOURCE_TYPES else len(content) * 3 // 4


def error_part(cell: Cell) -> Part:
    """The exception: title, the user's frames, what was left out, and a hint."""
    failure = cell.failure
    assert failure is not None
    trimmed = tracebacks.trim(failure)
    is_stop = cell.status is CellStatus.INTERRUPTED and failure.ename == "KeyboardInterrupt"
    text = "\n".join(line for line in (trimmed.title, trimmed.frames) if line)
    notes = [] if is_stop else [tracebacks.hint(failure, cell.code)]
    if trimmed.omitted and not is_stop:
        notes.insert(0, f"({trimmed.omitted} frames of library code left out.)")
    return Part(kind="error", text=text, note="\n".join(note for note in notes if note))
