"""What a cell has to show, as parts in order: the decision, without MCP and without images' bytes.

`outline` turns a cell into parts; `streams` gives the texts that ``sage_output`` pages through.
Both use the same texts, so that an offset named in one is right in the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from sagebroker.model import CellStatus, RichOutput
from sagebroker.protocol.text import clean, strip_ansi
from sagebroker.server import tracebacks
from sagebroker.server.images import IMAGE_TYPES

if TYPE_CHECKING:
    from sagebroker.protocol.text import BoundedText
    from sagebroker.session.cell import Cell

Stream = Literal["stdout", "stderr", "result", "traceback"]
PartKind = Literal["stdout", "stderr", "result", "display", "help", "error"]

_THREE_D_MARKS: Final = ("three.js", "three.min.js", "threejs", "jsmol", "x3d")
"""What the HTML of Sage's 3D viewers contains."""
_THREE_D_SCAN_CHARS: Final = 2_000_000
"""Characters of HTML searched for a mark; the scene's data can have many millions."""


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
    """Base64."""
    mime_type: str


def outline(cell: Cell) -> list[Part | ImagePart]:
    """Everything the cell shows so far: streams, displays in order, help, the exception."""
    parts: list[Part | ImagePart] = []
    if text := kept_text(cell.outputs.stdout):
        parts.append(Part(kind="stdout", text=text, label="stdout:"))
    if text := kept_text(cell.outputs.stderr):
        parts.append(Part(kind="stderr", text=text, label="stderr:"))
    offset = 0
    for output in cell.outputs.displays:
        text = display_text(output)
        if text:
            kind: PartKind = "result" if output.is_result else "display"
            parts.append(Part(kind=kind, text=text, offset=offset))
            offset += len(text) + 1
        image = image_of(output)
        if image is not None:
            parts.append(image)
    if cell.payload_text:
        parts.append(Part(kind="help", text=help_text(cell), offset=offset))
    if cell.failure is not None:
        parts.append(error_part(cell))
    return parts


def images(cell: Cell) -> list[ImagePart]:
    """The cell's images in order."""
    found = (image_of(output) for output in cell.outputs.displays)
    return [image for image in found if image is not None]


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
            texts = [display_text(output) for output in cell.outputs.displays]
            return "\n".join([t for t in [*texts, help_text(cell)] if t])


def all_text(cell: Cell) -> str:
    """Every stream, one after the other, each under its name."""
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


def display_text(output: RichOutput) -> str:
    """The text of one display: its plain text exactly, and LaTeX where that says more."""
    data = output.data
    plain = _text(data.get("text/plain"))
    lines = [plain] if plain else []
    latex = _text(data.get("text/latex")).strip()
    if latex and latex.strip("$ ") != plain.strip():
        lines.append(f"LaTeX: {latex}")
    html = data.get("text/html")
    if isinstance(html, str) and html:
        if is_three_d(html):
            lines.append(
                f"(A 3D plot: {len(html)} characters of interactive HTML, which cannot be shown here. "
                "show(plot, viewer='tachyon') draws it as an image.)"
            )
        elif not lines and image_of(output) is None:
            lines.append(f"(HTML of {len(html)} characters, not shown.)")
    if not lines and image_of(output) is None:
        kinds = ", ".join(sorted(data))
        lines.append(f"(Output of type {kinds}, not shown.)")
    return "\n".join(lines)


def is_three_d(html: str) -> bool:
    """Whether HTML is one of Sage's interactive 3D plots."""
    start = html[:_THREE_D_SCAN_CHARS].lower()
    return any(mark in start for mark in _THREE_D_MARKS) and "<iframe" in start


def image_of(output: RichOutput) -> ImagePart | None:
    """The image of a display, in the format that needs least work."""
    for mime_type in IMAGE_TYPES:
        data = output.data.get(mime_type)
        if isinstance(data, str) and data:
            return ImagePart(data=data, mime_type=mime_type)
    return None


def error_part(cell: Cell) -> Part:
    """The exception: title, the user's frames, what was left out, and a hint."""
    failure = cell.failure
    assert failure is not None
    trimmed = tracebacks.trim(failure)
    is_stop = cell.status is CellStatus.INTERRUPTED and failure.ename == "KeyboardInterrupt"
    text = "\n".join(line for line in (trimmed.title, trimmed.frames) if line)
    notes = [] if is_stop else [tracebacks.hint(failure)]
    if trimmed.omitted and not is_stop:
        notes.insert(0, f"({trimmed.omitted} frames of library code left out.)")
    return Part(kind="error", text=text, note="\n".join(note for note in notes if note))


def _text(value: object) -> str:
    return strip_ansi(clean(value)) if isinstance(value, str) else ""
