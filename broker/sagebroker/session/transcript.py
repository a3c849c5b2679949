"""`Transcript`: writes a session's cells and their outputs to the store while they come.

Outputs are written every `WRITE_INTERVAL_S` as they arrive, so a crash loses less than 200 ms of
them (and the kernel's journal has even those). A cell's row is on disk before the cell is sent: what
may have been executed is known, whatever happens then.

What the store refuses is kept here and tried again, within bounds, and the session is told once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import anyio

from sagebroker.errors import SessionGoneError, StorageError
from sagebroker.model import wall_clock
from sagebroker.store.records import CellRow

if TYPE_CHECKING:
    from sagebroker.config import SessionConfig, TranscriptConfig
    from sagebroker.protocol.messages import Message
    from sagebroker.protocol.outputs import OutputFold
    from sagebroker.session.cell import Cell
    from sagebroker.store.database import Database
    from sagebroker.store.store import Store

WRITE_INTERVAL_S: Final = 0.1
"""Time between writes of outputs; a write takes about 1 ms (measured, on an ordinary disk)."""

SETTLE_S: Final = 0.02
"""Time that changes are collected: a cell that begins as soon as it is queued is written once, not twice."""

RETRY_INTERVAL_S: Final = 5.0
"""Time between attempts while the store refuses."""

MAX_MESSAGES: Final = 10_000
"""Messages stored of a cell as they came; of one with more its outputs' final state is stored."""

MAX_WAITING_BYTES: Final = 128 * 2**20
"""Outputs of one session that wait for a store that refuses; beyond that those of ended cells go."""

FORGET_INTERVAL: Final = 20
"""Ended cells between two looks at what is to be forgotten."""

OUTPUT_TYPES: Final = frozenset(
    {"stream", "display_data", "execute_result", "update_display_data", "clear_output", "error"}
)

StoredMessage = tuple[str, dict[str, Any]]
"""Type and content."""

_log = logging.getLogger(__name__)


