"""`Questions`: what Jupyter clients ask that changes nothing: completions, documentation, history.

While nothing runs the kernel's main thread answers. While a cell runs its control thread does, which can as long
as no C code holds Python's lock; what it does not answer in time gets an empty answer, and the client goes on.
"""

from __future__ import annotations

import fnmatch
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.lowlevel

from sagebroker.errors import BrokerError
from sagebroker.model import SessionState
from sagebroker.protocol.requests import OWN_PREFIX, ClientRequest
from sagebroker.session import replies

if TYPE_CHECKING:
    from sagebroker.protocol.messages import Channel, Message
    from sagebroker.session.parties import House, Outward

LIMIT_S: Final = 5.0
"""Time for the kernel to answer. Sage's longest documentation takes 0.5 s; completing in a module not yet
imported 2 to 3 s."""
START_LIMIT_S: Final = 90.0
"""Time for a session's first kernel, of which a client asks what it is."""
MOST_AT_ONCE: Final = 64
"""Questions that wait; an editor asks one or two at a time."""
MOST_REMEMBERED: Final = 1_000
"""Questions whose ids are known after their end."""
MOST_HISTORY: Final = 10_000
"""Cells of which the history is made."""
HIDDEN_FEATURES: Final = frozenset({"debugger", "kernel subshells"})
"""What ipykernel can do, and must not here: a debugger halts the kernel beyond any interrupt, and in a subshell
Sage's C code would run in a second thread, which SIGINT does not reach."""

KERNEL_INFO: Final = "kernel_info_request"
HISTORY: Final = "history_request"
_EMPTY: Final[dict[str, dict[str, Any]]] = {
    "complete_request": {"status": "ok", "matches": [], "metadata": {}},
    "inspect_request": {"status": "ok", "found": False, "data": {}, "metadata": {}},
    "is_complete_request": {"status": "unknown"},
    "comm_info_request": {"status": "ok", "comms": {}},
}
QUESTIONS: Final = frozenset({KERNEL_INFO, HISTORY, *_EMPTY})


class _Asked:
    """A question on its way."""

    def __init__(self) -> None:
        self.answer: Message | None = None
        self.has_come = anyio.Event()


class Questions:
    """See the module.

    Args:
        house: Where the session is.
        endpoint: Where answers go.
    """

    def __init__(self, house: House, endpoint: Outward) -> None:
        self._house = house
        self._endpoint = endpoint
        self._asked: dict[str, _Asked] = {}
        self._past: deque[str] = deque(maxlen=MOST_REMEMBERED)
        """Whose last word may yet come."""
        self._info: dict[str, Any] = {}
        """What the newest kernel said of itself: known also while the session sleeps."""

    def is_asked(self, msg_id: str) -> bool:
        """Whether a request is such a question, of which nobody is to be told whether the kernel is busy."""
        return msg_id in self._asked or msg_id in self._past

    def heard(self, message: Message) -> None:
        """Take an answer of the kernel's."""
        asked = self._asked.get(message.parent_id)
        if asked is not None and message.msg_type.endswith("_reply"):
            asked.answer = message
            asked.has_come.set()

    async def answer(self, channel: Channel, client: bytes, message: Message) -> None:
        """Answer a client's question."""
        header = message.frames[0]
        # A client that has just connected waits for a sign of life on iopub.
        self._endpoint.publish(header, "status", {"execution_state": "busy"})
        try:
            if message.msg_type == KERNEL_INFO:
                found: Message | dict[str, Any] = await self._kernel_info()
            elif message.msg_type == HISTORY:
                found = await self._history(message.content)
            else:
                found = await self._ask(client, message) or self._nothing(message)
        except BrokerError as error:
            found = replies.failure(error)
        msg_type = replies.type_of(message.msg_type)
        if isinstance(found, dict):
            self._endpoint.reply(channel, client, header, msg_type, found)
        else:
            self._endpoint.pass_on(channel, client, found)
        await self._tell_idle(header)

    async def _tell_idle(self, header: bytes) -> None:
        """Say that the question is done with; while a cell runs that would look as if it had ended."""
        while (session := self._house.session) is not None and (
            cell := session.current
        ) is not None:
            await cell.wait(math.inf)
            await anyio.lowlevel.checkpoint()
        self._endpoint.publish(header, "status", {"execution_state": "idle"})

    def _nothing(self, message: Message) -> dict[str, Any]:
        empty = dict(_EMPTY[message.msg_type])
        if message.msg_type == "complete_request":
            at = message.content.get("cursor_pos")
            empty["cursor_start"] = empty["cursor_end"] = at if isinstance(at, int) else 0
        return empty

    async def _kernel_info(self) -> dict[str, Any]:
        with anyio.move_on_after(START_LIMIT_S):
            while (session := self._house.session) is not None:
                if session.kernel is not None and session.kernel.info:
                    self._info = session.kernel.info
                    break
                if self._info or session.info().state is not SessionState.STARTING:
                    break
                await anyio.sleep(0.05)
        if not self._info:
            return replies.error("NoKernel", "The session has no kernel yet.")
        features = self._info.get("supported_features")
        kept = (
            [f for f in features if f not in HIDDEN_FEATURES] if isinstance(features, list) else []
        )
        return self._info | {"status": "ok", "supported_features": kept, "debugger": False}

    async def _ask(self, client: bytes, message: Message) -> Message | None:
        """The kernel's own answer; None where it gives none."""
        kernel = None if (session := self._house.session) is None else session.kernel
        if (
            session is None
            or kernel is None
            or len(self._asked) >= MOST_AT_ONCE
            or message.msg_id in self._asked
            or message.msg_id.startswith(OWN_PREFIX)
        ):
            return None
        is_busy = session.current is not None
        request = ClientRequest(
            client=client,
            msg_type=message.msg_type,
            msg_id=message.msg_id,
            frames=message.frames,
        )
        asked = self._asked[message.msg_id] = _Asked()
        try:
            with anyio.move_on_after(LIMIT_S):
                await kernel.pass_on("control" if is_busy else "shell", request)
                await kernel.first(asked.has_come)
            return asked.answer
        finally:
            del self._asked[message.msg_id]
            self._past.append(message.msg_id)

    async def _history(self, content: dict[str, Any]) -> dict[str, Any]:
        """The session's cells, of all its kernels and all its users."""
        session = self._house.session
        number, kind = content.get("n"), content.get("hist_access_type")
        most = number if isinstance(number, int) and number >= 0 else MOST_HISTORY
        read = MOST_HISTORY if kind in ("range", "search") else min(most, MOST_HISTORY)
        cells = [] if session is None else await session.past_cells(read)
        entries = [(0, cell.number, cell.code) for cell in cells]
        match kind:
            case "range":
                start, stop = content.get("start"), content.get("stop")
                first = start if isinstance(start, int) else 1
                end = stop if isinstance(stop, int) else MOST_HISTORY**2
                entries = [entry for entry in entries if first <= entry[1] < end]
            case "search":
                pattern = str(content.get("pattern", "*"))
                entries = [entry for entry in entries if fnmatch.fnmatchcase(entry[2], pattern)]
                if content.get("unique") is True:
                    newest = {entry[2]: entry for entry in entries}
                    entries = sorted(newest.values(), key=lambda entry: entry[1])
                entries = entries[-most:] if most else []
        if content.get("output") is True:
            return {"status": "ok", "history": [(a, b, (code, None)) for a, b, code in entries]}
        return {"status": "ok", "history": entries}
