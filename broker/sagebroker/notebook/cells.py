"""`notebook_cell`: a cell of the transcript as a notebook's."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from nbformat.v4 import new_code_cell, new_output

from sagebroker.model import wall_clock
from sagebroker.protocol.outputs import json_value
from sagebroker.protocol.text import clean

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from sagebroker.model import CellFailure, RichOutput
    from sagebroker.protocol.outputs import OutputFold
    from sagebroker.protocol.text import BoundedText
    from sagebroker.session.cell import Cell
    from sagebroker.store.records import CellRow

_JSON_TYPE: Final = re.compile(r"^application/(.*\+)?json$")
"""MIME types of which the notebook format takes any JSON value; of all others it takes text."""

_CUT: Final = re.compile(r"^… \[\d+ characters omitted\] …$", re.MULTILINE)
"""The line that `BoundedText.text` has in place of what is not kept."""


def notebook_cell(session: str, cell: Cell, row: CellRow | None = None) -> NotebookNode:
    """A code cell with everything that the transcript knows of ``cell``.

    Args:
        session: The session's id: with the cell's number it makes an id that stays the same.
        cell: As it is now; one that runs is taken with what it has shown so far.
        row: What is stored of it, whose times are the same in every export.
    """
    made: NotebookNode = new_code_cell(
        source=clean(cell.code),
        id=f"{session}-{cell.number}",
        execution_count=cell.execution_count,
        metadata={"sagebroker": _about(cell, row)},
    )
    made.outputs = notebook_outputs(cell)
    return made


def notebook_outputs(cell: Cell) -> list[NotebookNode]:
    """Streams and displays in the order in which they came, as far as it is known; then the exception."""
    outputs = cell.outputs
    streams = {"stdout": _Stream(outputs.stdout), "stderr": _Stream(outputs.stderr)}
    made: list[NotebookNode] = []
    placed: set[int] = set()
    for segment in outputs.segments:
        if segment.display is not None:
            placed.add(id(segment.display))
            made.append(_display(segment.display, cell.execution_count))
        else:
            _add_text(made, segment.kind, streams[segment.kind].take(segment.chars))
    # What came after so many changes between the kinds that their order was no longer kept.
    for name, stream in streams.items():
        _add_text(made, name, stream.take(None))
    made += [
        _display(display, cell.execution_count)
        for display in outputs.displays
        if id(display) not in placed
    ]
    failure = cell.failure or outputs.failure
    if failure is not None:
        made.append(_error(failure))
    return made


class _Stream:
    """The kept text of a stream, given out piece by piece with a line in place of what was not kept."""

    def __init__(self, kept: BoundedText) -> None:
        self._head, self._tail = kept.head, kept.tail
        self._omitted, self._total = kept.omitted, kept.total
        self._at = 0

    def take(self, chars: int | None) -> str:
        """The next ``chars`` characters of what was printed; None for the rest."""
        begin = self._at
        end = self._at = self._total if chars is None else min(begin + chars, self._total)
        gap = len(self._head)
        after = gap + self._omitted
        text = self._head[begin:end]
        if self._omitted and begin <= gap < end:
            text += f"\n… [{self._omitted} characters omitted] …\n"
        if end > after:
            text += self._tail[max(0, begin - after) : end - after]
        return text


def _add_text(made: list[NotebookNode], name: str, text: str) -> None:
    if text:
        made.append(new_output("stream", name=name, text=clean(text)))


def _display(display: RichOutput, count: int | None) -> NotebookNode:
    data = {clean(kind): _mime_value(kind, value) for kind, value in display.data.items()}
    metadata = json_value(display.metadata)
    made: NotebookNode = new_output("display_data", data=data, metadata=metadata)
    if display.is_result:
        made = new_output("execute_result", data=data, metadata=metadata, execution_count=count)
    return made


def _mime_value(kind: str, value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    value = json_value(value)
    return value if _JSON_TYPE.match(kind) else json.dumps(value, ensure_ascii=False)


def _error(failure: CellFailure) -> NotebookNode:
    made: NotebookNode = new_output(
        "error",
        ename=clean(failure.ename),
        evalue=clean(failure.evalue),
        traceback=[clean(line) for line in failure.traceback],
    )
    return made


def _about(cell: Cell, row: CellRow | None) -> dict[str, Any]:
    """What the notebook format has no place for."""
    about: dict[str, Any] = {
        "number": cell.number,
        "author": clean(cell.author),
        "status": cell.word,
        "started": _stamp(cell.started_at, None if row is None else row.started_at),
        "ended": _stamp(cell.ended_at, None if row is None else row.ended_at),
    }
    if cell.stop_reason:
        about["stop_reason"] = clean(cell.stop_reason)
    if cell.notices:
        about["notices"] = [clean(notice) for notice in cell.notices]
    if cell.payload_text:
        about["pager"] = clean(cell.payload_text)
    if cell.exit is not None or (cell.ladder is not None and not cell.ladder.variables_kept):
        about["variables_kept"] = False
    if cell.reply_lost or cell.output_lost or _is_cut(cell.outputs):
        about["is_incomplete"] = True
    return about


def _is_cut(outputs: OutputFold) -> bool:
    if outputs.dropped_displays:
        return True
    # Of a stream that was stored cut only its text tells that it is.
    return any(s.omitted or _CUT.search(s.text()) for s in (outputs.stdout, outputs.stderr))


def _stamp(monotonic_s: float | None, stored_s: float | None) -> str | None:
    """ISO 8601 in UTC, to the millisecond; of the wall-clock second that is stored, where one is."""
    at = wall_clock(monotonic_s) if stored_s is None else stored_s
    if monotonic_s is None or at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
