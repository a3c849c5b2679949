"""`Message` and `parse`: what a kernel sent, checked as if the kernel were an enemy.

Layout of a message (jupyter_client, "Messaging in Jupyter", wire protocol): routing frames, the
delimiter, the signature, then header, parent header, metadata and content as JSON, then buffers.
Only the four JSON frames are signed; the kernel holds the key, so a signature shows which
connection a message belongs to and never that its content is true.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from sagebroker.errors import WireError
from sagebroker.protocol.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

Channel = Literal["shell", "iopub", "control", "stdin"]
"""The channels that carry messages; the heartbeat carries bare frames."""

DELIMITER: Final = b"<IDS|MSG>"
MAX_FRAMES: Final = 64
"""Frames allowed before the delimiter, and after the content (buffers). A widget with a dozen
arrays is the most an honest kernel sends; receiving 100,000 frames stalls the loop 0.4 s."""
SIGNATURE_BYTES: Final = 64
"""Hex digits of an HMAC-SHA256."""
MAX_HEADER_BYTES: Final = 64 * 1024
"""Size of a header or parent header; real ones have 200 to 400 bytes."""
MAX_METADATA_BYTES: Final = 1024 * 1024
"""Size of the metadata frame; real ones have under 1 kB."""
MAX_NAME_CHARS: Final = 256
"""Length of ids, message types and user names; jupyter_client's ids have 40 to 70."""
_JSON_FRAMES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One parsed message of a kernel, or of a client. Strings may still hold lone surrogates (`text.clean`)."""

    channel: Channel
    msg_type: str
    msg_id: str
    parent_id: str = ""
    """``msg_id`` of the request this belongs to, as the kernel claims; empty for none."""
    parent_session: str = ""
    """Wire session of that request's sender, as the kernel claims."""
    username: str = ""
    session: str = ""
    """Wire session of the sender, from the header."""
    content: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    buffers: tuple[bytes, ...] = ()
    size: int = 0
    """Bytes of all frames together."""
    frames: tuple[bytes, ...] = field(default=(), repr=False, compare=False)
    """Header, parent header, metadata and content as they came, for whoever passes them on."""


def parse(channel: Channel, frames: Sequence[bytes], key: bytes) -> Message:
    """Check and decode the frames of one message.

    No digest history is kept (a repeated message is parsed again), numbers that are not finite
    become None, and integers too long for Python's limit stay strings of digits.

    Args:
        channel: Where the frames came from.
        frames: All frames of one multipart message.
        key: The connection's HMAC key.

    Raises:
        WireError: Anything is wrong with the frames; the text names the first thing.
    """
    start = _delimiter_index(frames)
    signature = frames[start]
    body = frames[start + 1 : start + 1 + _JSON_FRAMES]
    buffers = frames[start + 1 + _JSON_FRAMES :]
    if len(body) < _JSON_FRAMES:
        raise WireError(f"A message on {channel} has {len(body)} of {_JSON_FRAMES} JSON frames.")
    if len(buffers) > MAX_FRAMES:
        raise WireError(f"A message on {channel} has {len(buffers)} buffers (limit {MAX_FRAMES}).")
    if len(body[0]) > MAX_HEADER_BYTES or len(body[1]) > MAX_HEADER_BYTES:
        raise WireError(f"A message on {channel} has a header over {MAX_HEADER_BYTES} bytes.")
    if len(body[2]) > MAX_METADATA_BYTES:
        raise WireError(f"A message on {channel} has metadata over {MAX_METADATA_BYTES} bytes.")
    _verify(signature, body, key, channel)
    header = _object(body[0], "header", channel)
    parent = _load(body[1], "parent header", channel)
    metadata = _load(body[2], "metadata", channel)
    return Message(
        channel=channel,
        msg_type=_required_name(header, "msg_type", channel),
        msg_id=_required_name(header, "msg_id", channel),
        parent_id=_name(parent.get("msg_id")) if isinstance(parent, dict) else "",
        parent_session=_name(parent.get("session")) if isinstance(parent, dict) else "",
        username=_name(header.get("username")),
        session=_name(header.get("session")),
        content=_object(body[3], "content", channel),
        metadata=metadata if isinstance(metadata, dict) else {},
        buffers=tuple(buffers),
        size=sum(map(len, frames)),
        frames=tuple(body),
    )


def software_of(content: dict[str, Any]) -> str:
    """Name and version that a kernel gives itself in a ``kernel_info_reply``; empty where it gives none."""
    values = (content.get("implementation"), content.get("implementation_version"))
    return clean(" ".join(value[:MAX_NAME_CHARS] for value in values if isinstance(value, str)))


def sign(key: bytes, body: Sequence[bytes]) -> bytes:
    """The hex HMAC-SHA256 of the four JSON frames."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for frame in body:
        digest.update(frame)
    return digest.hexdigest().encode("ascii")


def _delimiter_index(frames: Sequence[bytes]) -> int:
    """Index of the signature frame."""
    for index, frame in enumerate(frames[: MAX_FRAMES + 1]):
        if frame == DELIMITER:
            if index + 1 >= len(frames):
                raise WireError("A message ends at its delimiter.")
            return index + 1
    raise WireError("A message has no delimiter.")


def _verify(signature: bytes, body: Sequence[bytes], key: bytes, channel: str) -> None:
    if len(signature) != SIGNATURE_BYTES:
        raise WireError(f"A message on {channel} has a signature of {len(signature)} bytes.")
    if not hmac.compare_digest(sign(key, body), signature):
        raise WireError(f"A message on {channel} is not signed with the connection's key.")


def _load(frame: bytes, what: str, channel: str) -> Any:
    # IPython writes undecodable bytes of a stream with surrogateescape: that is not an attack.
    text = frame.decode("utf-8", "surrogateescape")
    try:
        try:
            return json.loads(text, parse_constant=_not_finite)
        except json.JSONDecodeError:
            raise
        except ValueError:
            # An integer beyond sys.get_int_max_str_digits(): honest in Sage, its digits are kept.
            return json.loads(text, parse_constant=_not_finite, parse_int=_integer)
    except ValueError as error:
        raise WireError(f"The {what} of a message on {channel} is not JSON.") from error
    except RecursionError as error:
        raise WireError(f"The {what} of a message on {channel} is nested too deeply.") from error


def _not_finite(_: str) -> None:
    """NaN and the infinities, which JSON does not have."""


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


def _object(frame: bytes, what: str, channel: str) -> dict[str, Any]:
    value = _load(frame, what, channel)
    if not isinstance(value, dict):
        raise WireError(f"The {what} of a message on {channel} is not a JSON object.")
    return cast("dict[str, Any]", value)


def _required_name(header: dict[str, Any], name: str, channel: str) -> str:
    value = _name(header.get(name))
    if not value:
        raise WireError(f"The header of a message on {channel} has no usable {name}.")
    return value


def _name(value: object) -> str:
    """``value`` if it can be an id or a type, else the empty string."""
    return value if isinstance(value, str) and len(value) <= MAX_NAME_CHARS else ""
