"""`Ready`: the moment from which a session ends only by itself or by its broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anyio
    from anyio.abc import TaskStatus


class Ready:
    """A task status that remembers whether it was used.

    From then on whoever cancels the broker does not cancel the session in the scope: it has to save
    itself first, with its kernel, and is ended by the broker's own end.
    """

    def __init__(self, status: TaskStatus[None], scope: anyio.CancelScope) -> None:
        self._status = status
        self._scope = scope
        self.is_set = False

    def started(self, value: None = None) -> None:
        """The session serves."""
        self.is_set = True
        self._scope.shield = True
        self._status.started(value)
