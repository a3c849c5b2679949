"""Giving a session its folder and its user. Every function blocks."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Set

from sagebroker.errors import BrokerError, TooManySessionsError
from sagebroker.store.folders import SessionFolder, StateFolder
from sagebroker.store.records import SessionRow

FIRST_SESSION_UID = 200_000
"""Where the broker is root each session has a user of its own, above the ranges of ordinary and
subordinate users of small machines."""

SESSION_UIDS = 65_536

_log = logging.getLogger(__name__)


def reserve(
    state: StateFolder, draft: Callable[[int], SessionRow], taken: Set[int]
) -> tuple[SessionFolder, SessionRow]:
    """A locked folder and a row, not stored yet, for a new session.

    Args:
        state: Where it is made.
        draft: Makes the row for a user id.
        taken: Users of the sessions there are.

    Raises:
        TooManySessionsError: No user id is left for it.
        StorageError: The disk refuses; nothing is left.
    """
    row = draft(choose_uid(taken))
    return state.create(row.id), row


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