class _Record:
    """What is not stored yet of one cell."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.is_row_due = False
        self.outputs: list[StoredMessage] = []
        self.is_anew = False
        """The outputs here take the place of those that are stored."""
        self.messages = 0
        self.bytes = 0
        self.is_partial = False
        """Messages were passed over: at the end the final state is stored in their place."""

    @property
    def is_due(self) -> bool:
        return self.is_row_due or bool(self.outputs) or self.is_anew


class _Attempt:
    """A write that failed, and may have come to its end all the same: a disk that hangs goes on later."""

    def __init__(self, cells: set[int]) -> None:
        self.cells = cells
        """Numbers of the cells of which something was in it."""
        self.is_over = False
        self.is_done = False
        self.outputs: list[tuple[_Record, list[StoredMessage], int]] = []
        """Of each record its outputs, which are due again, and how many of them were in it."""


class Transcript:
    """See the module. `run` in a task; everything else is called from the same event loop.

    Args:
        store: Where to.
        session: The session's id.
        limits: Of what is kept of one cell.
        retention: Of what is kept of the session.
        on_trouble: Told once, in a sentence, when the store refuses.
        on_stored: Told the numbers of the cells of which something was stored.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        *,
        limits: SessionConfig,
        retention: TranscriptConfig,
        on_trouble: Callable[[str], None],
        on_stored: Callable[[Collection[int]], None],
    ) -> None:
        self._on_stored = on_stored
        self._store = store
        self._session = session
        self._most_bytes = 2 * limits.stream_bytes + limits.display_bytes
        self._retention = retention
        self._on_trouble = on_trouble
        self._records: dict[int, _Record] = {}
        self._due = anyio.Event()
        self._writing = anyio.Lock()
        self._failed: _Attempt | None = None
        self._ended_cells = 0
        self._in_trouble = False

    def changed(self, cell: Cell) -> None:
        """What is stored of ``cell`` is to be written anew."""
        record = self._record(cell)
        record.is_row_due = True
        is_cut = record.messages > 0 and _is_cut(cell.outputs)
        if cell.status.is_final and (record.is_partial or is_cut):
            # What comes back is what was shown, to the character: answers name offsets in it.
            record.outputs, record.is_anew = final_messages(cell.outputs), True
            record.is_partial = False
        self._due.set()

    def add(self, cell: Cell, message: Message) -> None:
        """Take one of the cell's messages; what is no output is passed over."""
        if message.msg_type not in OUTPUT_TYPES:
            return
        record = self._record(cell)
        record.messages += 1
        record.bytes += message.size
        if record.messages > MAX_MESSAGES or record.bytes > self._most_bytes:
            record.is_partial = True
        if not record.is_partial:
            record.outputs.append((message.msg_type, message.content))
            self._due.set()

    def replace_outputs(self, cell: Cell) -> None:
        """What comes from now on is the cell's whole output once more: store it in place of the old."""
        record = self._record(cell)
        record.outputs, record.is_anew = [], True

    def may_hold(self, cell: Cell) -> bool:
        """Whether the store may have the cell from an attempt of which nobody knows the end."""
        failed = self._failed
        return failed is not None and not failed.is_over and cell.number in failed.cells

    async def write(self) -> None:
        """Store everything that is due, on disk when this returns where cells have changed.

        Raises:
            StorageError: The store refuses; what was due is still due.
        """
        async with self._writing:
            await self._learn()
            due = [record for record in self._records.values() if record.is_due]
            if not due:
                return
            rows = [cell_row(self._session, record.cell) for record in due if record.is_row_due]
            outputs = {
                (self._session, record.cell.number): _joined(record.outputs)
                for record in due
                if record.outputs or record.is_anew
            }
            anew = {(self._session, r.cell.number) for r in due if r.is_anew}
            before = [(r, r.is_row_due, r.outputs, r.is_anew) for r in due]
            for record in due:
                record.is_row_due, record.outputs, record.is_anew = False, [], False
            attempt = _Attempt({record.cell.number for record in due})

            def save(db: Database) -> None:
                try:
                    db.save(cells=rows, outputs=outputs, anew=anew)
                    attempt.is_done = True
                finally:
                    attempt.is_over = True

            try:
                # Once begun it ends, whoever is cancelled: what is written twice would be shown twice.
                with anyio.CancelScope(shield=True):
                    await self._store.call(save)
            except BaseException as error:
                self._failed = attempt
                for record, is_row_due, earlier, is_anew in before:
                    record.is_row_due = record.is_row_due or is_row_due
                    if not record.is_anew:
                        record.outputs = earlier + record.outputs
                        record.is_anew = is_anew
                        attempt.outputs.append((record, record.outputs, len(earlier)))
                if isinstance(error, StorageError):
                    self.trouble(error)
                    self._shed()
                raise
            self._in_trouble = False
            self._let_go(due)
            self._on_stored(attempt.cells)

    def _shed(self) -> None:
        """Let go of outputs of ended cells, the oldest first, where too much waits to be stored."""
        waiting = sum(record.bytes for record in self._records.values())
        for record in list(self._records.values()):
            if waiting <= MAX_WAITING_BYTES:
                return
            if record.cell.status.is_final and record.outputs:
                record.outputs, record.is_anew = [], False
                record.cell.output_lost = record.is_row_due = True
                waiting -= record.bytes
                record.bytes = 0

    async def _learn(self) -> None:
        """Let go of what a failed attempt has stored after all: written twice it would be shown twice."""
        if self._failed is None:
            return
        # No call is let in before the last one has come to its end.
        await self._store.call(lambda _: None)
        failed, self._failed = self._failed, None
        if failed.is_done:
            for record, outputs, count in failed.outputs:
                record.cell.is_stored = True
                if record.outputs is outputs:
                    del outputs[:count]
                    record.is_anew = False

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._due.wait()
            await anyio.sleep(SETTLE_S)
            self._due = anyio.Event()
            try:
                await self.write()
                await self._forget()
            except SessionGoneError:
                return
            except StorageError as error:
                _log.warning("The transcript of session %s waits: %s", self._session, error)
                await anyio.sleep(RETRY_INTERVAL_S)
                self._due.set()
            else:
                await anyio.sleep(WRITE_INTERVAL_S)

    def _record(self, cell: Cell) -> _Record:
        record = self._records.get(cell.number)
        if record is None:
            record = self._records[cell.number] = _Record(cell)
        return record

    def _let_go(self, written: list[_Record]) -> None:
        """Forget the records of ended cells, now that they are stored."""
        for record in written:
            record.cell.is_stored = True
            if record.cell.status.is_final and not record.is_due:
                self._records.pop(record.cell.number, None)
                self._ended_cells += 1

    async def _forget(self) -> None:
        if self._ended_cells < FORGET_INTERVAL:
            return
        self._ended_cells = 0
        kept = self._retention
        await self._store.call(
            lambda db: db.forget(self._session, kept.kept_cells, kept.kept_bytes)
        )

    def trouble(self, error: StorageError) -> None:
        """Have it told that the store refuses, unless it has been since it last took something."""
        if not self._in_trouble:
            self._in_trouble = True
            self._on_trouble(
                f"Results cannot be stored at the moment, and are lost if sagebroker ends now: {error}"
            )


