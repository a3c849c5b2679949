"""Sessions as brokers leave them, for tests of those who find them."""

from __future__ import annotations

from typing import Any

from sagebroker.session.launch import Launcher
from sagebroker.session.opener import Opener
from sagebroker.store.folders import SessionFolder
from sagebroker.store.records import OnEnd, SessionRow
from sagebroker.store.store import Store


async def left_session(
    opener: Opener, launcher: Launcher, name: str = "work", *, on_end: OnEnd = "close"
) -> SessionFolder:
    """A session with a container whose broker has ended."""
    found = await opener.make(name, on_end=on_end, hibernate="auto")
    await launcher.launch(found.row, found.folder, restore="none")
    await opener._store.call(lambda db: db.change_session(found.row.id, 0, state="ready"))
    found.folder.unlock()
    return found.folder


async def stored(store: Store, session: str) -> SessionRow:
    """The row of a session that is stored."""
    row = await store.call(lambda db: db.session(session))
    assert row is not None
    return row


async def change(store: Store, session: str, **fields: Any) -> SessionRow:
    """Change the row of a session as its broker would have."""
    revision = (await stored(store, session)).revision
    return await store.call(lambda db: db.change_session(session, revision, **fields))


async def names(store: Store) -> list[str]:
    """Of the sessions that are stored."""
    return sorted(row.name for row in await store.call(lambda db: db.sessions()))


async def refuse_writes(store: Store, *, refusing: bool = True) -> None:
    """Have the file refuse every change from now on, as one does that can only be read."""
    await store.call(lambda db: db._sql.execute(f"PRAGMA query_only = {int(refusing)}"))
