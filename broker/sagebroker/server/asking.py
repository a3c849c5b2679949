"""A cell's question (``input()``), put to the person behind the client where the client can do that.

Up to 2025-11-25 a server asks within the call (``elicitation/create``). From 2026-07-28 on it answers the call
with the question, and the client makes the call again with the answer; the sealed request state then says
which cell that is about, so that no code is run twice. Passwords are never asked for by a form: the
protocol forbids it. Whoever cannot be asked is told, and answers with ``sage_wait``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from pydantic import BaseModel, Field, ValidationError

from sagebroker.errors import NoInputWantedError
from sagebroker.server.waiting import wait_for_cell

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from sagebroker.session.cell import Cell
    from sagebroker.session.session import Session
    from sagebroker.users import Users

KEY: Final = "input"
"""Of the one question in an answer."""
FIRST_WITHOUT_BACK_CHANNEL: Final = "2026"
"""Protocol versions are dates; from this year on servers do not ask within a call."""


class InputForm(BaseModel):
    """What a person is asked for."""

    text: str = Field(description="What the program is to read")


class Asked(BaseModel):
    """The cell that a repeated call is about."""

    session: str
    cell: int


def asked_before(ctx: Context[Users]) -> Asked | None:
    """The cell whose question this call answers; None for a call of its own."""
    if ctx.request_state is None:
        return None
    try:
        return Asked.model_validate_json(ctx.request_state)
    except ValidationError:
        return None


async def take_answer(ctx: Context[Users], session: Session, cell: Cell) -> bool:
    """Give the cell the answer that a repeated call brings; whether the person may be asked again."""
    given = (ctx.input_responses or {}).get(KEY)
    if not isinstance(given, ElicitResult) or given.action != "accept":
        return ctx.request_state is None
    text = (given.content or {}).get("text")
    try:
        await session.answer(cell, text if isinstance(text, str) else "")
    except NoInputWantedError:
        # Somebody else was quicker, or its time was over: its answer says how it stands.
        return False
    return True


async def wait_and_ask(
    ctx: Context[Users], session: Session, cell: Cell, wait_s: float, *, may_ask: bool = True
) -> InputRequiredResult | None:
    """Wait as `wait_for_cell` does, and put the cell's questions to the person meanwhile.

    Returns:
        The question, where the client is to bring its answer by another call.
    """
    deadline = anyio.current_time() + wait_s
    while True:
        left_s = deadline - anyio.current_time()
        await wait_for_cell(ctx, session, cell, left_s)
        asked = cell.asks
        if asked is None or asked.is_password or not may_ask or not _can_ask(ctx) or left_s <= 0:
            return None
        message = asked.prompt or f"Cell {cell.number} of session {session.name} waits for input."
        if (ctx.protocol_version or "") >= FIRST_WITHOUT_BACK_CHANNEL:
            state = Asked(session=session.name, cell=cell.number)
            return InputRequiredResult(
                input_requests={KEY: elicitation(message)},
                request_state=state.model_dump_json(),
            )
        text = None
        with anyio.move_on_after(deadline - anyio.current_time()):
            answered = await ctx.elicit(message, InputForm)
            text = answered.data.text if answered.action == "accept" else None
        if text is None:
            return None
        if cell.asks is asked:
            await session.answer(cell, text)


def elicitation(message: str) -> ElicitRequest:
    """The question as a form."""
    schema = InputForm.model_json_schema()
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def _can_ask(ctx: Context[Users]) -> bool:
    able = ctx.client_capabilities
    return able is not None and able.elicitation is not None
