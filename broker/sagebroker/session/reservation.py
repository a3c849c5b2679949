"""Giving a session its folder, its user and, where it is kept, its name. Every function blocks."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Set
from contextlib import nullcontext

from sagebroker.errors import BrokerError, SessionInUseError, TooManySessionsError
from sagebroker.store.folders import SessionFolder, SessionRecord, StateFolder

FIRST_SESSION_UID = 200_000
"""Where the broker is root each session has a user of its own, above the ranges of ordinary and
subordinate users of small machines."""

SESSION_UIDS = 65_536

_log = logging.getLogger(__name__)


def reserve(
    state: StateFolder, name: str, draft: Callable[[int], SessionRecord], *, keep: bool
) -> tuple[SessionFolder, SessionRecord]:
    """A locked folder with a record for a new session.

    Args:
        state: Where it is made.
        name: The session's.
        draft: Makes the record for a user id.
        keep: Whether the name is to be the session's alone among all processes.

    Raises:
        SessionInUseError: ``keep``, and another process has just opened a kept session ``name``.
        TooManySessionsError: No user id is left for it.
        StorageError: The disk refuses; nothing is left.
    """
    with state.names_lock() if keep else nullcontext():
        known = [record for f in state.list() if (record := f.read()) is not None]
        if keep and any(record.keep and record.name == name for record in known):
            raise SessionInUseError(
                f"The session {name!r} was opened by another process at this moment.",
                hint="Try again.",
            )
        record = draft(choose_uid({record.uid for record in known}))
        folder = state.create(record.id)
        try:
            folder.write(record)
        except BaseException:
            drop(folder)
            raise
    return folder, record


def drop(folder: SessionFolder) -> None:
    """Take a reservation back; what cannot be removed has no owner any more, and is logged."""
    try:
        folder.delete()
    except BrokerError as error:
        _log.warning("A session that was not opened left something: %s", error)


def choose_uid(taken: Set[int]) -> int:
    """A user for a session: one of its own where we are root, else ourselves.

    Args:
        taken: Users of the sessions there are.

    Raises:
        TooManySessionsError: All are taken.
    """
    if os.geteuid() != 0:
        return os.geteuid()
    free = [u for u in range(FIRST_SESSION_UID, FIRST_SESSION_UID + SESSION_UIDS) if u not in taken]
    if not free:
        raise TooManySessionsError(
            f"There are {SESSION_UIDS} sessions, as many as there are user ids for.",
            hint="Close some with: sagebroker sessions close NAME",
        )
    return secrets.choice(free)
