"""The tables of the store, and the steps from each version of them to the next.

A version once released is never edited: a change is a further entry of `MIGRATIONS`. Text that a
user or a kernel wrote is a BLOB (see `encoding`); ``select cast(code as text)`` shows it.
"""

from __future__ import annotations

import sqlite3
from typing import Final

APPLICATION_ID: Final = 0x73616765
"""In the file's header, ``sage`` in ASCII: no other program's database is taken for ours."""

_STRICT = " STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
"""Older SQLite knows no strict tables; there the types are not enforced."""

_VERSION_1: Final = (
    f"""
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY NOT NULL,
        name TEXT NOT NULL UNIQUE,
        on_end TEXT NOT NULL,
        hibernate TEXT NOT NULL,
        created TEXT NOT NULL,
        uid INTEGER NOT NULL,
        wire_id TEXT NOT NULL,
        kernelspec TEXT NOT NULL,
        image TEXT NOT NULL,
        memory_bytes INTEGER NOT NULL,
        state TEXT NOT NULL,
        revision INTEGER NOT NULL,
        kernel_generation INTEGER NOT NULL,
        notices BLOB NOT NULL,
        active_at REAL NOT NULL,
        note BLOB NOT NULL
    ){_STRICT}
    """,
    f"""
    CREATE TABLE cells (
        session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        author BLOB NOT NULL,
        request_id BLOB NOT NULL,
        time_limit_s REAL NOT NULL,
        status TEXT NOT NULL,
        msg_id TEXT NOT NULL,
        kernel_generation INTEGER NOT NULL,
        queued_at REAL,
        started_at REAL,
        ended_at REAL,
        execution_count INTEGER,
        stop_reason BLOB NOT NULL,
        failure BLOB,
        ladder BLOB,
        exit BLOB,
        notices BLOB NOT NULL,
        reply_lost INTEGER NOT NULL,
        output_lost INTEGER NOT NULL,
        told INTEGER NOT NULL,
        output_count INTEGER NOT NULL DEFAULT 0,
        output_bytes INTEGER NOT NULL DEFAULT 0,
        payload_text BLOB NOT NULL,
        code BLOB NOT NULL,
        PRIMARY KEY (session, number)
    ){_STRICT}
    """,
    "CREATE INDEX cells_by_request ON cells (session, request_id, number) WHERE request_id != x''",
    "CREATE INDEX cells_unfinished ON cells (session, number) WHERE status IN ('queued', 'running')",
    f"""
    CREATE TABLE outputs (
        session TEXT NOT NULL,
        cell INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        msg_type TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        content BLOB, -- NULL: it lies in a file
        PRIMARY KEY (session, cell, seq),
        FOREIGN KEY (session, cell) REFERENCES cells (session, number) ON DELETE CASCADE
    ){_STRICT}
    """,
    f"""
    CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at REAL NOT NULL,
        session TEXT NOT NULL,
        word TEXT NOT NULL,
        detail BLOB NOT NULL
    ){_STRICT}
    """,
    "CREATE INDEX events_of_session ON events (session)",
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
"""Entry ``n`` holds the statements that lead from version ``n`` to ``n + 1``."""

SCHEMA_VERSION: Final = len(MIGRATIONS)
