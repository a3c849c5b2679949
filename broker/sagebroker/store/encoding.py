"""Rows as values that SQLite takes, and back, without loss; no I/O.

Text that a user or a kernel wrote may hold half a surrogate pair, which is no UTF-8, and NUL, at which
SQLite's own functions stop. So it is stored as bytes, in UTF-8 that lets surrogates pass; JSON the
same way, which also keeps integers of any size.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from sagebroker.model import CellStatus

from .records import CellRow, EventRow, SessionRow

SqlValue = str | bytes | int | float | None

SESSION_COLUMNS: Final = tuple(field.name for field in fields(SessionRow))
CELL_COLUMNS: Final = tuple(
    field.name for field in fields(CellRow) if field.name not in ("output_count", "output_bytes")
)
"""What a caller may write; the rest the store counts itself."""

_TEXT: Final = {"code", "author", "request_id", "stop_reason", "payload_text", "note"}
_JSON: Final = {"failure", "ladder", "exit", "notices", "detail"}
_FLAGS: Final = {"reply_lost", "output_lost", "told"}


def encode_text(text: str) -> bytes:
    """Bytes of any string, with half surrogate pairs and all."""
    return text.encode("utf-8", "surrogatepass")


def encode_json(value: object) -> bytes:
    """JSON text of ``value`` as bytes.

    Raises:
        ValueError: An integer has more digits than Python prints, or a container holds itself.
        TypeError: It is no JSON value.
        RecursionError: It is nested too deeply.
    """
    # Spelt-out surrogates (ensure_ascii) would come back joined where two halves stand side by side.
    return encode_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def decode_json(stored: bytes) -> Any:
    """The value of which `encode_json` made ``stored``.

    Raises:
        ValueError: It is no JSON text.
        RecursionError: It is nested too deeply.
    """
    return json.loads(stored.decode("utf-8", "surrogatepass"))


def to_columns(values: Mapping[str, Any]) -> dict[str, SqlValue]:
    """Fields of a row as what their columns hold. Raises as `encode_json`."""
    return {name: _encode(name, value) for name, value in values.items()}


def session_row(stored: sqlite3.Row) -> SessionRow:
    """The row of which ``stored`` are the columns; what cannot be understood is a `ValueError`."""
    return SessionRow(**_from_columns(stored))


def cell_row(stored: sqlite3.Row) -> CellRow:
    """The row of which ``stored`` are the columns; what cannot be understood is a `ValueError`."""
    values = _from_columns(stored)
    return CellRow(**{**values, "status": CellStatus(values["status"])})


def event_row(stored: sqlite3.Row) -> EventRow:
    """The row of which ``stored`` are the columns; what cannot be understood is a `ValueError`."""
    return EventRow(**_from_columns(stored))


def _from_columns(stored: sqlite3.Row) -> dict[str, Any]:
    return {name: _decode(name, stored[name]) for name in stored.keys()}  # noqa: SIM118 - a row iterates over its values


def _encode(name: str, value: Any) -> SqlValue:
    if name in _TEXT:
        return encode_text(value)
    if name in _JSON:
        return None if value is None else encode_json(value)
    if name in _FLAGS:
        return int(value)
    return str(value) if isinstance(value, str) else value


def _decode(name: str, value: Any) -> Any:
    if name in _TEXT:
        return value.decode("utf-8", "surrogatepass")
    if name in _JSON and value is not None:
        decoded = decode_json(value)
        return tuple(decoded) if name == "notices" else decoded
    return bool(value) if name in _FLAGS else value
