"""Memory that a writing process shares with its overseer, to be read when it is dead."""

from __future__ import annotations

import mmap

NOTE_BYTES = 1024
"""Of the memory shared with the writer: its position, and why it has failed."""
POSITION_BYTES = 4
FINISHED = 2**32 - 1
"""Position after the last one: an exit code alone could be that of a user's object."""


class SharedNote:
    """What the writer tells its overseer while it lives, and after it has died."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, NOTE_BYTES)

    @property
    def position(self) -> int:
        """Of the item that is being written."""
        return int.from_bytes(self._memory[:POSITION_BYTES], "little")

    @position.setter
    def position(self, value: int) -> None:
        self._memory[:POSITION_BYTES] = value.to_bytes(POSITION_BYTES, "little")

    @property
    def text(self) -> str:
        """Why the writer has failed."""
        return bytes(self._memory[POSITION_BYTES:]).rstrip(b"\0").decode("utf-8", "replace")

    @text.setter
    def text(self, value: str) -> None:
        room = NOTE_BYTES - POSITION_BYTES
        self._memory[POSITION_BYTES:] = value.encode("utf-8", "replace")[:room].ljust(room, b"\0")
