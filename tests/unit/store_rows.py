"""Rows and a place for the store's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sagebroker.model import CellStatus
from sagebroker.store.database import Database
from sagebroker.store.records import CellRow, SessionRow

LARGE = "x" * 300_000
"""Text that makes an output too large for a row."""

STREAM: tuple[str, dict[str, Any]] = ("stream", {"name": "stdout", "text": "1\n"})


def session_row(session_id: str = "aaaaaaaaaa", **fields: Any) -> SessionRow:
    values: dict[str, Any] = {
        "id": session_id,
        "name": f"name-{session_id}",
        "on_end": "hibernate",
        "hibernate": "auto",
        "created": "2026-01-02T03:04:05+00:00",
        "uid": 200_001,
        "wire_id": "w",
        "kernelspec": "sagemath",
        "image": "i:1",
        "memory_bytes": 2**31,
        "state": "ready",
    }
    return SessionRow(**{**values, **fields})


def cell_row(number: int = 1, session: str = "aaaaaaaaaa", **fields: Any) -> CellRow:
    values: dict[str, Any] = {
        "session": session,
        "number": number,
        "code": "1 + 1",
        "author": "mcp",
        "time_limit_s": 60.0,
        "status": CellStatus.OK,
    }
    return CellRow(**{**values, **fields})


def open_store(folder: Path) -> Database:
    """The store in a folder, with the folders of sessions beside it."""
    return Database.open(folder / "store.db", lambda session: folder / "sessions" / session)


def fill(store: Database, folder: Path, cells: int = 3) -> None:
    """One session with some cells, each with an output."""
    (folder / "sessions").mkdir(exist_ok=True)
    store.add_session(session_row())
    numbers = range(1, cells + 1)
    store.save(
        cells=[cell_row(n) for n in numbers],
        outputs={("aaaaaaaaaa", n): [STREAM] for n in numbers},
    )
