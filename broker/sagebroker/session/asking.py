"""Answers to cells that ask something (``input()``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sagebroker.errors import NoInputWantedError
from sagebroker.protocol.text import clean

if TYPE_CHECKING:
    from sagebroker.session.cell import Cell
    from sagebroker.session.desk import Desk

MAX_ANSWER_CHARS: Final = 1_000_000
"""As many as a cell's code may have."""

END_OF_FILE: Final = "\x04"
"""The answer that makes ``input()`` raise `EOFError`, as Ctrl-D does; a convention of ipykernel."""


def unwanted(session: str, cell: Cell) -> NoInputWantedError:
    """The error for an answer to a cell that asks nothing."""
    return NoInputWantedError(
        f"Cell {cell.number} of session {session!r} does not wait for input: it is {cell.word}.",
        hint=f"sage_wait(session={session!r}, cell={cell.number}) without an answer shows it.",
    )


async def answer(desk: Desk, cell: Cell, text: str) -> None:
    """Answer what a cell asks; the answer is kept nowhere.

    Raises:
        NoInputWantedError: The cell asks nothing, or the answer is too long.
        KernelError: The kernel takes nothing.
    """
    asked = cell.asks
    if asked is None or cell is not desk.current or desk.kernel is None:
        raise unwanted(desk.name, cell)
    if len(text) > MAX_ANSWER_CHARS:
        raise NoInputWantedError(
            f"The answer has {len(text)} characters; {MAX_ANSWER_CHARS} are allowed.",
            hint="Write the data to a file with sage_files, and answer with its name.",
        )
    # Before it is sent: a second answer would be one to the next question.
    cell.ask(None)
    try:
        await desk.kernel.answer(clean(text))
    except BaseException:
        # Nothing of it was sent: it is asked on, also where the caller has gone.
        cell.ask(asked)
        raise
    desk.touch()
