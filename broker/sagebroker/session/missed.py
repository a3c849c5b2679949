"""`find_missed`: what a cell asks that was lost with its kernel's channels.

They break where a frame is over the limit, and are rebuilt; what the kernel asks meanwhile reaches nobody, and
it does not ask twice. Its journal has the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from sagebroker.protocol.execution import input_wanted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagebroker.kernel.journal import JournalReader
    from sagebroker.kernel.running import Incarnation
    from sagebroker.model import InputRequest
    from sagebroker.protocol.messages import Message
    from sagebroker.session.cell import Cell

LOOK_INTERVAL_S: Final = 1.0
"""Between looks at the journal, from the first gap on: a question is written a moment before it is sent, and
counts as lost when it has not come by the next look."""


class Questions:
    """What the journal says of a cell's questions, compared with what has come; decides alone."""

    def __init__(self) -> None:
        self._asked: InputRequest | None = None
        self._count = 0
        self._count_before = 0
        self._more = 0
        """How many more questions the journal has than have come."""

    def add(self, messages: Iterable[Message]) -> None:
        """Take what the journal has more."""
        for message in messages:
            if message.channel == "stdin":
                self._asked = input_wanted(message)
                self._count += self._asked is not None

    def missed(self, cell: Cell) -> InputRequest | None:
        """The question that stands and has not come; to be called once for each look."""
        count, self._count_before = self._count_before, self._count
        if (self._asked is None) == (cell.asks is None):
            self._more = self._count - cell.questions
            return None
        # Else it has been answered, and the kernel has not noted that yet.
        if self._asked is None or self._count <= cell.questions + self._more:
            return None
        return self._asked if count == self._count else None


async def find_missed(kernel: Incarnation, cell: Cell, journal: JournalReader) -> None:
    """Have ``cell`` ask what was lost; to be cancelled at its end.

    Args:
        kernel: That runs it.
        cell: One whose messages are received as they come.
        journal: That the kernel keeps of it.
    """
    before = kernel.gaps
    questions = Questions()
    while True:
        await anyio.sleep(LOOK_INTERVAL_S)
        if kernel.gaps == before:
            continue
        while messages := await anyio.to_thread.run_sync(journal.read_new):
            questions.add(messages)
        if journal.msg_id == cell.msg_id and (missed := questions.missed(cell)) is not None:
            cell.ask(missed)
