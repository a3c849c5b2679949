"""Standard output and error of a kernel, in small messages and within a budget per cell.

ipykernel's `OutStream` sends whatever has been printed as one message and keeps what it has not
sent yet without a bound. Here the first half of a cell's budget flows as it comes; of the rest only
the end is kept, and sent when the cell is over.
"""

from __future__ import annotations

import array
import codecs
import contextlib
import fcntl
import os
import select
import sys
import termios
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from io import StringIO
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

from ipykernel.iostream import OutStream

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE_BYTES = 2**20
"""Wished capacity of the pipes behind file descriptors 1 and 2 (64 KiB by default): C code that
prints while it holds the interpreter's lock stands still for ever once its pipe is full."""

READ_BYTES = 2**16
"""Read from these pipes at once."""

DRAIN_LIMIT_S = 0.5
"""Longest wait at a cell's end for what its subprocesses and C code have left in the pipes."""
DRAIN_STEP_S = 0.001

CELLS_REMEMBERED = 8
"""Cells whose budget is kept, for threads that print after the end of theirs; each may hold twice
its tail."""

F_SETPIPE_SZ = 1031
"""Of ``fcntl.h``; the `fcntl` module has it from Python 3.10 on Linux, not elsewhere."""


def cost(text: str) -> int:
    """Bytes of a text within a JSON message, where a control character takes six."""
    return len(encode_basestring(text).encode("utf-8", "surrogatepass")) - 2


