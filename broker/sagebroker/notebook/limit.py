"""`shrink`: keeps a notebook's cells within a size, and has them say what they lost by that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sagebroker.notebook.repeat import mark

if TYPE_CHECKING:
    from nbformat import NotebookNode

_TEXT: Final = "text/plain"

KEPT_CHARS: Final = 2000
"""Of a text that is cut: enough to see what it was."""

SPARED_BYTES: Final = 4000
"""What is no larger stays: a line has to stand in its place."""

_NOTE_BYTES: Final = 500
"""At most what a cell says more for a part that it lost."""

LEFT_OUT: Final = "was left out of this notebook"


@dataclass(frozen=True)
class _Part:
    """Something that can be left out of a cell."""

    size: int
    """Bytes that are won, at least."""
    drop: Callable[[], None]


def size_of(value: Any) -> int:
    """Bytes of a value as JSON text, as it stands in a notebook without spaces."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def shrink(
    cells: list[NotebookNode], limit_bytes: int, total_bytes: int
) -> tuple[list[NotebookNode], int]:
    """The cells within a size, changed in place, and at most how large they are then.

    What goes, the largest first: pictures and other rich forms of outputs; then the middle of long
    texts; then whole cells, the oldest first, but not the newest.

    Args:
        cells: In order.
        limit_bytes: Of all of them as JSON text.
        total_bytes: Their `size_of`, together.
    """
    for parts_of in (_rich_parts, _text_parts):
        if total_bytes <= limit_bytes:
            break
        parts = [part for cell in cells for part in parts_of(cell)]
        for part in sorted(parts, key=lambda part: part.size, reverse=True):
            if total_bytes <= limit_bytes:
                break
            part.drop()
            total_bytes -= part.size - _NOTE_BYTES
    if total_bytes <= limit_bytes:
        return cells, total_bytes
    sizes = [size_of(cell) for cell in cells]
    total_bytes, gone = sum(sizes), 0
    while total_bytes > limit_bytes and gone < len(cells) - 1:
        total_bytes -= sizes[gone]
        gone += 1
    return cells[gone:], total_bytes


def _rich_parts(cell: NotebookNode) -> Iterator[_Part]:
    for output in cell.outputs:
        for kind, value in output.get("data", {}).items():
            # Of a text, most likely base64, its length is enough: nobody reads megabytes to count them.
            size = len(value) if isinstance(value, str) else size_of(value)
            if kind != _TEXT and size > SPARED_BYTES:
                yield _Part(size, _dropping(cell, output, kind, size))


def _dropping(cell: NotebookNode, output: NotebookNode, kind: str, size: int) -> Callable[[], None]:
    def drop() -> None:
        del output.data[kind]
        output.data.setdefault(_TEXT, f"[{kind} of {size} bytes {LEFT_OUT}]")
        _note(cell, kind, size)

    return drop


def _text_parts(cell: NotebookNode) -> Iterator[_Part]:
    for output in cell.outputs:
        match output.output_type:
            case "stream":
                yield from _cutting(cell, output, "text", output.name)
            case "error":
                size = size_of(output.traceback)
                if size > SPARED_BYTES:
                    yield _Part(size, _without_traceback(cell, output, size))
                yield from _cutting(cell, output, "evalue", "evalue")
            case _:
                yield from _cutting(cell, output.data, _TEXT, _TEXT)
    yield from _cutting(cell, cell.metadata.sagebroker, "pager", "pager")


def _cutting(cell: NotebookNode, holder: dict[str, Any], key: str, kind: str) -> Iterator[_Part]:
    text = holder.get(key, "")
    size = size_of(text)
    if len(text) <= 2 * KEPT_CHARS or size <= SPARED_BYTES:
        return
    half = KEPT_CHARS // 2
    cut = f"{text[:half]}\n… [{len(text) - 2 * half} characters {LEFT_OUT}] …\n{text[len(text) - half :]}"

    def drop() -> None:
        holder[key] = cut
        _note(cell, kind, size)

    yield _Part(size - size_of(cut), drop)


def _without_traceback(cell: NotebookNode, output: NotebookNode, size: int) -> Callable[[], None]:
    def drop() -> None:
        output.traceback = []
        _note(cell, "traceback", size)

    return drop


def _note(cell: NotebookNode, kind: str, size: int) -> None:
    cell.metadata.sagebroker.setdefault("left_out", []).append({"kind": kind, "bytes": size})
    mark(cell, "differs", f"{kind} of its output {LEFT_OUT}")