def cell_row(session: str, cell: Cell) -> CellRow:
    """What is stored of ``cell``."""
    return CellRow(
        session=session,
        number=cell.number,
        code=cell.code,
        author=cell.author,
        request_id=cell.request_id,
        time_limit_s=cell.time_limit_s,
        status=cell.status,
        msg_id=cell.msg_id,
        kernel_generation=cell.generation,
        queued_at=wall_clock(cell.queued_at),
        started_at=wall_clock(cell.started_at),
        ended_at=wall_clock(cell.ended_at),
        execution_count=cell.execution_count,
        stop_reason=cell.stop_reason,
        failure=None if cell.failure is None else asdict(cell.failure),
        ladder=None if cell.ladder is None else asdict(cell.ladder),
        exit=None if cell.exit is None else asdict(cell.exit),
        notices=tuple(cell.notices),
        payload_text=cell.payload_text,
        reply_lost=cell.reply_lost,
        output_lost=cell.output_lost,
        told=cell.told,
    )


def _is_cut(outputs: OutputFold) -> bool:
    """Whether a cell shows less than its messages hold."""
    return bool(outputs.stdout.omitted or outputs.stderr.omitted or outputs.dropped_displays)


def final_messages(outputs: OutputFold) -> list[StoredMessage]:
    """What is kept of a cell's outputs, as the fewest messages that make it again."""
    messages: list[StoredMessage] = [
        ("stream", {"name": name, "text": stream.text()})
        for name, stream in (("stdout", outputs.stdout), ("stderr", outputs.stderr))
        if stream.total
    ]
    for display in outputs.displays:
        content: dict[str, Any] = {"data": display.data, "metadata": display.metadata}
        if display.display_id is not None:
            content["transient"] = {"display_id": display.display_id}
        messages.append(("execute_result" if display.is_result else "display_data", content))
    if outputs.failure is not None:
        messages.append(("error", asdict(outputs.failure)))
    return messages


def _joined(messages: list[StoredMessage]) -> list[StoredMessage]:
    """The same messages, neighbouring texts of one stream made one."""
    joined: list[tuple[str, dict[str, Any], list[str]]] = []
    for msg_type, content in messages:
        text = content.get("text")
        if msg_type != "stream" or not isinstance(text, str):
            joined.append((msg_type, content, []))
        elif joined and joined[-1][2] and joined[-1][1].get("name") == content.get("name"):
            joined[-1][2].append(text)
        else:
            joined.append((msg_type, content, [text]))
    return [
        (msg_type, {"name": content.get("name"), "text": "".join(texts)} if texts else content)
        for msg_type, content, texts in joined
    ]
