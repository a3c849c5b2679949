"""`Fate`: what became of a session's variables when its kernel ended, once that is known; no I/O."""

from __future__ import annotations

import anyio

LIMIT_S = 1.2
"""Time the answer about a dead kernel waits for the new one, to say what is back: a replacement takes
0.3 s, restoring a usual namespace as much. The cause of death is told within 2 s in any case."""


class Fate:
    """Between the death of a kernel and the first answer of the next one.

    `open` with the death, `settle` with what the next kernel brought back; `told` waits in between.
    """

    def __init__(self) -> None:
        self.cause = ""
        """How the kernel ended; empty while one serves."""
        self._sentence = ""
        self._known = anyio.Event()
        self._known.set()

    def open(self, cause: str) -> None:
        """A kernel has ended; may be said again, more precisely."""
        self.cause = cause
        if self._known.is_set():
            self._sentence = ""
            self._known = anyio.Event()

    def settle(self, sentence: str) -> None:
        """It is known what became of the variables."""
        self.cause, self._sentence = "", sentence
        self._known.set()

    async def told(self, limit_s: float) -> str:
        """What became of the variables; empty if that is not known within ``limit_s`` seconds."""
        with anyio.move_on_after(limit_s):
            await self._known.wait()
        return self._sentence
