"""`Guests`: the Jupyter clients of a session: JupyterLab, consoles, nbclient and their like.

What they want run becomes cells of the session, in its queue, so that one order holds for all, the broker's
own callers included; what only asks is answered beside it, also while a cell runs. Every request gets one reply,
whatever becomes of the kernel. Nothing a client asks for ends the kernel.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio

from sagebroker.errors import BrokerError, QueueFullError, WireError
from sagebroker.logs import event
from sagebroker.model import CellStatus
from sagebroker.protocol.requests import (
    AUTHOR,
    COMMS,
    EXECUTE,
    ClientRequest,
    request_of,
)
from sagebroker.session import replies
from sagebroker.session.desk import Listener
from sagebroker.session.orders import ORDERS, Orders
from sagebroker.session.questions import QUESTIONS, Questions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup, TaskStatus

    from sagebroker.protocol.messages import Channel, Message
    from sagebroker.session.cell import Cell
    from sagebroker.session.parties import House, Outward
    from sagebroker.session.session import Session

MAX_LINE: Final = 5_000
"""Requests of one client that wait for their turn; a notebook has some hundred cells."""
MAX_CLIENTS: Final = 500
"""Clients that have requests waiting at once."""
ROOM_INTERVAL_S: Final = 0.1
"""Time between looks for room in the session's queue."""
REMEMBERED: Final = 1_000
"""Ids of requests that have been answered: what the kernel says of them late is not passed on."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Pending:
    """A client's request that is, or will be, a cell."""

    request: ClientRequest
    cell: Cell
    is_busy: bool = False
    """The kernel has said that it began."""
    is_replied: bool = False
    has_shown_error: bool = False
    is_idle: bool = False
    """The kernel has said that it is done with it."""
    done: anyio.Event = field(default_factory=anyio.Event)


@dataclass(kw_only=True, eq=False)
class Waiting:
    """A client's request before its cell is made."""

    request: ClientRequest
    is_aborted: bool = False
    """One before it has failed."""


