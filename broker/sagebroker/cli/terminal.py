"""What a cell asks (``input()``), put to whoever sits at the terminal."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

from sagebroker.cli.console import err, write
from sagebroker.session.asking import END_OF_FILE

if TYPE_CHECKING:
    from sagebroker.model import InputRequest

_LINE_BYTES: Final = 4096
"""The longest line that a terminal hands over."""


async def read_answer(asked: InputRequest) -> str:
    """A line from the terminal; the end of the input where nobody is there. To be cancelled at will.

    Raises:
        OutputLostError: The question cannot be shown.
    """
    if not sys.stdin.isatty():
        err.print(
            "The code asks for input, and nobody is there to answer: it gets an EOFError.",
            style="yellow",
        )
        return END_OF_FILE
    terminal = sys.stdin.fileno()
    write(asked.prompt, sys.stderr)
    if not asked.is_password:
        return await _read_line(terminal)
    with _without_echo(terminal):
        return await _read_line(terminal)


async def _read_line(terminal: int) -> str:
    # In no thread: one that reads a terminal cannot be stopped, and would take the next answer.
    line = b""
    while not line.endswith(b"\n"):
        await anyio.wait_readable(terminal)
        piece = os.read(terminal, _LINE_BYTES)
        if not piece:
            break
        line += piece
    return line.decode("utf-8", "replace").removesuffix("\n") if line else END_OF_FILE


@contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    silent = before.copy()
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        write("\n", sys.stderr)
