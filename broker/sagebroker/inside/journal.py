"""Keeps what the newest cell has published in a file, for a broker that was not there to hear it.

ZeroMQ drops what nobody receives: of a cell that goes on while its broker is replaced by another,
the outputs would be lost. The file is of one cell: the next one begins it anew. It is not brought
to the disk, for the page cache outlives every process.

Layout: `MAGIC`, one byte of state, the length of the cell's id (two bytes, big-endian) and the id;
then records. A message is `MESSAGE`, five lengths of four bytes each, and as many frames: the
signature, header, parent header, metadata and content of Jupyter's wire protocol; buffers are left
out. `TRUNCATED` stands alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

JOURNAL_BYTES = 32 * 2**20
"""Most bytes of one cell's messages: a stream within its limit of 20 MB, and what a cell usually
displays."""

RESERVE_BYTES = 2 * 2**20
"""Beyond that, for how the cell ends: a reply carries a traceback, or a help text of 80 kB."""

MAGIC = b"SBJ1"
GOOD = b"."
BROKEN = b"!"
"""State of a file to which nothing more is written, for a write has failed."""
MESSAGE = b"m"
TRUNCATED = b"t"
"""Here outputs were left out for `JOURNAL_BYTES`; only `ENDINGS` and `QUESTIONS` follow."""

ID_BYTES = 1024
"""Longest id of a cell; those of jupyter_client have 40 to 70."""

BROKER = "sagebroker"
"""User name in the headers of the broker's requests."""

FORKED = "a forked process cannot ask for input; ask before it is forked"

FRAMES = 5
DELIMITER = b"<IDS|MSG>"
_STATE = struct.Struct(">4scH")
_PREFIX = struct.Struct(">c5I")
_STATE_AT = len(MAGIC)

ENDINGS = frozenset({"status", "execute_reply"})
QUESTIONS = frozenset({"input_request", "input_reply"})
KEPT = (
    ENDINGS
    | QUESTIONS
    | {
        "stream",
        "display_data",
        "execute_result",
        "update_display_data",
        "clear_output",
        "error",
        "execute_input",
    }
)
"""Types of the messages of which a cell's outputs and its end are made."""


class Step(Enum):
    """What to do with a message."""

    SKIP = "skip"
    APPEND = "append"
    BEGIN = "begin"  # the file anew, with this message as its first
    MARK = "mark"  # that this one and others are left out


