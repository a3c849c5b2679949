"""`JournalReader`: what a kernel's newest cell has published, from the file that the kernel keeps of it.

For a broker that takes over a cell another one has started; see `sagebroker.inside.journal` for the
file's layout. The user's code owns the file as much as the kernel does: all of it is hostile input,
and what it forges can only mislead its own session.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sagebroker.errors import WireError
from sagebroker.protocol.messages import DELIMITER, Channel, Message, parse

JOURNAL_FILE: Final = "journal"
"""Its name in the folder of the session's checkpoints."""

JOURNAL_LIMIT_BYTES: Final = 34 * 2**20
"""Size of the largest file that a kernel writes: 32 MiB of outputs, and 2 for the cell's end."""

READ_BYTES: Final = 2**20
"""Read at a time: parsing as much takes under 0.1 s, even of the smallest messages."""

ID_BYTES: Final = 1024
"""Longest id of a cell; those of jupyter_client have 40 to 70."""

_CHANNELS: Final[dict[str, Channel]] = {
    "execute_reply": "shell",
    "input_request": "stdin",
    "input_reply": "stdin",
}
"""Where messages would have come that do not come on iopub."""

_MAGIC: Final = b"SBJ1"
_GOOD: Final = b"."
_BROKEN: Final = b"!"
_MESSAGE: Final = b"m"
_TRUNCATED: Final = b"t"
_STATE: Final = struct.Struct(">4scH")
_LENGTHS: Final = struct.Struct(">5I")


class MalformedError(ValueError):
    """The file holds something that no kernel writes."""


@dataclass(frozen=True)
class JournalHead:
    """The beginning of the file.

    Attributes:
        msg_id: Of the request that the file is about.
        is_broken: Whether the kernel could not write all of it.
        size: Bytes up to the first record.
    """

    msg_id: str
    is_broken: bool
    size: int


def parse_head(data: bytes) -> JournalHead | None:
    """The head that ``data`` begins with; None where it is not all there yet.

    Raises:
        MalformedError: It is none.
    """
    if not _MAGIC.startswith(data[: len(_MAGIC)]):
        raise MalformedError("no magic number")
    if len(data) < _STATE.size:
        return None
    _, state, length = _STATE.unpack_from(data)
    if state not in (_GOOD, _BROKEN) or not 0 < length <= ID_BYTES:
        raise MalformedError("no head")
    size = _STATE.size + length
    if len(data) < size:
        return None
    # Undecodable bytes raise a ValueError, too.
    return JournalHead(data[_STATE.size : size].decode("utf-8"), state == _BROKEN, size)


