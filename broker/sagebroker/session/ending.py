"""How a session ends: closed, asleep or left as it is."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import anyio.to_thread

from sagebroker.errors import BrokerError
from sagebroker.logs import event
from sagebroker.model import CellStatus, utcnow
from sagebroker.session import outcome

if TYPE_CHECKING:
    from sagebroker.session.desk import Desk
    from sagebroker.session.found import Found
    from sagebroker.session.launch import Launcher
    from sagebroker.session.saving import RowKeeper
    from sagebroker.session.transcript import Transcript

End = Literal["close", "hibernate", "stay", "leave"]
"""``stay``: its kernel goes on; ``leave``: it is as it was found, for it was never reached."""

_log = logging.getLogger(__name__)


class Ending:
    """Leaves behind what is to stay of a session, and nothing else."""

    def __init__(
        self,
        found: Found,
        desk: Desk,
        keeper: RowKeeper,
        launcher: Launcher,
        transcript: Transcript,
    ) -> None:
        self._folder = found.folder
        self._is_new = found.is_new
        self._was_asleep = found.was_asleep
        self._found_notices = found.row.notices
        self._desk = desk
        self._keeper = keeper
        self._launcher = launcher
        self._transcript = transcript
        self.wish: End | None = None
        """What somebody wants to become of it; of several wishes the first counts."""
        self.was_ready = False
        """A kernel has answered."""
        self.has_launched = False
        """A container was made, rather than found."""
        self.is_removed = False
        """Whether container and files are gone."""

    async def run(self) -> None:
        """End it; what cannot be done now is logged, and done by a later search for orphans."""
        how = self._how()
        if how != "leave":
            self._desk.queue.drop_all("closed", outcome.NOT_RUN)
        if how in ("close", "hibernate") and (cell := self._desk.abandoned) is not None:
            cell.stop_reason = "closed"
            cell.notices.append(outcome.CLOSED)
            cell.finish(CellStatus.INTERRUPTED)
        try:
            if how == "close":
                await self._close()
            elif how == "leave":
                await self._leave()
            else:
                await self._write(how)
        except BrokerError as error:
            _log.warning("Session %s did not end cleanly: %s", self._keeper.row.id, error)
        finally:
            await anyio.to_thread.run_sync(self._folder.unlock)

    async def unsign(self) -> None:
        """It has begun to end: who wants it waits for that, instead of being told that it is served."""
        await anyio.to_thread.run_sync(self._folder.unsign)

    async def discard(self) -> bool:
        """Remove the container; False where that has to be tried again."""
        try:
            await self._launcher.discard(self._keeper.row.id)
        except BrokerError as error:
            # The sweep of orphans tries again; the keeper's lease ends what it cannot reach.
            _log.warning(
                "The container of session %s is not removed yet: %s", self._keeper.row.id, error
            )
            return False
        return True

    def _how(self) -> End:
        if self.wish is not None and (self.was_ready or self.wish == "close"):
            return self.wish
        if self.was_ready:
            # By a fault of ours, or the caller's cancellation.
            return "close" if self._keeper.row.on_end == "close" else "stay"
        return "close" if self._is_new else "leave"

    async def _close(self) -> None:
        # First the word that it is to go: whatever fails then, the sweep goes on with it.
        try:
            await self._keeper.change(on_end="close", state="stopping")
        except BrokerError as error:
            # No reason to keep anything: on a full disk it is this that makes room.
            _log.warning("Session %s is removed all the same: %s", self._keeper.row.id, error)
        if await self.discard():
            kernel_folder = self._launcher.kernel_folder(self._keeper.row.id)
            # Before the row: of a process that is killed in between nobody would know what it has left.
            await anyio.to_thread.run_sync(kernel_folder.delete_endpoint)
            await anyio.to_thread.run_sync(self._folder.delete)
            self.is_removed = True
            # A row that stays is removed by whoever finds it without a folder.
            await self._keeper.remove()

    async def _leave(self) -> None:
        if self.has_launched:
            await self.discard()
        if self._was_asleep and self._keeper.row.state != "hibernated":
            # Nobody has heard that it was awake: the next wake tells it.
            await self._keeper.change(state="hibernated", notices=self._found_notices)

    async def _write(self, how: End) -> None:
        await self._transcript.write()
        fields: dict[str, object] = {
            "notices": tuple(self._desk.untold()),
            "active_at": utcnow().timestamp(),
        }
        if how == "hibernate":
            if self._keeper.row.on_end == "close":
                # It was to go with its broker; what sleeps is to be found again.
                fields["on_end"] = "hibernate"
            await self._keeper.change(state="hibernated", **fields)
            await self._keeper.note("session.hibernated")
            await self.discard()
            _log.info(
                "Session %s sleeps",
                self._keeper.row.name,
                extra=event("session.hibernated", session=self._keeper.row.id),
            )
        else:
            await self._keeper.change(**fields)
