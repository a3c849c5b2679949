"""A command in a terminal of its own, as a person has it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
from anyio.abc import Process

GUARD_S = 60.0
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class Terminal:
    """What is shown and typed there."""

    def __init__(self, own: int, process: Process) -> None:
        self._own = own
        self.process = process
        self.shown = ""

    async def show(self, pattern: str) -> str:
        """Wait until ``pattern`` is shown; returns it, with what stood before, which counts as read."""
        while (found := re.search(pattern, self.shown, re.DOTALL)) is None:
            await anyio.wait_readable(self._own)
            try:
                self.shown += _ESCAPES.sub("", os.read(self._own, 4096).decode("utf-8", "replace"))
            except OSError:
                raise AssertionError(f"{pattern!r} was never shown: {self.shown}") from None
        read, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return read

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())


@asynccontextmanager
async def in_terminal(*command: str, env: Mapping[str, str]) -> AsyncIterator[Terminal]:
    """Run ``python -m command`` in a terminal; it must have ended with code 0 when the block ends."""
    own, theirs = os.openpty()
    process = await anyio.open_process(
        ["setsid", "--ctty", sys.executable, "-m", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
    )
    os.close(theirs)
    terminal = Terminal(own, process)
    try:
        with anyio.fail_after(GUARD_S):
            yield terminal
            assert await process.wait() == 0, terminal.shown
    except TimeoutError as error:
        raise AssertionError(f"shown last: {terminal.shown!r}") from error
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
        os.close(own)