class JournalDecoder:
    """Takes the file's bytes behind its head, in pieces of any size; does no I/O, never raises.

    Args:
        msg_id: Of the request that all messages must belong to.
        key: The connection's HMAC key.
    """

    def __init__(self, msg_id: str, key: bytes) -> None:
        self._msg_id = msg_id
        self._key = key
        self._rest = bytearray()
        self._taken_bytes = 0
        self.is_truncated = False
        """Whether outputs were left out for their size."""
        self.is_broken = False
        """Whether something was malformed; nothing behind it is looked at."""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now; the rest waits for more."""
        if self.is_broken:
            return []
        self._rest += data
        self._taken_bytes += len(data)
        messages: list[Message] = []
        done = 0
        try:
            if self._taken_bytes > JOURNAL_LIMIT_BYTES:
                raise MalformedError("larger than any kernel writes")
            while done < len(self._rest):
                end = self._end_of_record(done)
                if end > len(self._rest):
                    break
                if end > done + 1:
                    messages.append(self._message(done + 1))
                done = end
        except (MalformedError, WireError):
            self.is_broken = True
            self._rest.clear()
            return messages
        del self._rest[:done]
        return messages

    def _end_of_record(self, start: int) -> int:
        """Where the record ends, as far as that is known; beyond what is there if it is not."""
        kind = self._rest[start : start + 1]
        if kind == _TRUNCATED:
            self.is_truncated = True
            return start + 1
        if kind != _MESSAGE:
            raise MalformedError("unknown record")
        body = start + 1 + _LENGTHS.size
        if body > len(self._rest):
            return body
        end: int = body + sum(_LENGTHS.unpack_from(self._rest, start + 1))
        if end - start > JOURNAL_LIMIT_BYTES:
            raise MalformedError("a message larger than any kernel writes")
        return end

    def _message(self, start: int) -> Message:
        at = start + _LENGTHS.size
        frames = [DELIMITER]
        for length in _LENGTHS.unpack_from(self._rest, start):
            frames.append(bytes(self._rest[at : at + length]))
            at += length
        message = parse("iopub", frames, self._key)
        if message.parent_id != self._msg_id:
            raise MalformedError("a message of another request")
        channel = _CHANNELS.get(message.msg_type)
        return message if channel is None else replace(message, channel=channel)


class JournalReader:
    """Reads the journal of one cell, the one it is about at the first look, while it grows.

    `read_new` blocks: to be called in a thread, again and again.

    Args:
        path: Of the file, which need not be there yet.
        key: The connection's HMAC key.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path = path
        self._key = key
        self._decoder: JournalDecoder | None = None
        self._offset = 0
        self._is_unreadable = False
        self.msg_id = ""
        """Of the request that the journal is about; empty while there is none."""
        self.is_replaced = False
        """Whether the file is about another cell by now: nothing more is read, and the end of this
        one may not have been."""
        self.is_at_end = False
        """Whether the last look has read all there was; else the next one finds more."""

    @property
    def is_truncated(self) -> bool:
        """Whether outputs are missing, for the cell has published more than is kept."""
        return self._decoder is not None and self._decoder.is_truncated

    @property
    def is_broken(self) -> bool:
        """Whether the file ends too early or is not what a kernel writes; nothing more is read."""
        malformed = self._decoder is not None and self._decoder.is_broken
        return malformed or self._is_unreadable

    def read_new(self) -> list[Message]:
        """What has been added since the last look, about `READ_BYTES` of it; never raises.

        Empty only where nothing more is complete: a message may be larger than that.
        """
        while True:
            messages = self._look()
            if messages or self.is_at_end:
                return messages

    def _look(self) -> list[Message]:
        self.is_at_end = True
        if self.is_broken or self.is_replaced:
            return []
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(self._path, flags)
        except FileNotFoundError:
            self._is_unreadable = bool(self.msg_id)
            return []
        except OSError:
            self._is_unreadable = True
            return []
        try:
            return self._read(file)
        except (OSError, ValueError):
            self._is_unreadable = True
            return []
        finally:
            os.close(file)

    def _read(self, file: int) -> list[Message]:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise MalformedError("no regular file")
        if self._head(file) is None:
            return []
        data = os.pread(file, READ_BYTES, self._offset)
        size = os.fstat(file).st_size
        # Once more: the next cell may have begun the file anew since.
        head = self._head(file)
        if head is None or self._decoder is None:
            return []
        if size < self._offset:
            raise MalformedError("shortened")
        self._offset += len(data)
        messages = self._decoder.feed(data)
        self.is_at_end = len(data) < READ_BYTES or self._decoder.is_broken
        self._is_unreadable = head.is_broken and self.is_at_end
        return messages

    def _head(self, file: int) -> JournalHead | None:
        """The head, if the file is still about the same cell."""
        head = parse_head(os.pread(file, _STATE.size + ID_BYTES, 0))
        if head is None:
            return None
        if self._decoder is None:
            self.msg_id, self._offset = head.msg_id, head.size
            self._decoder = JournalDecoder(head.msg_id, self._key)
        self.is_replaced = head.msg_id != self.msg_id
        return None if self.is_replaced else head