class Selection:
    """Decides what belongs into the journal; no file, no lock.

    Args:
        limit_bytes: Of one cell's journal, but for how the cell ends.
        reserve_bytes: Beyond that, for how it ends.
    """

    def __init__(
        self, limit_bytes: int = JOURNAL_BYTES, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self._limit = limit_bytes
        self._reserve = reserve_bytes
        self.cell = ""
        """Id of the request that the journal is about."""
        self._used = 0
        self._is_truncated = False
        self._is_stopped = True

    def begin(self, cell: str, size: int) -> Step:
        """What to do with the first message of a new cell."""
        self.cell = cell
        self._used = 0
        self._is_truncated = False
        self._is_stopped = len(cell.encode("utf-8", "replace")) > ID_BYTES
        if self._is_stopped:
            return Step.SKIP
        self._used = len(head_of(cell)) + size
        return Step.BEGIN

    def choose(self, msg_type: str, cell: str, size: int) -> Step:
        """What to do with any other message.

        Args:
            msg_type: Its type.
            cell: Id of the request it belongs to.
            size: Bytes of its record.
        """
        if self._is_stopped or cell != self.cell or msg_type not in KEPT:
            return Step.SKIP
        reserve = self._reserve_of(msg_type)
        if self._is_truncated and not reserve:
            return Step.SKIP
        if self._used + size <= self._limit + reserve:
            self._used += size
            return Step.APPEND
        if self._is_truncated:
            return Step.SKIP
        self._is_truncated = True
        self._used += len(TRUNCATED)
        return Step.MARK

    def _reserve_of(self, msg_type: str) -> int:
        """What of the reserve a message may use: questions leave half of it to the end."""
        if msg_type in ENDINGS:
            return self._reserve
        return self._reserve // 2 if msg_type in QUESTIONS else 0

    def stop(self) -> None:
        """Nothing more of this cell: a write has failed."""
        self._is_stopped = True


def head_of(cell: str) -> bytes:
    """The beginning of a cell's journal."""
    name = cell.encode("utf-8", "replace")
    return _STATE.pack(MAGIC, GOOD, len(name)) + name


def record_of(frames: Sequence[bytes]) -> list[bytes]:
    """A message as it is written, in pieces.

    Args:
        frames: From the signature to the content.
    """
    return [_PREFIX.pack(MESSAGE, *map(len, frames)), *frames]


class JournalFile:
    """The file, opened anew only where somebody else has touched it.

    Args:
        path: In a folder that the user's code can write, too.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._identity = (0, 0)

    def begin(self, cell: str, record: list[bytes]) -> None:
        """Start with a new cell.

        Raises:
            OSError: That failed.
        """
        if self._file is None or not self._is_there():
            self._file = self._open()
        # Emptied, not replaced: ext4 brings a file that replaces another to the disk at once.
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self.append([head_of(cell), *record])

    def append(self, pieces: list[bytes]) -> None:
        """Write at the end, by one call, so that no reader sees less than it must wait for.

        Raises:
            OSError: That failed, or not all was written.
        """
        assert self._file is not None
        if os.writev(self._file, pieces) != sum(map(len, pieces)):
            raise OSError("short write")

    def give_up(self) -> None:
        """Leave word in the file that it is not complete; in place, which needs no room."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._file, BROKEN, _STATE_AT)

    def _is_there(self) -> bool:
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _open(self) -> int:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        # Always one of our own making: no link, FIFO or file of the user's is ever written to.
        Path(self._path).unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        made = os.fstat(file)
        self._identity = (made.st_dev, made.st_ino)
        return file


class Journal:
    """Takes what the kernel's threads publish.

    Args:
        file: Where it goes.
        is_cell: Whether a request, by its id, is a user's cell: one that goes into the history.
        selection: Its limits.
    """

    def __init__(
        self,
        file: JournalFile,
        is_cell: Callable[[str], bool],
        selection: Selection | None = None,
    ) -> None:
        self._file = file
        self._is_cell = is_cell
        self._selection = selection or Selection()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def take(self, msg_type: str, parent: dict[str, Any], frames: Sequence[bytes]) -> None:
        """Note a message that is about to be sent; never raises.

        Args:
            msg_type: Its type.
            parent: Its parent header.
            frames: From the signature to the content.
        """
        # Forked children have the file, too; what they publish comes by way of the kernel.
        if msg_type not in KEPT or os.getpid() != self._pid:
            return
        try:
            with self._lock:
                self._note(msg_type, parent, frames)
        except Exception:  # noqa: BLE001 - of no concern to the user; the file tells the broker
            self._selection.stop()
            self._file.give_up()

    def _note(self, msg_type: str, parent: dict[str, Any], frames: Sequence[bytes]) -> None:
        cell = parent.get("msg_id", "")
        record = record_of(frames)
        size = sum(map(len, record))
        if self._begins(msg_type, parent, cell):
            step = self._selection.begin(cell, size)
        else:
            step = self._selection.choose(msg_type, cell, size)
        if step is Step.BEGIN:
            self._file.begin(cell, record)
        elif step is Step.APPEND:
            self._file.append(record)
        elif step is Step.MARK:
            self._file.append([TRUNCATED])

    def _begins(self, msg_type: str, parent: dict[str, Any], cell: str) -> bool:
        return (
            msg_type == "status"
            and cell != self._selection.cell
            and parent.get("msg_type") == "execute_request"
            and self._is_cell(cell)
        )


def install(app: Any, path: str) -> None:
    """Keep a journal of what an initialised ipykernel application publishes from now on.

    The journal of an earlier kernel stays until the first cell: it tells how that kernel's last
    cell ended.

    Args:
        app: All that it sends is serialised by its ``session``.
        path: Of the file.
    """
    journal = Journal(JournalFile(path), partial(_is_cell, app.kernel))
    serialize = app.session.serialize

    def serialize_and_note(message: dict[str, Any], ident: Any = None) -> list[bytes]:
        frames: list[bytes] = serialize(message, ident)
        journal.take(message["header"]["msg_type"], message["parent_header"], frames[-FRAMES:])
        return frames

    app.session.serialize = serialize_and_note
    ask = app.kernel._input_request  # noqa: SLF001 - the only place that knows of an answer
    pid = os.getpid()

    def ask_and_note(prompt: str, ident: Any, parent: Any, *arguments: Any, **options: Any) -> str:
        if os.getpid() != pid:
            # It has no socket of its own, and would wait for ever.
            raise EOFError(FORKED)
        try:
            answer: str = ask(prompt, ident, parent, *arguments, **options)
        finally:
            _tell_moved_on(app, ident, parent)
        return answer

    app.kernel._input_request = ask_and_note  # noqa: SLF001
    _hear_children(app.iopub_thread, journal)


def _tell_moved_on(app: Any, ident: Any, parent: Any) -> None:
    """Nothing is asked any more: it was answered, or an exception has ended it (``alarm``).

    The broker that asks, and whoever takes the cell over, would go on asking else. Other clients do not
    expect such a message, and are not sent it.
    """
    reply = app.session.msg("input_reply", {}, parent=parent)
    if parent["header"].get("username") == BROKER:
        app.session.send(app.kernel.stdin_socket, reply, ident=ident)
    else:
        app.session.serialize(reply)


def _is_cell(kernel: Any, request: str) -> bool:
    parent = kernel.get_parent("shell")
    if parent["header"]["msg_id"] != request:
        return False
    content = parent["content"]
    silent = content.get("silent", False)
    return not silent and bool(content.get("store_history", True))


def _hear_children(iopub: Any, journal: Journal) -> None:
    """Note what forked children publish, too: it reaches the kernel serialised, over a pipe."""
    pipe = getattr(iopub, "_pipe_in", None)
    if pipe is None:  # it could not be bound: children publish nothing
        return
    handle = iopub._handle_pipe_msg  # noqa: SLF001 - no public way

    def note_and_handle(message: list[bytes]) -> None:
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            start = message.index(DELIMITER) + 1
            frames = message[start : start + FRAMES]
            header, parent = json.loads(frames[1]), json.loads(frames[2])
            if len(frames) == FRAMES:
                journal.take(header["msg_type"], parent, frames)
        handle(message)

    iopub.io_loop.add_callback(pipe.on_recv, note_and_handle)
