"""`Found`: a session as it was found or made, before it lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagebroker.kernel.host import ContainerHost
    from sagebroker.session.cell import Cell
    from sagebroker.store.folders import SessionFolder
    from sagebroker.store.records import SessionRow


@dataclass(frozen=True, kw_only=True)
class Found:
    """See the module. Its folder is locked by this process."""

    row: SessionRow
    folder: SessionFolder
    is_new: bool = False
    """This broker has made it, rather than finding what an earlier one has left."""
    adopted: ContainerHost | None = None
    """The container that an earlier broker has left running."""
    next_cell: int = 1
    left: Cell | None = None
    """The cell that was sent, or was about to be, when the earlier broker ended."""
    lost: tuple[Cell, ...] = ()
    """Cells that were sent before that one, of whose end nobody has heard."""
    earlier: frozenset[str] = frozenset()
    """Ids of the requests of the newest cells that are stored."""
    queued: tuple[Cell, ...] = ()
    """Cells that waited then; they were never sent."""
    guest_cells: tuple[int, ...] = ()
    """The newest cells, where Jupyter clients have run them, by number."""
    untold: tuple[Cell, ...] = ()
    """Cells that have cost their session something, of which nobody has been told."""

    @property
    def was_asleep(self) -> bool:
        """It was saved, and has no container."""
        return self.row.state == "hibernated"
