"""The tools about cells: run, wait, read, interrupt."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import Field

from sagebroker.errors import SessionInUseError
from sagebroker.model import CellStatus
from sagebroker.server import limits
from sagebroker.server.arguments import (
    CellNumber,
    Code,
    MaxChars,
    RequestId,
    SessionName,
    TimeLimit,
    WaitSeconds,
)
from sagebroker.server.asking import asked_before, take_answer, wait_and_ask
from sagebroker.server.callers import broker_of
from sagebroker.server.failures import answering
from sagebroker.server.news import news
from sagebroker.server.pages import OutputStream, page
from sagebroker.server.product import DEFAULT_SESSION
from sagebroker.server.render import CHARS, answer, block, call_text, status_line
from sagebroker.server.tasks import make_task, quick_wait_s
from sagebroker.server.waiting import awake, with_progress
from sagebroker.session.asking import unwanted
from sagebroker.session.cell import Cell
from sagebroker.session.session import Session
from sagebroker.users import Users

WAIT_S: Final = 45.0
"""Default wait of a call: below the 60 s after which several clients give up."""
TIME_LIMIT_S: Final = 600.0
"""Default time limit of a cell."""

_LARGE_RESULT = {"anthropic/maxResultSizeChars": limits.MAX_CHARS}

_RUN = """\
Run Sage code in a session and return its output. State persists between calls, as in a notebook.

The value of the last line is the result; plots come back as images. Sage syntax: 2^10, 1/3 exact, \
R.<x,y> = QQ[], var('t'), %time, factor? for help.
Example: code="K.<a> = NumberField(x^3 - 2)\\nK.class_number()"

Session "default" opens by itself; open others with sage_open. A session that sleeps wakes up. If the cell needs longer than wait_s \
seconds the answer says "running" and the cell goes on: call sage_wait. After time_limit_s it is \
interrupted. Cancelling the call interrupts the cell, too; variables are kept where possible, and the \
answer says so when not. With a request_id a call that is repeated does not run the code again."""

_WAIT = """\
Go on waiting for a cell that was "running" or "queued"; answers like sage_run. Also shows an ended cell \
again. A cell that is "awaiting_input" gets answer. Cancelling this call interrupts the cell; wait_s=0 only looks.
Example: session="default", cell=7"""

_OUTPUT = """\
Read a cell's whole output by pages, or search it. Use it when an answer says that output was left out.

