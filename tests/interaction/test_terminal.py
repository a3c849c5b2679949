"""``sagebroker run`` at a terminal: whoever sits there is asked what a cell asks."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from tests.interaction.raw_client import HANG_GUARD_S
from tests.interaction.test_run_life import LOCAL_RUN, left_in

ALARMED = """
import signal

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    input('Quick! ')
except KeyboardInterrupt:
    pass
print(repr(input('Slow? ')))
"""


class Terminal:
    """A terminal, and the command that runs in it."""

    def __init__(self, own: int, process: Process) -> None:
        self._own = own
        self.process = process
        self.shown = ""

    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._own)[3] & termios.ECHO)

    async def show(self, words: str) -> None:
        while words not in self.shown:
            await anyio.wait_readable(self._own)
            self.shown += os.read(self._own, 4096).decode()

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())


@asynccontextmanager
async def terminal(folder: Path, code: str) -> AsyncIterator[Terminal]:
    own, theirs = os.openpty()
    process = await anyio.open_process(
        [sys.executable, str(LOCAL_RUN), str(folder), code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    try:
        with anyio.fail_after(HANG_GUARD_S):
            yield Terminal(own, process)
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()
        # Not before: what is shown would be lost with the last one that holds it.
        os.close(theirs)
        os.close(own)


async def test_each_question_is_answered_by_a_line(short_dir: Path) -> None:
    async with terminal(short_dir, "print((input('First? '), input('Second? ')))") as seen:
        await seen.show("First? ")
        seen.type("ü b\n")
        await seen.show("Second? ")
        seen.type("\n")
        await seen.show("('ü b', '')")
        await seen.show("cell ended: ok")
    assert left_in(short_dir) == []


async def test_ctrl_d_is_the_end_of_the_input(short_dir: Path) -> None:
    code = "try: input('Q? ')\nexcept EOFError: print('no more')"
    async with terminal(short_dir, code) as seen:
        await seen.show("Q? ")
        seen.type("\x04")
        await seen.show("no more")


@pytest.mark.parametrize("is_answered", [True, False])
async def test_a_password_is_not_shown_and_the_terminal_echoes_again(
    short_dir: Path, is_answered: bool
) -> None:
    code = "import getpass\np = getpass.getpass('Secret: '); print(len(p), 'long')"
    async with terminal(short_dir, code) as seen:
        await seen.show("Secret: ")
        while seen.echoes():
            await anyio.sleep(0.01)
        if is_answered:
            seen.type("hunter2\n")
            await seen.show("7 long")
        else:
            seen.process.send_signal(signal.SIGINT)
            await seen.show("cell ended: interrupted")
        while not seen.echoes():
            await anyio.sleep(0.01)
    assert "hunter2" not in seen.shown


async def test_a_question_that_is_asked_no_more_takes_no_line_from_the_next(
    short_dir: Path,
) -> None:
    async with terminal(short_dir, ALARMED) as seen:
        await seen.show("Slow? ")
        seen.type("mine\n")
        await seen.show("'mine'")
        await seen.show("cell ended: ok")


async def test_where_nobody_sits_a_question_is_the_end_of_the_input(short_dir: Path) -> None:
    command = [sys.executable, str(LOCAL_RUN), str(short_dir), "input('Q? ')"]
    with anyio.fail_after(HANG_GUARD_S):
        done = await anyio.run_process(command, stdin=None, input=b"", check=False)
    assert "nobody is there to answer" in done.stderr.decode()
    assert "cell ended: error" in done.stderr.decode()
