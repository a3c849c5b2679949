"""The Tasks extension (SEP-2663): a cell that takes long is a task for clients that declare it.

A task is a cell, and nothing else: its id names the session and the cell, its state and result are read
from there. So tasks outlive the connection, and the broker as far as sessions do, and an id of another
user means nothing.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from mcp.server.extension import Extension, MethodBinding
from mcp.server.mcpserver.server import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_PARAMS,
    CallToolRequestParams,
    RequestParams,
)
from pydantic import Field

from sagebroker.errors import BrokerError, NoInputWantedError
from sagebroker.model import CellStatus, utcnow, wall_clock
from sagebroker.server.asking import can_ask, elicitation
from sagebroker.server.callers import current_user, missing_scope
from sagebroker.server.failures import sentence
from sagebroker.server.render import CHARS, answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

    from sagebroker.broker import Broker
    from sagebroker.session.cell import Cell
    from sagebroker.users import Users

EXTENSION: Final = "io.modelcontextprotocol/tasks"
VERSIONS: Final = frozenset({"2026-07-28"})
TASK_TOOLS: Final = frozenset({"sage_run"})
QUICK_S: Final = 1.0
"""A cell that ends within it is answered directly: most do, and a task costs two calls more."""
TTL_MS: Final = 86_400_000
"""How long a task is to be found at least: a day, if its session is not closed."""
MAX_DIGITS: Final = 15
"""Of a cell's number: more are no cell's, and no number that the store holds."""
POLL_INTERVAL_MS: Final = 1000
CANCELLED: Final = "cancelled"
"""Why a cell was stopped whose task, or call, was cancelled."""


@dataclass
class Offer:
    """A call whose client takes a task in place of an answer."""

    task: tuple[str, Cell] | None = None
    """The session's id and the cell, where it is one."""


_offer: ContextVar[Offer | None] = ContextVar("offer", default=None)


def quick_wait_s(wait_s: float) -> float:
    """How long a call waits for its cell: less where it can become a task."""
    return wait_s if _offer.get() is None else min(wait_s, QUICK_S)


def make_task(session_id: str, cell: Cell) -> None:
    """The call's cell has not ended: it is a task, if the client takes one."""
    offer = _offer.get()
    if offer is not None and not cell.status.is_final:
        offer.task = session_id, cell


class TaskParams(RequestParams):
    """Which task."""

    task_id: str = Field(alias="taskId", max_length=200)


class UpdateParams(TaskParams):
    """Answers to what a task asks; a person who declines leaves it waiting."""

    input_responses: dict[str, Any] = Field(alias="inputResponses", default_factory=dict)