stream: all, stdout, stderr, result, traceback (the full one), html (HTML and SVG as sent), or images (offset counts them). \
offset and limit count characters; the answer names the next call. With pattern (plain text, case ignored) \
only matching lines are shown, each with its offset.
Example: session="default", cell=7, stream="stdout", pattern="error" """

_INTERRUPT = """\
Stop the running cell of a session, like Ctrl-C. Usually within a second, variables kept. Code that \
ignores the interrupt for 4 seconds makes the kernel be replaced: the answer says whether variables were \
kept or lost. Queued cells run next."""


def add_cell_tools(server: MCPServer[Users], *, time_limit_s: float = TIME_LIMIT_S) -> None:
    """Register the tools.

    Args:
        server: Where to.
        time_limit_s: Default time limit of a cell, as configured.
    """
    changes = ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False
    )
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    # Cancelling a wait stops the cell: not read-only.
    waits = ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False
    )
    server.add_tool(
        _make_sage_run(time_limit_s),
        title="Run Sage code",
        description=_RUN,
        annotations=changes,
        meta=_LARGE_RESULT,
        structured_output=False,
    )
    server.add_tool(
        sage_wait,
        title="Wait for a cell",
        description=_WAIT,
        annotations=waits,
        meta=_LARGE_RESULT,
        structured_output=False,
    )
    server.add_tool(
        sage_output,
        title="Read a cell's output",
        description=_OUTPUT.rstrip(),
        annotations=reads,
        meta=_LARGE_RESULT,
        structured_output=False,
    )
    server.add_tool(
        sage_interrupt,
        title="Interrupt the running cell",
        description=_INTERRUPT,
        annotations=waits,
        structured_output=False,
    )


def _make_sage_run(
    default_limit_s: float,
) -> Callable[..., Awaitable[CallToolResult | InputRequiredResult]]:
    """``sage_run`` with the configured time limit as its default."""

    async def sage_run(
        ctx: Context[Users],
        code: Code,
        session: SessionName = DEFAULT_SESSION,
        wait_s: WaitSeconds = WAIT_S,
        time_limit_s: TimeLimit = default_limit_s,
        max_chars: MaxChars = CHARS,
        request_id: RequestId = "",
    ) -> CallToolResult | InputRequiredResult:
        with answering("sage_run"):
            broker = await broker_of(ctx)
            code = limits.code_text(code)
            request_id = limits.request_name(request_id)
            wait_s, wait_note = limits.wait_limit(wait_s)
            max_chars, chars_note = limits.char_limit("max_chars", max_chars)
            most_s = broker.config.session.max_time_limit_s
            time_limit_s, time_note = limits.time_limit(time_limit_s, most_s)
            began = anyio.current_time()
            found = await _session_to_run_in(ctx, session)
            asked = asked_before(ctx, found)
            cell: Cell | None
            may_ask = True
            notes = [note for note in (wait_note, time_note, chars_note) if note]
            if asked is not None:
                cell = await found.recall(asked.cell)
                may_ask = await take_answer(ctx, found, cell, asked)
            else:
                cell = await found.cell_of_request(request_id)
            if cell is None:
                broker.directory.check_room_for_cell()
                cell = found.submit(
                    code, time_limit_s=time_limit_s, author="mcp", request_id=request_id
                )
            elif asked is None:
                notes.append(limits.repeated_request(cell, code))
            # The start of a kernel counts, too: the client's patience does not begin anew.
            left_s = quick_wait_s(wait_s - (anyio.current_time() - began))
            question = await wait_and_ask(ctx, found, cell, left_s, may_ask=may_ask)
            make_task(found.id, cell)
            return question or await _answer(found, found.name, cell, max_chars, notes)

    return sage_run


async def sage_wait(
    ctx: Context[Users],
    session: SessionName,
    cell: CellNumber,
    wait_s: WaitSeconds = WAIT_S,
    max_chars: MaxChars = CHARS,
    answer: Annotated[
        str, Field(description='What input() is to return; "\\n" for an empty line')
    ] = "",
) -> CallToolResult | InputRequiredResult:
    """Go on waiting; see `_WAIT`."""
    with answering("sage_wait"):
        broker = await broker_of(ctx)
        wait_s, wait_note = limits.wait_limit(wait_s)
        max_chars, chars_note = limits.char_limit("max_chars", max_chars)
        notes = [note for note in (wait_note, chars_note) if note]
        awaited = await broker.read_cell(session, cell)
        if awaited.status.is_final:
            # It needs no kernel, so none is woken.
            if answer and ctx.request_state is None:
                raise unwanted(session, awaited)
            return await _answer(broker.open_one(session), session, awaited, max_chars, notes)
        try:
            found = await awake(ctx, session)
        except SessionInUseError as error:
            if answer:
                raise
            # What its own process has stored so far is all there is to say here.
            return await _answer(None, session, awaited, max_chars, [*notes, str(error)])
        awaited = await found.recall(cell)
        asked = asked_before(ctx, found)
        may_ask = asked is None or await take_answer(ctx, found, awaited, asked)
        if answer and asked is None:
            # A line has an end, so that there is a way to give an empty one.
            await found.answer(awaited, answer.removesuffix("\n"))
        question = await wait_and_ask(ctx, found, awaited, wait_s, may_ask=may_ask)
        return question or await _answer(found, session, awaited, max_chars, notes)


async def sage_output(
    ctx: Context[Users],
    session: SessionName,
    cell: CellNumber,
    stream: OutputStream = "all",
    offset: Annotated[int, Field(description="First character, or first image")] = 0,
    limit: Annotated[int, Field(description="Characters to return")] = CHARS,
    pattern: Annotated[str, Field(description="Text to search for")] = "",
) -> CallToolResult:
    """Page and search; see `_OUTPUT`."""
    with answering("sage_output"):
        broker = await broker_of(ctx)
        limit, _ = limits.char_limit("limit", limit)
        read = await broker.read_cell(session, cell)
        return await page(session, read, stream, offset=offset, limit=limit, pattern=pattern)


async def sage_interrupt(
    ctx: Context[Users], session: SessionName = DEFAULT_SESSION
) -> CallToolResult:
    """Climb the ladder; see `_INTERRUPT`."""
    with answering("sage_interrupt"):
        broker = await broker_of(ctx)
        found = broker.open_one(session)
        cell = found.current if found is not None else None
        if found is None:
            await broker.directory.check(session)
            return _text([f"Session {session!r} is not open here; sage_open opens it."])
        if cell is None:
            return _text([f"Nothing runs in session {session!r}.", *news(found)])
        await with_progress(ctx, lambda: f"interrupting cell {cell.number}", found.interrupt)
        return _text(after_interrupt(found, cell))


def after_interrupt(session: Session, cell: Cell) -> list[str]:
    """What ``sage_interrupt`` answers about a cell that was running when it was called."""
    cell.tell()
    lines = [status_line(session.name, cell), *news(session), *cell.notices]
    if not cell.status.is_final:
        wait = call_text("sage_wait", session=session.name, cell=cell.number)
        lines.append(f"It is still being stopped; {wait} tells when it has ended.")
    elif cell.status in (CellStatus.OK, CellStatus.ERROR) and cell.ladder is None:
        lines.append("The cell had ended by itself before it was interrupted; nothing was stopped.")
    waiting = session.info().queued
    if waiting:
        lines.append(f"{waiting} queued cells go on.")
    return lines


async def _session_to_run_in(ctx: Context[Users], name: str) -> Session:
    """The named session; the default one is opened where it is not."""
    broker = await broker_of(ctx)
    if name != DEFAULT_SESSION:
        return await awake(ctx, name)
    found, _ = await with_progress(
        ctx, lambda: "starting the Sage kernel,", lambda: broker.open_session(name, beside=True)
    )
    return found


async def _answer(
    session: Session | None, name: str, cell: Cell, max_chars: int, notes: list[str]
) -> CallToolResult:
    # The answer in the making tells the cell's end: the session need not tell it again.
    cell.tell()
    said = [*notes, *(news(session) if session is not None else ())]
    return await answer(name, cell, max_chars=max_chars, notes=said)


def _text(lines: list[str]) -> CallToolResult:
    return CallToolResult(content=[block("status", "\n".join(lines))])
