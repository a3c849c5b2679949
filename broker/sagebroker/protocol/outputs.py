"""`OutputFold`: what a cell shows, folded from iopub messages into bounded memory.

Nothing a kernel sends is trusted to have the documented types: what does not is dropped or made
into text here, so that everything behind this module may rely on them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sagebroker.model import CellFailure, RichOutput
from sagebroker.protocol.text import BoundedText, clean

if TYPE_CHECKING:
    from sagebroker.protocol.messages import Message

OutputKind = Literal["stdout", "stderr", "display"]

MAX_MIME_TYPES: Final = 32
"""MIME types of one bundle; IPython's richest has about ten."""
MAX_MIME_CHARS: Final = 128
"""Length of a MIME type's name."""
MAX_METADATA_CHARS: Final = 16_384
"""Metadata of one display as JSON text; images carry a width and a height."""
MAX_JSON_DEPTH: Final = 64
"""Nesting kept of a JSON value; Vega and GeoJSON stay below 20."""
MAX_SEGMENTS: Final = 1000
"""Changes between kinds of output whose order is kept; later text joins the last segment."""
MAX_TRACEBACK_FRAMES: Final = 400
"""Entries kept of a traceback, half from each end; endless recursion has thousands."""
MAX_TRACEBACK_CHARS: Final = 32_768
"""Length of one traceback entry; Sage's longest, a frame inside a long file, has 4,000."""
MAX_NAME_CHARS: Final = 1_000
"""Length of an exception's class name or of a display id."""
MAX_VALUE_CHARS: Final = 65_536
"""Length of an exception's text."""
LEFT_OUT: Final = "org.sagebroker/left_out"
"""In a display's metadata: the sizes in bytes of the types that were too large to be kept."""


@dataclass(slots=True)
class Segment:
    """A run of one kind of output, in the order in which it came."""

    kind: OutputKind
    chars: int = 0
    """Characters of the stream in this run, kept or not."""
    display: RichOutput | None = None


