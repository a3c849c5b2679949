"""What the JSON API takes and gives: shapes, with what a reader of the OpenAPI document is told."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sagebroker.protocol.text import clean, strip_ansi
from sagebroker.server.limits import MAX_CODE_CHARS, MAX_REQUEST_CHARS, MAX_WAIT_S
from sagebroker.server.session_tools import SessionView
from sagebroker.session.asking import MAX_ANSWER_CHARS
from sagebroker.session.names import NAME_PATTERN

if TYPE_CHECKING:
    from sagebroker.session.cell import Cell

MAX_SAFE_INTEGER = 2**53 - 1
"""Greatest integer that JSON readers of every language keep (RFC 8259, section 6)."""

Name = Annotated[
    str,
    Path(
        description="Name of a session.",
        pattern=f"^{NAME_PATTERN}$",
        examples=["default"],
    ),
]
Number = Annotated[int, Path(description="Number of a cell.", ge=1, le=MAX_SAFE_INTEGER)]
Remote = Annotated[
    bool,
    Query(description="For a client on another machine, by TCP; `jupyter.tcp_host` allows it."),
]
Wait = Annotated[
    float,
    Query(description="Seconds to wait for the cell's end.", ge=0, le=MAX_WAIT_S),
]


def _as_integer(value: object) -> object:
    """JSON knows no difference between 7 and 7.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OpenBody(_Body):
    """How a session is to live."""

    keep: bool = Field(default=False, description="Its kernel runs on when the server ends.")
    hibernate: Literal["auto", "never", "always"] = Field(
        default="auto", description="When idle: sleep if nothing is lost by it."
    )


class RestartBody(_Body):
    """What a new kernel begins with."""

    restore: Annotated[
        bool
        | Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)]
        | Annotated[str, Field(max_length=100)],
        BeforeValidator(_as_integer),
    ] = Field(
        default=False,
        description="true for the newest checkpoint, or the number or label of another one.",
    )


class CellBody(_Body):
    """A cell to run."""

    code: str = Field(max_length=MAX_CODE_CHARS, description="Sage code.", examples=["2 + 2"])
    wait_s: float = Field(
        default=0, ge=0, le=MAX_WAIT_S, description="Seconds to wait for its end."
    )
    time_limit_s: float | None = Field(
        default=None, gt=0, le=1e9, description="Seconds after which it is interrupted."
    )
    request_id: str = Field(
        default="",
        max_length=MAX_REQUEST_CHARS,
        description="Your own name for this request, to repeat it safely.",
    )


class InputBody(_Body):
    """An answer to what a cell asks."""

    text: str = Field(max_length=MAX_ANSWER_CHARS, description="What `input()` is to return.")


class SessionAnswer(SessionView):
    """A session, and what is to be said of it."""

    notices: list[str] = Field(
        default_factory=list, description="What happened unasked since the last call."
    )


class Sessions(BaseModel):
    """Every session of a user."""

    sessions: list[SessionView]


class Done(BaseModel):
    """What was done, in words."""

    message: str
    notices: list[str] = Field(default_factory=list)


class Failure(BaseModel):
    """The exception of a cell."""

    name: str
    message: str
    traceback: list[str]


class Output(BaseModel):
    """Something that a cell displayed, or its value."""

    result: bool = Field(description="Whether it is the cell's value.")
    data: dict[str, Any] = Field(description="MIME type to content; images in base64.")


class CellView(BaseModel):
    """A cell and what came of it so far."""

    session: str
    number: int
    status: str = Field(examples=["ok"])
    author: str
    elapsed_s: float
    code: str
    stdout: str
    stderr: str
    omitted: int = Field(description="Characters of the streams that were not kept.")
    outputs: list[Output]
    help: str = Field(description="What a pager would show (`factor?`).")
    error: Failure | None
    asks: str | None = Field(description="What it asks, while its status is `awaiting_input`.")
    notices: list[str]


class CellLine(BaseModel):
    """A cell in a list."""

    number: int
    status: str
    author: str
    elapsed_s: float
    code: str


class Cells(BaseModel):
    """The newest cells of a session."""

    session: str
    cells: list[CellLine]


class Problem(BaseModel):
    """Why something was not done."""

    error: str = Field(description="A stable word.", examples=["session_not_found"])
    message: str = Field(description="What happened and what to do next.")
    retry_after_s: float | None = Field(
        default=None, description="Seconds after which trying again is sensible."
    )


def cell_view(session: str, cell: Cell) -> CellView:
    """A cell whole, as far as it is kept; its text harmless for JSON in every language."""
    failure = cell.failure
    return CellView(
        session=session,
        number=cell.number,
        status=cell.word,
        author=cell.author,
        elapsed_s=round(cell.elapsed_s, 4),
        code=clean(cell.code),
        stdout=clean(cell.outputs.stdout.kept),
        stderr=clean(cell.outputs.stderr.kept),
        omitted=cell.outputs.stdout.omitted + cell.outputs.stderr.omitted,
        outputs=[
            Output(result=output.is_result, data=json_safe(output.data))
            for output in cell.outputs.displays
        ],
        help=strip_ansi(clean(cell.payload_text)),
        error=None
        if failure is None
        else Failure(
            name=clean(failure.ename),
            message=clean(failure.evalue),
            traceback=[strip_ansi(clean(line)) for line in failure.traceback],
        ),
        asks=None if cell.asks is None else cell.asks.prompt,
        notices=cell.notices,
    )


def cell_line(cell: Cell) -> CellLine:
    """A cell without its outputs."""
    return CellLine(
        number=cell.number,
        status=cell.word,
        author=cell.author,
        elapsed_s=round(cell.elapsed_s, 4),
        code=clean(cell.code),
    )


def json_safe(value: Any) -> Any:
    """A kernel's JSON as JSON that every reader takes: no lone surrogates, no NaN, no huge integers."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): json_safe(one) for key, one in value.items()}
    if isinstance(value, list):
        return [json_safe(one) for one in value]
    is_unsafe = (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER
    )
    return str(value) if is_unsafe else value