class Tasks(Extension):
    """See the module."""

    identifier = EXTENSION

    def methods(self) -> Sequence[MethodBinding]:
        """What a client may ask about a task."""
        return [
            MethodBinding("tasks/get", TaskParams, self._get, VERSIONS),
            MethodBinding("tasks/cancel", TaskParams, self._cancel, VERSIONS),
            MethodBinding("tasks/update", UpdateParams, self._update, VERSIONS),
        ]

    async def intercept_tool_call(
        self,
        params: CallToolRequestParams,
        ctx: ServerRequestContext[Any, Any],
        call_next: CallNext,
    ) -> HandlerResult:
        """Answer a call with a task where its cell goes on and the client has declared that it takes one."""
        able = ctx.session.client_capabilities
        declared = able is not None and EXTENSION in (able.extensions or {})
        if params.name not in TASK_TOOLS or ctx.protocol_version not in VERSIONS or not declared:
            return await call_next(ctx)
        offer = Offer()
        token = _offer.set(offer)
        try:
            result = await call_next(ctx)
        finally:
            _offer.reset(token)
        if offer.task is None or offer.task[1].status.is_final:
            return result
        return {"resultType": "task", **_state(*offer.task, asks=can_ask(able))}

    async def _get(
        self, ctx: ServerRequestContext[Users, Any], params: TaskParams
    ) -> HandlerResult:
        _, name, cell = await self._find(ctx, params)
        asks = can_ask(ctx.session.client_capabilities)
        state = _state(_session_id(params.task_id), cell, asks=asks)
        if state["status"] == "completed":
            cell.tell()
            result = await answer(name, cell, max_chars=CHARS)
            state["result"] = {
                "resultType": "complete",
                **result.model_dump(by_alias=True, mode="json", exclude_none=True),
            }
        return {"resultType": "complete", **state}

    async def _cancel(
        self, ctx: ServerRequestContext[Users, Any], params: TaskParams
    ) -> HandlerResult:
        broker, name, cell = await self._find(ctx, params, reads_only=False)
        session = broker.open_one(name)
        if session is not None and not cell.status.is_final:
            await session.cancel(cell, CANCELLED)
        return {"resultType": "complete"}

    async def _update(
        self, ctx: ServerRequestContext[Users, Any], params: UpdateParams
    ) -> HandlerResult:
        broker, name, cell = await self._find(ctx, params, reads_only=False)
        session = broker.open_one(name)
        given = params.input_responses.get(_question(cell))
        given = given if isinstance(given, dict) else {}
        if session is not None and given.get("action") == "accept":
            content = given.get("content")
            text = content.get("text") if isinstance(content, dict) else ""
            try:
                await session.answer(cell, text if isinstance(text, str) else "")
            except NoInputWantedError as error:
                raise MCPError(INVALID_PARAMS, sentence(error)) from error
        return {"resultType": "complete"}

    async def _find(
        self, ctx: ServerRequestContext[Users, Any], params: TaskParams, *, reads_only: bool = True
    ) -> tuple[Broker, str, Cell]:
        """The caller's broker, the session's name and the cell.

        Raises:
            MCPError: There is none, or it is another's: one and the same error.
        """
        require_client_extension(ctx, EXTENSION)
        if ctx.request is not None and ctx.request.headers.get("mcp-name") != params.task_id:
            raise MCPError(HEADER_MISMATCH, "The header Mcp-Name must be the taskId.")
        if lacking := missing_scope(reads_only=reads_only):
            raise MCPError(INVALID_PARAMS, f"The token lacks the scope {lacking}.")
        session_id, _, number = params.task_id.rpartition(".")
        try:
            ctx.lifespan_context.count_call(current_user())
            broker = await ctx.lifespan_context.broker_of(current_user())
            row = await broker.directory.with_id(session_id)
            if row is not None and number.isdecimal() and len(number) <= MAX_DIGITS:
                cell = await broker.read_cell(row.name, int(number))
                if _task_id(row.id, cell) == params.task_id:
                    return broker, row.name, cell
        except LookupError:
            pass
        except BrokerError as error:
            raise MCPError(INVALID_PARAMS, sentence(error)) from error
        raise MCPError(INVALID_PARAMS, "There is no such task.")


def _task_id(session_id: str, cell: Cell) -> str:
    """The one spelling of a task's id."""
    return f"{session_id}.{cell.number}"


def _session_id(task_id: str) -> str:
    return task_id.rpartition(".")[0]


def _question(cell: Cell) -> str:
    """The key of what a cell asks now: an answer to an earlier question has another."""
    return f"input{cell.questions}"


def _state(session_id: str, cell: Cell, *, asks: bool) -> dict[str, Any]:
    """A task as it is told, but for its result.

    Args:
        session_id: The session's.
        cell: The task's.
        asks: Whether the client can put a question to a person.
    """
    touched = cell.ended_at or cell.started_at or cell.queued_at
    state: dict[str, Any] = {
        "taskId": _task_id(session_id, cell),
        "status": "working",
        "createdAt": _date(cell.queued_at),
        "lastUpdatedAt": _date(touched),
        "ttlMs": TTL_MS,
        "pollIntervalMs": POLL_INTERVAL_MS,
    }
    if cell.status.is_final:
        is_cancelled = cell.status is CellStatus.INTERRUPTED and cell.stop_reason == CANCELLED
        state["status"] = "cancelled" if is_cancelled else "completed"
        state["statusMessage"] = " ".join([f"cell {cell.number} {cell.word}", *cell.notices])
    elif cell.asks is not None and asks and not cell.asks.is_password:
        state["status"] = "input_required"
        request = elicitation(cell.number, cell.asks).model_dump(by_alias=True, mode="json")
        state["inputRequests"] = {_question(cell): request}
    else:
        state["statusMessage"] = f"cell {cell.number} {cell.word} {cell.elapsed_s:.0f} s"
        if cell.asks is not None:
            state["statusMessage"] += (
                f"; it asks {cell.asks.prompt!r}: sage_wait(…, answer=…) answers"
            )
    return state


def _date(monotonic_s: float) -> str:
    seconds = wall_clock(monotonic_s)
    stamp = utcnow() if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")
