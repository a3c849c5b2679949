"""A cell's question (``input()``), put to the person behind the client where the client can do that.

Up to 2025-11-25 a server asks within the call (``elicitation/create``). From 2026-07-28 on it answers the call
with the question, and the client makes the call again with the answer; the sealed request state then says
which cell that is about, so that no code is run twice. Passwords are never asked for by a form: the
protocol forbids it. Whoever cannot be asked is told, and answers with ``sage_wait``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio
from mcp import MCPError
from mcp_types import (
    ClientCapabilities,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
)
from pydantic import BaseModel, Field

from sagebroker.errors import NoInputWantedError
from sagebroker.server.waiting import wait_for_cell, wait_for_first

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from sagebroker.model import InputRequest
    from sagebroker.session.cell import Cell
    from sagebroker.session.session import Session
    from sagebroker.users import Users

KEY: Final = "input"
"""Of the one question in an answer."""
FIRST_WITHOUT_BACK_CHANNEL: Final = "2026"
"""Protocol versions are dates; from this year on servers do not ask within a call."""
ANSWER_LIMIT_S: Final = 86_400.0
"""How long after its question an answer is taken: as long as a cell may wait at most."""

_log = logging.getLogger(__name__)


class InputForm(BaseModel):
    """What a person is asked for."""

    text: str = Field(description="What the program is to read")


class Asked(BaseModel):
    """The question that a repeated call is about."""

    session_id: str
    cell: int
    question: int
    """Which one of the cell's, from 1."""


def asked_before(ctx: Context[Users], session: Session) -> Asked | None:
    """What this call may bring an answer to; None for a call of its own.

    Raises:
        NoInputWantedError: The question was another session's, which bore the same name.
    """
    if ctx.request_state is None:
        return None
    # Sealed by the server: nobody else can have written it.
    asked = Asked.model_validate_json(ctx.request_state)
    if asked.session_id != session.id:
        raise NoInputWantedError(
            f"Session {session.name!r} was closed while its cell {asked.cell} waited for input.",
            hint="Run the code again if it is still wanted.",
        )
    return asked


async def take_answer(ctx: Context[Users], session: Session, cell: Cell, asked: Asked) -> bool:
    """Give the cell the answer that a repeated call brings; whether the person may be asked again."""
    given = (ctx.input_responses or {}).get(KEY)
    content = (
        given.content if isinstance(given, ElicitResult) and given.action == "accept" else None
    )
    text = (content or {}).get("text")
    if not isinstance(text, str):
        return False
    # Else somebody else was quicker, or its time was over: an answer is never one to the next question.
    if cell.asks is not None and cell.questions == asked.question:
        await session.answer(cell, text)
    return True


async def wait_and_ask(
    ctx: Context[Users], session: Session, cell: Cell, wait_s: float, *, may_ask: bool = True
) -> InputRequiredResult | None:
    """Wait as `wait_for_cell` does, and put the cell's questions to the person meanwhile.

    Returns:
        The question, where the client is to bring its answer by another call.
    """
    deadline = anyio.current_time() + wait_s
    may_ask = may_ask and can_ask(ctx.client_capabilities)
    while True:
        await wait_for_cell(ctx, session, cell, deadline - anyio.current_time())
        asked, left_s = cell.asks, deadline - anyio.current_time()
        if asked is None or asked.is_password or not may_ask or left_s <= 0:
            return None
        if (ctx.protocol_version or "") >= FIRST_WITHOUT_BACK_CHANNEL:
            state = Asked(session_id=session.id, cell=cell.number, question=cell.questions)
            return InputRequiredResult(
                input_requests={KEY: elicitation(cell.number, asked)},
                request_state=state.model_dump_json(),
            )
        form = _Form(ctx, _message(cell.number, asked), left_s)
        await wait_for_first(ctx, session, cell, form.show, cell.wait_moved_on)
        if cell.asks is asked:
            if form.text is None:
                return None
            await session.answer(cell, form.text)


class _Form:
    """A question that is asked within the call."""

    def __init__(self, ctx: Context[Users], message: str, limit_s: float) -> None:
        self._ctx = ctx
        self._message = message
        self._limit_s = limit_s
        self.text: str | None = None
        """What the person has answered; None where there is no answer."""

    async def show(self) -> None:
        """Return when the person has answered or declined, or the time is over."""
        try:
            with anyio.move_on_after(self._limit_s):
                answered = await self._ctx.elicit(self._message, InputForm)
                self.text = answered.data.text if answered.action == "accept" else None
        except (MCPError, ValueError) as error:
            # Clients that cannot ask after all, or answer nonsense: as if declined.
            _log.info("A client has not answered a form: %s", type(error).__name__)


def elicitation(cell: int, asked: InputRequest) -> ElicitRequest:
    """What the cell of that number asks, as a form."""
    form = ElicitRequestFormParams(
        message=_message(cell, asked), requested_schema=InputForm.model_json_schema()
    )
    return ElicitRequest(params=form)


def _message(cell: int, asked: InputRequest) -> str:
    return asked.prompt or f"Cell {cell} waits for input."


def can_ask(client: ClientCapabilities | None) -> bool:
    """Whether a client can show a form; one that names no kind of question means forms."""
    able = None if client is None else client.elicitation
    return able is not None and (able.form is not None or able.url is None)
