"""`Execution`: one ``execute_request`` in flight, followed to its end; no clock, no socket.

A cell ends when both its reply on the shell and ``idle`` on iopub have come. Either can be lost:
an ipykernel without `inside.interrupts` loses the reply in 11 to 14 % of cases where an interrupt
comes within 20 ms of a cell's end, and a full queue loses ``idle`` (measured with ipykernel 6.29
and 7.4). So one of them and a short quiet suffice,
and what is missing is said.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal

from sagebroker.model import InputRequest
from sagebroker.protocol.outputs import OutputFold, failure_of, json_value
from sagebroker.protocol.text import BoundedText, clean, strip_ansi

if TYPE_CHECKING:
    from sagebroker.model import CellFailure
    from sagebroker.protocol.messages import Message

ExecutionStatus = Literal["ok", "error", "aborted"]

GRACE_S: Final = 0.5
"""Seconds of quiet after which the missing one of reply and idle counts as lost. The other comes
0.3 to 6 ms later when it comes at all; half a second covers a loaded machine."""
GRACE_LIMIT_S: Final = 5.0
"""Seconds after the first of the two at which waiting ends even if outputs still stream in, as
they do from a thread that goes on printing. Draining a full queue of 20 MB takes under 1 s."""
MAX_PAGER_BYTES: Final = 2 * 2**20
"""Pager text kept; the longest help text of Sage has 80 kB."""
MAX_PAYLOADS: Final = 100
"""Payload entries looked at; a cell with many ``x?`` lines has one each."""
MAX_COUNT: Final = 2**53
"""No honest prompt number reaches it; the store holds none beyond 64 bits."""
MAX_PROMPT_CHARS: Final = 2000
"""Characters kept of a question."""
MAX_USER_EXPRESSIONS: Final = 100
"""User expressions kept of a reply; the broker asks for a few."""


def input_wanted(message: Message) -> InputRequest | None:
    """What a message on the stdin channel asks; None where it says that nothing is asked any more."""
    if message.msg_type != "input_request":
        return None
    prompt = message.content.get("prompt")
    text = clean(prompt[:MAX_PROMPT_CHARS]) if isinstance(prompt, str) else ""
    return InputRequest(
        prompt=strip_ansi(text), is_password=message.content.get("password") is True
    )


class ExecutionPhase(StrEnum):
    """Where an execution stands."""

    PENDING = "pending"  # sent, nothing heard
    RUNNING = "running"  # the kernel said busy
    ENDING = "ending"  # reply or idle has come, the other is awaited
    ENDED = "ended"  # both have come


class Execution:
    """Follows the messages that name one request as their parent.

    Args:
        msg_id: The request's id; messages with another parent are ignored.
        outputs: Where outputs go; a fresh fold by default.
        has_reply: Whether the request is one to which a kernel replies.
    """

    def __init__(
        self, msg_id: str, outputs: OutputFold | None = None, *, has_reply: bool = True
    ) -> None:
        self.msg_id = msg_id
        self._has_reply = has_reply
        self.outputs = outputs if outputs is not None else OutputFold()
        self.reply: dict[str, Any] | None = None
        """Content of the first ``execute_reply``; types inside are the kernel's."""
        self.execution_count: int | None = None
        self.duplicate_replies = 0
        """Replies after the first; an honest kernel sends none."""
        self._is_busy_seen = False
        self._idle_seen = False
        self._first_end_at: float | None = None
        self._last_at: float | None = None

    def feed(self, message: Message, now: float) -> None:
        """Take a message.

        Args:
            message: From any channel.
            now: Monotonic seconds at which it was received.
        """
        if message.parent_id != self.msg_id:
            return
        self._last_at = now
        if message.channel == "iopub":
            self._feed_iopub(message)
        elif message.channel == "shell" and message.msg_type == "execute_reply":
            self._feed_reply(message)
        if self._first_end_at is None and (self._idle_seen or self.reply is not None):
            self._first_end_at = now

    @property
    def phase(self) -> ExecutionPhase:
        """Where it stands, by what has been seen."""
        if self._idle_seen and (self.reply is not None or not self._has_reply):
            return ExecutionPhase.ENDED
        if self._first_end_at is not None:
            return ExecutionPhase.ENDING
        return ExecutionPhase.RUNNING if self._is_busy_seen else ExecutionPhase.PENDING

    def ended(self, now: float) -> bool:
        """Whether nothing more is awaited at monotonic second ``now``."""
        if self.phase is ExecutionPhase.ENDED:
            return True
        due = self._due_at()
        return due is not None and now >= due

    def next_check(self, now: float) -> float | None:
        """The monotonic second at which `ended` becomes true if nothing comes; None for never."""
        if self.phase is ExecutionPhase.ENDED:
            return now
        return self._due_at()

    @property
    def reply_lost(self) -> bool:
        """``idle`` has come and the reply has not; a fact once it has ended."""
        return self._idle_seen and self.reply is None and self._has_reply

    @property
    def idle_lost(self) -> bool:
        """The reply has come and ``idle`` has not: outputs may be missing; a fact at the end."""
        return self.reply is not None and not self._idle_seen

    @property
    def status(self) -> ExecutionStatus | None:
        """The reply's status; without a reply ``error`` if an exception was shown, else None."""
        if self.reply is None:
            return "error" if self.outputs.failure is not None else None
        match self.reply.get("status"):
            case "ok":
                return "ok"
            case "aborted" | "abort":
                return "aborted"
            case _:
                return "error"

    @property
    def failure(self) -> CellFailure | None:
        """The exception the cell ended with; None if it ended well or was not run."""
        if self.status != "error":
            return None
        if self.outputs.failure is not None:
            return self.outputs.failure
        return failure_of(self.reply or {})

    @property
    def payload(self) -> str:
        """What the pager would show (``factor?``), with its colours; empty for nothing."""
        raw = (self.reply or {}).get("payload")
        pager = BoundedText(MAX_PAGER_BYTES)
        for item in raw[:MAX_PAYLOADS] if isinstance(raw, list) else ():
            data = item.get("data") if isinstance(item, dict) else None
            text = data.get("text/plain") if isinstance(data, dict) else None
            if isinstance(text, str):
                pager.append(text)
        return pager.text()

    @property
    def user_expressions(self) -> dict[str, Any]:
        """The reply's ``user_expressions``: name to the kernel's answer, JSON values only."""
        raw = (self.reply or {}).get("user_expressions")
        if not isinstance(raw, dict):
            return {}
        return {name: json_value(value) for name, value in list(raw.items())[:MAX_USER_EXPRESSIONS]}

    def _feed_iopub(self, message: Message) -> None:
        match message.msg_type:
            case "status":
                state = message.content.get("execution_state")
                self._is_busy_seen = self._is_busy_seen or state == "busy"
                self._idle_seen = self._idle_seen or state == "idle"
            case "execute_input":
                self._count(message.content)
            case _:
                self.outputs.add(message)

    def _feed_reply(self, message: Message) -> None:
        if self.reply is not None:
            self.duplicate_replies += 1
            return
        self.reply = message.content
        self._count(message.content)

    def _count(self, content: dict[str, Any]) -> None:
        value = content.get("execution_count")
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT:
            self.execution_count = value

    def _due_at(self) -> float | None:
        if self._first_end_at is None or self._last_at is None:
            return None
        return min(self._last_at + GRACE_S, self._first_end_at + GRACE_LIMIT_S)
