"""Text on its way out of a kernel: surrogates, terminal colours, and a bound on its length."""

from __future__ import annotations

import re
from typing import Final

_ESCAPES: Final = re.compile(
    r"\x1b(?:"
    r"\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)"  # OSC: titles, links; bounded so that it stays linear
    r"|[ -/]{0,4}[0-Z\\^-~]"  # two- and three-character escapes
    r")"
)
_CONTINUATION: Final = 0b1000_0000
_CONTINUATION_MASK: Final = 0b1100_0000


def clean(text: str) -> str:
    r"""Text that every encoder takes: a lone surrogate becomes its ``\udcXX`` spelling."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def strip_ansi(text: str) -> str:
    """Text without terminal escape sequences."""
    return _ESCAPES.sub("", text) if "\x1b" in text else text


class BoundedText:
    r"""Text of any length of which the first and the last half of a limit are kept.

    Appending costs time in proportion to what is appended; memory stays below twice
    ``limit_bytes`` plus one appended piece. Control characters (``\r``) are kept as they are.

    Args:
        limit_bytes: UTF-8 bytes kept, head and tail together; at least 2.
    """

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 2:
            raise ValueError("limit_bytes must be at least 2")
        self._tail_limit = limit_bytes // 2
        self._head_limit = limit_bytes - self._tail_limit
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0
        self._head_is_full = False
        self._is_cut = False

    def append(self, text: str) -> None:
        """Add ``text`` at the end; lone surrogates are cleaned."""
        text = clean(text)
        self._total += len(text)
        data = text.encode("utf-8")
        if not self._head_is_full:
            room = self._head_limit - len(self._head)
            if len(data) <= room:
                self._head += data
                return
            room = _boundary_before(data, room)
            self._head += data[:room]
            self._head_is_full = True
            data = data[room:]
        self._tail += data[-2 * self._tail_limit :]
        if len(self._tail) > self._tail_limit:
            self._is_cut = True
        if len(self._tail) > 2 * self._tail_limit:
            del self._tail[: -self._tail_limit]

    @property
    def kept_bytes(self) -> int:
        """Bytes of memory that head and tail take."""
        return len(self._head) + len(self._tail)

    def clear(self) -> None:
        """Forget everything, also the count."""
        self._head.clear()
        self._tail.clear()
        self._total = 0
        self._head_is_full = False
        self._is_cut = False

    @property
    def head(self) -> str:
        """The beginning, whole characters only."""
        return self._head.decode("utf-8")

    @property
    def tail(self) -> str:
        """What follows `head` if nothing is omitted, else the end."""
        kept = self._tail[-self._tail_limit :]
        start = 0
        while start < len(kept) and kept[start] & _CONTINUATION_MASK == _CONTINUATION:
            start += 1
        return kept[start:].decode("utf-8")

    @property
    def total(self) -> int:
        """Characters appended so far."""
        return self._total

    @property
    def omitted(self) -> int:
        """Characters that are in neither `head` nor `tail`."""
        if not self._is_cut:
            return 0
        return max(0, self._total - len(self.head) - len(self.tail))

    @property
    def kept(self) -> str:
        """`head` and `tail`; `omitted` characters are missing between them."""
        return self.head + self.tail

    def text(self, max_chars: int | None = None) -> str:
        """What is kept, with a line in place of what is not.

        Args:
            max_chars: Show at most this many kept characters, half from each end; None for all.
        """
        head, tail = self.head, self.tail
        if max_chars is not None and len(head) + len(tail) > max_chars:
            if not self._is_cut:
                head = tail = head + tail
            for_tail = max(0, max_chars) // 2
            head = head[: max(0, max_chars) - for_tail]
            tail = tail[max(0, len(tail) - for_tail) :]
        omitted = self._total - len(head) - len(tail)
        if not omitted:
            return head + tail
        return f"{head}\n… [{omitted} characters omitted] …\n{tail}"


def _boundary_before(data: bytes, index: int) -> int:
    """The last start of a character at or before ``index``."""
    while index > 0 and data[index] & _CONTINUATION_MASK == _CONTINUATION:
        index -= 1
    return index
