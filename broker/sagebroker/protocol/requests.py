"""`ClientRequest`: what a Jupyter client wants of a session's kernel, as it goes to the kernel; no I/O.

The kernel gets a client's own header, so that everything it publishes names the request as the client
does: widgets keep the id of the request they were made in, and outputs are passed on as they are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sagebroker.errors import WireError
from sagebroker.protocol.messages import MAX_NAME_CHARS
from sagebroker.protocol.text import clean

if TYPE_CHECKING:
    from sagebroker.protocol.messages import Message

AUTHOR: Final = "jupyter"
"""Of the cells that clients send."""
EXECUTE: Final = "execute_request"
COMMS: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
"""Messages to the kernel's half of a widget; the kernel runs code for them, and replies nothing."""

OWN_PREFIX: Final = "sagebroker-"
"""Begins the ids of the broker's own questions to a kernel, of which no client is told."""

PROTOCOL_VERSION: Final = "5.4"
_MAX_CLIENT_BYTES: Final = 255
"""ZeroMQ's limit of an identity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientRequest:
    """See the module. `request_of` makes one of a message."""

    client: bytes
    """ZeroMQ identity of the client's sockets: its wire session, as jupyter_client has it."""
    msg_type: str
    msg_id: str
    frames: tuple[bytes, ...] = field(repr=False)
    """Header, parent header, metadata and content, for the kernel."""
    buffers: tuple[bytes, ...] = field(default=(), repr=False)
    code: str = ""
    is_silent: bool = False
    """No cell of the transcript: a widget's message, or code that a tool runs for itself."""
    stops_on_error: bool = False
    """What the client has queued behind it is not run if it fails."""
    allows_stdin: bool = False

    @property
    def header(self) -> bytes:
        """Its header, which is the parent header of whatever comes of it."""
        return self.frames[0]

    @property
    def has_reply(self) -> bool:
        """Whether the kernel replies to it."""
        return self.msg_type not in COMMS

    @property
    def request_id(self) -> str:
        """By which it is found again after a broker's end; empty where nobody would be answered."""
        try:
            return json.dumps([AUTHOR, self.client.decode("ascii"), self.msg_id])
        except UnicodeDecodeError:
            return ""


def request_of(client: bytes, message: Message) -> ClientRequest:
    """What a client's message asks the kernel to run.

    Args:
        client: ZeroMQ identity of its sender.
        message: An ``execute_request`` or a message to a widget.

    Raises:
        WireError: Something in it is not as Jupyter's protocol has it.
    """
    if message.msg_id.startswith(OWN_PREFIX):
        raise WireError(f"The id of a message must not begin with {OWN_PREFIX!r}.")
    if message.msg_type != EXECUTE:
        return ClientRequest(
            client=client,
            msg_type=message.msg_type,
            msg_id=message.msg_id,
            frames=message.frames,
            buffers=message.buffers,
            is_silent=True,
        )
    content = message.content
    code = content.get("code")
    if not isinstance(code, str):
        raise WireError("An execute_request has no code.")
    # An error must not abort what other clients have queued; the queue does it for this one's.
    sent = content | {"code": clean(code), "stop_on_error": False}
    return ClientRequest(
        client=client,
        msg_type=EXECUTE,
        msg_id=message.msg_id,
        frames=(*message.frames[:3], encode(sent)),
        buffers=message.buffers,
        code=clean(code),
        is_silent=content.get("silent") is True,
        stops_on_error=content.get("stop_on_error", True) is not False,
        allows_stdin=content.get("allow_stdin") is True,
    )


def found_again(request_id: str, code: str) -> ClientRequest | None:
    """The request of a cell that an earlier broker has queued and not sent; None for none of a client.

    Args:
        request_id: As `ClientRequest.request_id` gave it.
        code: The cell's.
    """
    try:
        kind, client, msg_id = json.loads(request_id)
    except (ValueError, TypeError):
        return None
    if kind != AUTHOR or not isinstance(client, str) or not isinstance(msg_id, str):
        return None
    identity = client.encode("ascii", "replace")[:_MAX_CLIENT_BYTES]
    header = {
        "msg_id": msg_id[:MAX_NAME_CHARS],
        "session": client,
        "username": "",
        "date": "",
        "msg_type": EXECUTE,
        "version": PROTOCOL_VERSION,
    }
    # Nobody knows whether its client is there to answer anything.
    content = execute_request(code) | {"allow_stdin": False}
    frames = (encode(header), b"{}", b"{}", encode(content))
    return ClientRequest(client=identity, msg_type=EXECUTE, msg_id=msg_id, frames=frames, code=code)


def execute_request(
    code: str, *, silent: bool = False, expressions: dict[str, str] | None = None
) -> dict[str, Any]:
    """The content of an ``execute_request``.

    No ``stop_on_error``: an error must not abort what other clients of this kernel have queued.
    """
    return {
        "code": code,
        "silent": silent,
        "store_history": not silent,
        "user_expressions": expressions or {},
        # What is asked by a silent request would be asked of nobody.
        "allow_stdin": not silent,
        "stop_on_error": False,
    }


def encode(value: dict[str, Any]) -> bytes:
    """A frame of JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).encode("ascii")