def fit(text: str, limit: int) -> int:
    """Length of the longest beginning, more or less, that costs at most ``limit`` bytes."""
    length = min(len(text), limit)
    while length > 0:
        needed = cost(text[:length])
        if needed <= limit:
            break
        length = min(length - 1, length * limit // needed)
    return length


def fit_end(text: str, limit: int) -> int:
    """Length of the longest end, more or less, that costs at most ``limit`` bytes."""
    length = min(len(text), limit)
    while length > 0:
        needed = cost(text[-length:])
        if needed <= limit:
            break
        length = min(length - 1, length * limit // needed)
    return length


def pieces(text: str, limit: int) -> Iterator[str]:
    """Cut a text into parts that cost at most ``limit`` bytes each, or one character."""
    start = 0
    while start < len(text):
        window = text[start : start + limit]
        length = max(1, fit(window, limit))
        yield window[:length]
        start += length


def utf8(text: str) -> str:
    """The text without surrogates, which no message can carry, written as escapes."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class CellBudget:
    """What one cell may send on one stream: the head at once, the tail at the end.

    Args:
        limit: Bytes as they stand in the messages; half for the head, half for the tail.
    """

    def __init__(self, limit: int) -> None:
        self._head_left = limit // 2
        self._tail_limit = limit - limit // 2
        self._older = ""
        self._newer = StringIO()
        self._held_bytes = 0
        self._over = False

    def take(self, text: str) -> str:
        """Account for a text; the part of it that is to be sent now."""
        if not self._over:
            needed = cost(text) if len(text) <= self._head_left else self._head_left + 1
            if needed <= self._head_left:
                self._head_left -= needed
                return text
            self._over = True
            length = fit(text, self._head_left)
            self._hold(text[length:])
            return text[:length]
        self._hold(text)
        return ""

    def _hold(self, text: str) -> None:
        # Two halves, the newer growing: constant work per character, at most twice the tail kept.
        self._held_bytes += _bytes_of(text)
        self._newer.write(text[-self._tail_limit :] if self._tail_limit else "")
        if self._newer.tell() >= self._tail_limit:
            self._older = self._newer.getvalue()[-self._tail_limit :] if self._tail_limit else ""
            self._newer = StringIO()

    def finish(self) -> str:
        """What is to be sent at the cell's end: nothing, or the note of the cut and the tail."""
        if not self._held_bytes:
            return ""
        held = self._older + self._newer.getvalue()
        length = fit_end(held, self._tail_limit)
        tail = held[len(held) - length :]
        left_out = self._held_bytes - _bytes_of(tail)
        self._older, self._newer, self._held_bytes = "", StringIO(), 0
        # A cell within the cell, or a thread that goes on, gets what is left and no second tail.
        self._tail_limit -= cost(tail)
        if not left_out:
            return tail
        return f"\n… {left_out} bytes of output left out here …\n{tail}"


@dataclass(frozen=True)
class StreamLimits:
    """Bounds of the streams.

    Attributes:
        chunk_bytes: Most bytes of text in one message.
        cell_bytes: Most bytes of text of one cell on one stream.
    """

    chunk_bytes: int = 65536
    cell_bytes: int = 20_000_000


class BoundedOutStream(OutStream):
    """An `OutStream` that keeps to `limits`."""

    limits = StreamLimits()

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self._budgets: OrderedDict[Any, CellBudget] = OrderedDict()
        self._pipe_lock = threading.Lock()
        super().__init__(*args, **keywords)

    def write(self, string: str) -> int:
        """Take a text into the cell's output."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        with self._buffer_lock:
            now = self._budget().take(string)
            if now:
                super().write(utf8(now))
        return len(string)

    def flush(self) -> None:
        """Have what was printed sent before C code may keep Python's global lock for minutes."""
        super().flush()
        # The first comes back when the messages are in the other thread's queue, behind it; the
        # second goes through that queue.
        super().flush()

    def finish_cell(self) -> None:
        """Let the end of the running cell's output follow, as far as it was held back."""
        self._drain_pipe()
        with self._buffer_lock:
            rest = self._budget().finish()
            if rest:
                super().write(utf8(rest))

    def fileno(self) -> int:
        """The descriptor that leads into this stream, so that a subprocess given it is heard."""
        if self._should_watch:
            return int(self._original_stdstream_fd)
        return int(super().fileno())

    @property
    def _pipe(self) -> int:
        if self._fid is None:
            raise ValueError("no file descriptor is watched")
        return int(self._fid)

    def _budget(self) -> CellBudget:
        cell = self.parent_header.get("msg_id")
        budget = self._budgets.get(cell)
        if budget is None:
            budget = self._budgets[cell] = CellBudget(self.limits.cell_bytes)
            if len(self._budgets) > CELLS_REMEMBERED:
                self._budgets.popitem(last=False)
        return budget

    def _flush_buffers(self) -> Iterator[tuple[dict[str, Any], str]]:
        for parent, data in super()._flush_buffers():
            for piece in pieces(data, self.limits.chunk_bytes):
                yield parent, piece

    def _setup_stream_redirects(self, name: str) -> None:
        super()._setup_stream_redirects(name)
        with contextlib.suppress(OSError):  # a wish: users have a quota of pipe memory
            fcntl.fcntl(self._pipe, F_SETPIPE_SZ, PIPE_BYTES)
        # What was printed must not go to the container's log as well: nothing bounds it there.
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, self._original_stdstream_copy, inheritable=False)
        os.close(nowhere)

    def _watch_pipe_fd(self) -> None:
        """Read what subprocesses and C code print; runs in a thread until the stream closes."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while self._should_watch:
                select.select([self._pipe], [], [])
                with self._pipe_lock:
                    data = os.read(self._pipe, READ_BYTES)
                    if not data or not self._should_watch:
                        return
                    self.write(decoder.decode(data))
        except Exception:  # noqa: BLE001 - told when the stream closes, as the base class does
            self._exc = sys.exc_info()

    def _drain_pipe(self) -> None:
        if not self._should_watch or not self._is_master_process():
            return
        limit = time.monotonic() + DRAIN_LIMIT_S
        waiting = array.array("i", [0])
        while time.monotonic() < limit:
            with self._pipe_lock:
                fcntl.ioctl(self._pipe, termios.FIONREAD, waiting)
            if not waiting[0]:
                return
            time.sleep(DRAIN_STEP_S)