class OutputFold:
    """The outputs of one cell. `add` takes messages; the rest reads what they came to.

    Args:
        stream_bytes: UTF-8 bytes kept of stdout, and again of stderr.
        display_bytes: Size kept of all displays together, as JSON text.
        max_displays: Displays kept. A result displaces the last other display when the place is
            used up, because the value of a cell matters more than what it drew on the way.
    """

    def __init__(
        self,
        stream_bytes: int = 2 * 2**20,
        display_bytes: int = 24 * 2**20,
        max_displays: int = 200,
    ) -> None:
        self.stdout = BoundedText(stream_bytes)
        self.stderr = BoundedText(stream_bytes)
        self.failure: CellFailure | None = None
        """The last exception the kernel reported; a handled one that was shown counts, too."""
        self.dropped_displays = 0
        self._display_bytes = display_bytes
        self._max_displays = max_displays
        self._kept: list[tuple[RichOutput, int]] = []
        self._used_bytes = 0
        self._segments: list[Segment] = []
        self._clear_at_next = False

    @property
    def kept_bytes(self) -> int:
        """Bytes that the outputs take, as UTF-8 and JSON text."""
        return self._used_bytes + self.stdout.kept_bytes + self.stderr.kept_bytes

    @property
    def displays(self) -> list[RichOutput]:
        """The displays kept, in order."""
        return [output for output, _ in self._kept]

    @property
    def segments(self) -> list[Segment]:
        """Streams and displays in the order in which they came, at most `MAX_SEGMENTS`."""
        return self._segments

    @property
    def order(self) -> list[OutputKind]:
        """The kinds of `segments`."""
        return [segment.kind for segment in self._segments]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is shown; a failure is not an output."""
        return not self._segments and not self.dropped_displays

    def add(self, message: Message) -> bool:
        """Take one iopub message; whether it was an output that can be used."""
        content = message.content
        match message.msg_type:
            case "stream":
                return self._add_stream(content)
            case "display_data" | "execute_result":
                self._clear_if_due()
                return self._add_display(content, is_result=message.msg_type == "execute_result")
            case "update_display_data":
                return self._update_display(content)
            case "clear_output":
                self._clear_at_next = content.get("wait") is True
                if not self._clear_at_next:
                    self._clear()
                return True
            case "error":
                self._clear_if_due()
                self.failure = failure_of(content)
                return True
            case _:
                return False

    def _add_stream(self, content: dict[str, Any]) -> bool:
        name, text = content.get("name"), content.get("text")
        if not isinstance(text, str) or name not in ("stdout", "stderr"):
            return False
        self._clear_if_due()
        if not text:
            return True
        kind: OutputKind = "stdout" if name == "stdout" else "stderr"
        stream = self.stdout if kind == "stdout" else self.stderr
        before = stream.total
        stream.append(text)
        last = self._segments[-1] if self._segments else None
        if last is not None and last.kind == kind:
            last.chars += stream.total - before
        elif len(self._segments) < MAX_SEGMENTS:
            self._segments.append(Segment(kind, stream.total - before))
        return True

    def _add_display(self, content: dict[str, Any], *, is_result: bool) -> bool:
        data = mime_bundle(content.get("data"))
        if not data:
            return False
        output = RichOutput(
            data=data,
            metadata=_metadata(content.get("metadata")),
            is_result=is_result,
            display_id=_display_id(content),
        )
        size = self._leave_out(output)
        if is_result:
            self._make_room(size)
        if not self._fits(size):
            self.dropped_displays += 1
            return True
        self._kept.append((output, size))
        self._used_bytes += size
        if len(self._segments) < MAX_SEGMENTS:
            self._segments.append(Segment("display", display=output))
        return True

    def _leave_out(self, output: RichOutput) -> int:
        """Take the largest types out of a display that is too large, and note them; its size."""
        sizes = {mime: _size({mime: value}) for mime, value in output.data.items()}
        size = sum(sizes.values())
        left_out = {}
        for mime in sorted(sizes, key=lambda mime: -sizes[mime]):
            if size <= self._display_bytes or len(output.data) == 1:
                break
            del output.data[mime]
            left_out[mime] = sizes[mime]
            size -= sizes[mime]
        if left_out:
            output.metadata = {**output.metadata, LEFT_OUT: left_out}
        return size

    def _update_display(self, content: dict[str, Any]) -> bool:
        data = mime_bundle(content.get("data"))
        display_id = _display_id(content)
        if not data or display_id is None:
            return False
        new = RichOutput(data=data, metadata=_metadata(content.get("metadata")))
        size = self._leave_out(new)
        for index, (output, old_size) in enumerate(self._kept):
            if output.display_id != display_id:
                continue
            if self._used_bytes - old_size + size > self._display_bytes:
                self.dropped_displays += 1
                continue
            output.data, output.metadata = new.data, new.metadata
            self._kept[index] = (output, size)
            self._used_bytes += size - old_size
        return True

    def _fits(self, size: int) -> bool:
        return (
            len(self._kept) < self._max_displays and self._used_bytes + size <= self._display_bytes
        )

    def _make_room(self, size: int) -> None:
        if size > self._display_bytes:
            return
        for index in range(len(self._kept) - 1, -1, -1):
            if self._fits(size):
                return
            output, old_size = self._kept[index]
            if output.is_result:
                continue
            del self._kept[index]
            self._used_bytes -= old_size
            self.dropped_displays += 1
            self._segments = [s for s in self._segments if s.display is not output]

    def _clear_if_due(self) -> None:
        if self._clear_at_next:
            self._clear_at_next = False
            self._clear()

    def _clear(self) -> None:
        self.stdout.clear()
        self.stderr.clear()
        self.dropped_displays = 0
        self._kept.clear()
        self._used_bytes = 0
        self._segments = []


def failure_of(content: dict[str, Any]) -> CellFailure:
    """The exception in an ``error`` message or in an ``execute_reply`` that carries one."""
    raw = content.get("traceback")
    frames = [item for item in raw if isinstance(item, str)] if isinstance(raw, list) else []
    if len(frames) > MAX_TRACEBACK_FRAMES:
        half = MAX_TRACEBACK_FRAMES // 2
        frames = frames[:half] + frames[-half:]
    return CellFailure(
        ename=_bounded(content.get("ename"), MAX_NAME_CHARS) or "Error",
        evalue=_bounded(content.get("evalue"), MAX_VALUE_CHARS),
        traceback=tuple(_bounded(frame, MAX_TRACEBACK_CHARS) for frame in frames),
    )


def mime_bundle(raw: object) -> dict[str, Any]:
    """The usable entries of a MIME bundle.

    Text types have ``str`` values (lists of lines are joined); JSON types (``…json``) keep their
    JSON value, cut at `MAX_JSON_DEPTH`; any other value becomes its JSON text.
    """
    if not isinstance(raw, dict):
        return {}
    bundle: dict[str, Any] = {}
    for mime, value in raw.items():
        if len(bundle) == MAX_MIME_TYPES:
            break
        if not isinstance(mime, str) or len(mime) > MAX_MIME_CHARS or value is None:
            continue
        bundle[clean(mime)] = _mime_value(mime, value)
    return bundle


def _mime_value(mime: str, value: object) -> Any:
    if isinstance(value, str):
        return clean(value)
    if mime.endswith("json"):
        return json_value(value)
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return clean("".join(value))
    return json.dumps(json_value(value), ensure_ascii=False)


def json_value(value: object, depth: int = 0) -> Any:
    """A JSON value that every encoder takes: clean text, finite numbers, bounded depth."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if depth >= MAX_JSON_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {clean(str(key)): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [json_value(item, depth + 1) for item in value]
    return clean(str(value))


def _metadata(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict) or not raw:
        return {}
    metadata = json_value(raw)
    return metadata if len(json.dumps(metadata)) <= MAX_METADATA_CHARS else {}


def _display_id(content: dict[str, Any]) -> str | None:
    transient = content.get("transient")
    value = transient.get("display_id") if isinstance(transient, dict) else None
    return clean(value) if isinstance(value, str) and len(value) <= MAX_NAME_CHARS else None


def _size(data: dict[str, Any]) -> int:
    """Bytes the values take; a text counts its UTF-8 bytes, a JSON value its JSON text."""
    return sum(
        len(value.encode("utf-8")) if isinstance(value, str) else len(json.dumps(value))
        for value in data.values()
    )


def _bounded(value: object, limit: int) -> str:
    if not isinstance(value, str):
        return ""
    if len(value) > limit:
        half = limit // 2
        value = f"{value[:half]} … [{len(value) - 2 * half} characters omitted] … {value[-half:]}"
    return clean(value)
