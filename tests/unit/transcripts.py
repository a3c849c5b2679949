"""A session's transcript with cells that run without a kernel."""

from __future__ import annotations

import json
from typing import Any

from sagebroker.config import MIB, SessionConfig, TranscriptConfig
from sagebroker.model import CellStatus
from sagebroker.protocol.messages import Message
from sagebroker.session.cell import Cell
from sagebroker.session.queue import CellQueue
from sagebroker.session.recall import recall
from sagebroker.session.transcript import Transcript
from sagebroker.store.store import Store

ID = "aaaaaaaaaa"

SMALL = SessionConfig(stream_bytes=10_000, display_bytes=MIB, max_displays=100)
"""Limits that a flood exceeds soon."""


def message(msg_type: str, content: dict[str, Any]) -> Message:
    size = len(json.dumps(content, default=str))
    return Message(channel="iopub", msg_type=msg_type, msg_id="x", content=content, size=size)


class Scene:
    """A session of which nothing but queue and transcript is there."""

    def __init__(
        self,
        store: Store,
        limits: SessionConfig | None = None,
        retention: TranscriptConfig | None = None,
        *,
        next_number: int = 1,
    ) -> None:
        self.store = store
        self.limits = limits or SessionConfig()
        self.troubles: list[str] = []
        self.transcript = Transcript(
            store,
            ID,
            limits=self.limits,
            retention=retention or TranscriptConfig(),
            on_trouble=self.troubles.append,
            on_stored=lambda _: None,
        )
        self.queue = CellQueue(
            "work", self.limits, next_number=next_number, on_change=self.transcript.changed
        )

    def started(self) -> Cell:
        """A cell that has just been sent to a kernel."""
        cell = self.queue.add("code", None)
        assert self.queue.take() is cell
        cell.start("m", 1)
        return cell

    def show(self, cell: Cell, msg_type: str, content: dict[str, Any]) -> None:
        """The cell publishes something."""
        shown = message(msg_type, content)
        cell.outputs.add(shown)
        self.transcript.add(cell, shown)

    def print(self, cell: Cell, text: str, name: str = "stdout") -> None:
        self.show(cell, "stream", {"name": name, "text": text})

    async def end(self, cell: Cell) -> None:
        """The cell ends well, and all of it is stored."""
        cell.finish(CellStatus.OK)
        await self.transcript.write()

    async def outputs(self, cell: Cell) -> list[tuple[str, dict[str, Any]]]:
        """What is stored of the cell's outputs."""
        rows = await self.store.call(lambda db: db.outputs(ID, cell.number))
        return [(row.msg_type, row.content) for row in rows]

    async def texts(self, cell: Cell) -> list[str]:
        """The texts among them."""
        return [content["text"] for _, content in await self.outputs(cell)]

    async def recalled(self, cell: Cell) -> Cell:
        """The cell as a later broker has it."""
        return await self.store.call(lambda db: recall(db, ID, "work", cell.number, self.limits))


def flood_by_size(scene: Scene) -> None:
    """A cell prints more than is stored as it comes."""
    cell = scene.started()
    for n in range(200):
        scene.print(cell, f"{n} " + "x" * 10_000)