class Guests(Listener):
    """See the module. `run` in a task.

    Args:
        house: Where the session is.
        endpoint: Where replies go.
        time_limit_s: Seconds a client's cell may run.
        may_interrupt_all: Whether a client may interrupt others' cells, too.
    """

    def __init__(
        self, house: House, endpoint: Outward, *, time_limit_s: float, may_interrupt_all: bool
    ) -> None:
        self._house = house
        self._endpoint = endpoint
        self._time_limit_s = time_limit_s
        self._lines: dict[bytes, deque[Waiting]] = {}
        self._pending: dict[str, Pending] = {}
        self._answered: deque[str] = deque(maxlen=REMEMBERED)
        self._news: list[str] = []
        self._heard_news: dict[bytes, int] = {}
        """How much of the news each client has been told."""
        self._questions = Questions(house, endpoint)
        self._orders = Orders(house, endpoint, may_interrupt_all=may_interrupt_all)
        self._tg: TaskGroup

    async def run(
        self, serve: Callable[[], Awaitable[None]], *, task_status: TaskStatus[None]
    ) -> None:
        """Serve until ``serve`` ends or this is cancelled.

        Args:
            serve: Reads what comes, and calls `take` with it.
            task_status: Started when there is somebody to do what is asked.
        """
        async with anyio.create_task_group() as self._tg:
            task_status.started()
            await serve()
            self._tg.cancel_scope.cancel()

    # What clients say -------------------------------------------------------------------------------

    def take(self, channel: Channel, client: bytes, message: Message) -> None:
        """Take a client's message."""
        self._heard_news.setdefault(client, len(self._news))
        if channel == "stdin":
            self._take_answer(client, message)
        elif message.msg_type in (EXECUTE, *COMMS) and channel == "shell":
            self._queue(client, message)
        elif message.msg_type in QUESTIONS:
            self._tg.start_soon(self._questions.answer, channel, client, message)
        elif message.msg_type in ORDERS:
            self._tg.start_soon(self._orders.carry_out, channel, client, message)
        elif message.msg_type.endswith("_request"):
            self._reply(channel, client, message, replies.unsupported(message.msg_type))

    def _take_answer(self, client: bytes, message: Message) -> None:
        session = self._house.session
        cell = None if session is None else session.current
        value = message.content.get("value")
        if session is None or cell is None or cell.client != client or not isinstance(value, str):
            return
        self._tg.start_soon(self._answer, session, cell, value)

    async def _answer(self, session: Session, cell: Cell, value: str) -> None:
        try:
            await session.answer(cell, value)
        except BrokerError as error:
            _log.info("An answer of a Jupyter client was not wanted: %s", error)

    def _queue(self, client: bytes, message: Message) -> None:
        """Have a client's request run behind those that it has sent before."""
        try:
            request = request_of(client, message)
        except WireError as error:
            if message.msg_type == EXECUTE:
                self._reply("shell", client, message, replies.failure(error))
            return
        if request.msg_type in COMMS - {"comm_open"} and self._house.session is None:
            # The kernel that knew the widget is gone.
            return
        line = self._lines.get(client)
        if request.msg_id in self._pending or any(
            w.request.msg_id == request.msg_id for w in line or ()
        ):
            self._refuse(request, "A request with this msg_id has not been answered yet.")
        elif line is not None and len(line) >= MAX_LINE:
            self._refuse(request, f"{MAX_LINE} requests of this client wait already.")
        elif line is not None:
            line.append(Waiting(request=request))
        elif not self._has_submitted(request):
            if len(self._lines) >= MAX_CLIENTS:
                self._refuse(request, f"Requests of {MAX_CLIENTS} clients wait already.")
                return
            self._lines[client] = deque([Waiting(request=request)])
            self._tg.start_soon(self._work_off, client)

    def _has_submitted(self, request: ClientRequest) -> bool:
        """Make it a cell at once, if the session is awake and has room."""
        session = self._house.session
        if session is None or session.is_ending:
            return False
        try:
            cell = session.submit(
                request.code,
                time_limit_s=self._time_limit_s,
                author=AUTHOR,
                request_id=request.request_id,
                request=request,
            )
        except QueueFullError:
            return False
        except BrokerError as error:
            self._answer_failed(request, replies.failure(error))
            return True
        pending = self._pending[request.msg_id] = Pending(request=request, cell=cell)
        self._tg.start_soon(self._conclude, pending)
        return True

    async def _work_off(self, client: bytes) -> None:
        """Give the session what a client has sent, in order, as it has room; wake it if it sleeps."""
        line = self._lines[client]
        while line:
            request = line[0].request
            try:
                await self._house.awake()
            except BrokerError as error:
                self._answer_failed(request, replies.failure(error))
            else:
                if line[0].is_aborted:
                    self._execute_reply(request, replies.ABORTED)
                elif not self._has_submitted(request):
                    await anyio.sleep(ROOM_INTERVAL_S)
                    continue
            line.popleft()
        del self._lines[client]

    def _refuse(self, request: ClientRequest, why: str) -> None:
        if request.has_reply:
            self._answer_failed(request, replies.failure(WireError(why)))

    # What the kernel says ---------------------------------------------------------------------------

    def heard(self, message: Message) -> None:
        """Pass on what the kernel says."""
        pending = self._pending.get(message.parent_id)
        if message.channel == "iopub":
            self._publish(message, pending)
        elif message.channel == "stdin":
            self._ask(message, pending)
        elif message.msg_type == "execute_reply":
            self._pass_reply(message, pending)
        else:
            self._questions.heard(message)

    def _publish(self, message: Message, pending: Pending | None) -> None:
        is_status = message.msg_type == "status"
        if message.msg_type == "iopub_welcome" or (
            is_status
            and (self._questions.is_asked(message.parent_id) or message.parent_id in self._answered)
        ):
            return
        self._endpoint.pass_to_all(message)
        if pending is None:
            return
        if is_status:
            state = message.content.get("execution_state")
            pending.is_busy = pending.is_busy or state == "busy"
            pending.is_idle = pending.is_idle or state == "idle"
        elif message.msg_type == "error":
            pending.has_shown_error = True
        elif message.msg_type == "execute_input":
            self._tell_news(pending.request)

    def _ask(self, message: Message, pending: Pending | None) -> None:
        if message.msg_type == "input_request" and pending is not None:
            self._endpoint.pass_on("stdin", pending.request.client, message)

    def _pass_reply(self, message: Message, pending: Pending | None) -> None:
        if pending is not None:
            if not pending.is_replied:
                pending.is_replied = True
                if message.content.get("status") == "error" and pending.request.stops_on_error:
                    self._abort_behind(pending)
                self._endpoint.pass_on("shell", pending.request.client, message)
        elif message.parent_id not in self._answered and message.parent_session:
            # To a request that an earlier broker has sent: clients have their wire session as identity.
            self._endpoint.pass_on("shell", message.parent_session.encode(), message)

    def _abort_behind(self, failed: Pending) -> None:
        """What the client has sent until now is not run; what it sends when it knows of the failure is."""
        if (session := self._house.session) is not None:
            session.abort_behind(failed.cell)
        for waiting in self._lines.get(failed.request.client, ()):
            waiting.is_aborted = waiting.request.has_reply

    def began(self, sentence: str) -> None:
        """A new kernel serves: clients that know the old one are to know."""
        if not sentence:
            return
        self._news.append(sentence)
        if not self._orders.is_restarting:
            dying = [p for p in self._pending.values() if p.cell.status is CellStatus.RUNNING]
            self._tg.start_soon(self._tell_restart, dying)

    def ended(self, *, is_removed: bool) -> None:
        """The session has ended."""
        if is_removed:
            self._endpoint.publish(b"", "status", {"execution_state": "dead"})
        self._house.ended(is_removed=is_removed)

    async def _tell_restart(self, dying: list[Pending]) -> None:
        """After the last words about cells of the old kernel."""
        for pending in dying:
            await pending.done.wait()
        self._endpoint.publish(b"", "status", {"execution_state": "restarting"})

    def _tell_news(self, request: ClientRequest) -> None:
        """Say with a client's cell what has happened since its last one."""
        told = self._heard_news.get(request.client, 0)
        self._heard_news[request.client] = len(self._news)
        if news := self._news[told:]:
            text = "".join(f"[sagebroker] {sentence}\n" for sentence in news)
            self._endpoint.publish(request.header, "stream", {"name": "stderr", "text": text})

    # How a request ends -----------------------------------------------------------------------------

    async def _conclude(self, pending: Pending) -> None:
        """See to it that a client hears of its cell's end."""
        request, cell = pending.request, pending.cell
        await cell.wait(math.inf)
        if not pending.is_replied and request.has_reply:
            if not pending.is_busy:
                self._tell_state(request, "busy")
                pending.is_busy = True
            content = replies.of_cell(cell)
            if not pending.has_shown_error:
                self._show_error(request, content)
            self._heard_news[request.client] = len(self._news)
            self._execute_reply(request, content)
        if pending.is_busy and not pending.is_idle:
            self._tell_state(request, "idle")
        del self._pending[request.msg_id]
        self._answered.append(request.msg_id)
        pending.done.set()

    def _answer_failed(self, request: ClientRequest, content: dict[str, Any]) -> None:
        """Answer a request of which no cell came."""
        if not request.has_reply:
            return
        self._tell_state(request, "busy")
        self._show_error(request, content)
        self._execute_reply(request, content)
        self._tell_state(request, "idle")
        _log.info(
            "A Jupyter client's cell was not run: %s",
            content["evalue"],
            extra=event("cell.refused"),
        )

    def _tell_state(self, request: ClientRequest, state: str) -> None:
        self._endpoint.publish(request.header, "status", {"execution_state": state})

    def _show_error(self, request: ClientRequest, content: dict[str, Any]) -> None:
        """Show the error that a reply tells, if it tells one."""
        if content["status"] == "error":
            shown = {key: content[key] for key in ("ename", "evalue", "traceback")}
            self._endpoint.publish(request.header, "error", shown)

    def _execute_reply(self, request: ClientRequest, content: dict[str, Any]) -> None:
        self._endpoint.reply("shell", request.client, request.header, "execute_reply", content)

    def _reply(
        self, channel: Channel, client: bytes, message: Message, content: dict[str, Any]
    ) -> None:
        msg_type = replies.type_of(message.msg_type)
        self._endpoint.reply(channel, client, message.frames[0], msg_type, content)
