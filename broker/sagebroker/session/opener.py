"""`Opener`: makes the session that a name means, or finds the one that an earlier broker has left."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from sagebroker.errors import (
    BrokerError,
    NameTakenError,
    SessionGoneError,
    SessionInUseError,
    TooManySessionsError,
)
from sagebroker.logs import event
from sagebroker.model import CellStatus
from sagebroker.protocol.requests import AUTHOR
from sagebroker.session.found import Found
from sagebroker.session.recall import cell_of
from sagebroker.session.reservation import drop, reserve

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig
    from sagebroker.session.launch import Launcher
    from sagebroker.store.database import Database
    from sagebroker.store.folders import SessionFolder, StateFolder
    from sagebroker.store.records import Hibernate, OnEnd, SessionRow
    from sagebroker.store.store import Store

NEWEST_CELLS = 50
"""Cells among which those are looked for of which nobody has been told."""

SWEEP_LIMIT_S = 30.0
"""Time another process may take to remove what a session has left: its container, then its files."""

_log = logging.getLogger(__name__)


async def take_lock(folder: SessionFolder, *, sign: bool = True) -> None:
    """Take the lock of a session; who holds it without having signed it is tidying up.

    Args:
        folder: The session's.
        sign: Write down that this process serves it.

    Raises:
        SessionInUseError: Another process serves it.
        SessionGoneError: Its folder has been removed.
        StorageError: The disk refuses.
    """
    with anyio.move_on_after(SWEEP_LIMIT_S):
        while True:
            try:
                await anyio.to_thread.run_sync(partial(folder.lock, sign=sign))
            except SessionInUseError:
                if await anyio.to_thread.run_sync(folder.owner) is not None:
                    raise
            else:
                return
    await anyio.to_thread.run_sync(partial(folder.lock, sign=sign))


async def remove(row: SessionRow, folder: SessionFolder, launcher: Launcher, store: Store) -> None:
    """Remove a session with its container and files; its folder is locked by us.

    Raises:
        BrokerError: Something is left; its row is, too, so that it is tried again.
    """
    # First the word that it is to go: whoever finds a row without a folder knows then why.
    try:
        await store.call(partial(_mark_closing, session_id=row.id))
    except BrokerError as error:
        # No reason to keep anything: on a full disk it is this that makes room.
        _log.warning("Session %s is removed all the same: %s", row.id, error)
    await launcher.erase(row.id)
    await anyio.to_thread.run_sync(folder.delete)
    await store.call(lambda db: db.remove_session(row.id))


def _mark_closing(db: Database, *, session_id: str) -> None:
    row = db.session(session_id)
    if row is not None:
        db.change_session(row.id, row.revision, on_end="close", state="stopping")


def _add_notice(db: Database, *, session_id: str, sentence: str) -> None:
    row = db.session(session_id)
    if row is not None:
        db.change_session(row.id, row.revision, notices=(*row.notices, sentence))


def _add(db: Database, *, row: SessionRow) -> None:
    db.add_session(row)
    db.add_event("session.opened", row.id, {"name": row.name, "on_end": row.on_end})


class Opener:
    """See the module."""

    def __init__(
        self, config: BrokerConfig, launcher: Launcher, state: StateFolder, store: Store
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._state = state
        self._store = store

    async def make(self, name: str, *, on_end: OnEnd, hibernate: Hibernate) -> Found:
        """Write down that a session is wanted, before the engine hears of it.

        Raises:
            SessionInUseError: Another process has just opened a session of this name.
            TooManySessionsError: There are too many already, or no user id is left for it.
            StorageError: The disk refuses; nothing is left.
        """
        draft = self._launcher.draft(name, on_end=on_end, hibernate=hibernate)
        rows = await self._store.call(lambda db: db.sessions())
        if len(rows) >= (most := self._config.session.max_stored_sessions):
            raise TooManySessionsError(
                f"There are {len(rows)} sessions, those that sleep counted; {most} are allowed.",
                hint="sage_sessions() lists them; sage_close(session=…) removes one that is not needed.",
            )
        taken = {row.uid for row in rows}
        folder, row = await anyio.to_thread.run_sync(partial(reserve, self._state, draft, taken))
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            await self._store.call(partial(_add, row=row))
        except NameTakenError as error:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(drop, folder)
            raise SessionInUseError(
                f"The session {name!r} was opened by another process at this moment.",
                hint="Try again.",
            ) from error
        except BaseException:
            # The thread could not be stopped: what it made is nobody's.
            with anyio.CancelScope(shield=True):
                await self._take_back(folder)
            raise
        return Found(row=row, folder=folder, is_new=True)

    async def free_name(self, base: str) -> str:
        """A name like ``base`` that no session has at this moment."""
        return await self._store.call(lambda db: db.free_name(base))

    async def find(self, name: str) -> Found | None:
        """The session of this name, with what an earlier broker has left of it; None where there is none.

        Raises:
            SessionInUseError: Another process serves it.
            BrokerError: Its container cannot be looked at; nothing was changed.
        """
        row = await self._store.call(lambda db: db.session_named(name))
        if row is None:
            return None
        folder = self._state.folder(row.id)
        try:
            await take_lock(folder)
        except SessionGoneError:
            now = await self._store.call(lambda db: db.session(row.id))
            if now is None:
                return None
            if now.on_end == "close":
                # Its folder goes first when it is closed; perhaps a process was killed over that.
                await self._store.call(lambda db: db.remove_session(row.id))
                return None
            folder = await self._make_folder(now)
        except SessionInUseError as error:
            raise SessionInUseError(
                f"The session {name!r} is served by another sagebroker process (pid "
                f"{await anyio.to_thread.run_sync(folder.owner) or 'unknown'}).",
                hint="Use that client, or end it first; or open a session of another name.",
            ) from error
        try:
            return await self._look(row.id, folder)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(folder.unlock)
            raise

    async def _look(self, session_id: str, folder: SessionFolder) -> Found | None:
        # Read again under the lock: its last owner has written since.
        row = await self._store.call(lambda db: db.session(session_id))
        if row is None:
            await anyio.to_thread.run_sync(folder.unlock)
            return None
        if row.on_end == "close":
            # It was to go with its broker, which was killed.
            await remove(row, folder, self._launcher, self._store)
            return None
        adopted = None
        if row.state != "hibernated":
            adopted = await self._launcher.adopt(row)
        found = await self._store.call(
            partial(self._read, found=Found(row=row, folder=folder, adopted=adopted))
        )
        _log.info(
            "Session %s found (%s)",
            row.name,
            row.state,
            extra=event("session.adopted", session=row.id),
        )
        return found

    async def _make_folder(self, row: SessionRow) -> SessionFolder:
        """A new folder in place of one that was lost; what the store has of the session stays."""
        sentence = (
            f"The folder of session {row.name!r} was lost: its files and saved variables are gone."
        )
        _log.warning(sentence)
        # Before the folder, whose lock nobody would give back if this failed.
        await self._store.call(partial(_add_notice, session_id=row.id, sentence=sentence))
        return await anyio.to_thread.run_sync(self._state.create, row.id)

    def _read(self, db: Database, *, found: Found) -> Found:
        """What the store has of the session's cells. Blocks."""
        limits, row = self._config.session, found.row
        newest = db.cells(row.id, most=NEWEST_CELLS)
        unfinished = [
            cell_of(cell, db.outputs(row.id, cell.number), limits)
            for cell in db.unfinished_cells(row.id)
        ]
        untold = tuple(
            cell_of(cell, (), limits)
            for cell in newest
            if cell.exit is not None and not cell.told and cell.status is not CellStatus.OK
        )
        db.add_event("session.adopted", row.id, {"state": row.state})
        sent = [cell for cell in unfinished if cell.msg_id]
        guests = takewhile(lambda cell: cell.author == AUTHOR, reversed(newest))
        return replace(
            found,
            next_cell=db.next_number(row.id),
            left=sent[-1] if sent else None,
            lost=tuple(sent[:-1]),
            earlier=frozenset(cell.msg_id for cell in newest if cell.status.is_final),
            queued=tuple(cell for cell in unfinished if not cell.msg_id),
            guest_cells=tuple(sorted(c.number for c in guests if c.status.is_final)),
            untold=untold,
        )

    async def _take_back(self, folder: SessionFolder) -> None:
        await anyio.to_thread.run_sync(drop, folder)
        await self._store.call(lambda db: db.remove_session(folder.id))
