"""`Wishes`: carries out, between two cells, what callers wish of a session's kernel."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from sagebroker.errors import BrokerError
from sagebroker.kernel import ladder
from sagebroker.session import outcome
from sagebroker.session.sleep import save

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig
    from sagebroker.kernel.folders import KernelFolder, RestoreOrder
    from sagebroker.kernel.kernel import Kernel
    from sagebroker.session.desk import Desk, RestartWish, SaveWish, SleepWish
    from sagebroker.session.transcript import Transcript
    from sagebroker.store.folders import SessionFolder

FRESH_LIMIT_S = 5.0
"""Time for the first checkpoint of a kernel that began without the newest one; a small one takes 0.1 s."""

_log = logging.getLogger(__name__)


class Wishes:
    """See the module."""

    def __init__(
        self,
        desk: Desk,
        folder: SessionFolder,
        kernel_folder: KernelFolder,
        *,
        config: BrokerConfig,
        transcript: Transcript,
    ) -> None:
        self._transcript = transcript
        self._desk = desk
        self._checkpoints = folder.checkpoints
        self._kernel_folder = kernel_folder
        self._config = config
        self.restore: RestoreOrder = "newest"
        """What the next kernel restores."""

    async def replace(self, kernel: Kernel, wish: RestartWish) -> None:
        """Put a new kernel in place of the one that serves."""
        await self.begin_restart(wish)
        done = await ladder.replace(kernel)
        if done.rung == ladder.UNDELIVERED:
            # The kernel may yet end by itself.
            await self._ask_restore("newest")
            wish.end("The container engine does not answer; the kernel was left as it is.")
            self._desk.restart = None

    async def begin_restart(self, wish: RestartWish) -> None:
        """From now on a new kernel is what the wish is for."""
        wish.began = True
        await self._ask_restore(wish.restore)

    async def return_to_newest(self, kernel: Kernel) -> None:
        """Have the kernels to come restore the newest checkpoint again.

        One that began without it first saves what it has: else the state that the user has left would
        come back.
        """
        if self.restore != "newest":
            await save(kernel, self._checkpoints, FRESH_LIMIT_S)
        await self._ask_restore("newest")

    async def save_now(self, kernel: Kernel, wish: SaveWish) -> None:
        """Save the variables as they are between two cells."""
        saved = None
        try:
            limit_s = self._config.checkpoint.time_limit_s
            saved = await save(kernel, self._checkpoints, limit_s, label=wish.label, is_wanted=True)
        finally:
            wish.end(saved)

    async def fall_asleep(self, kernel: Kernel, wish: SleepWish) -> bool:
        """Save everything; whether the session is to end now and sleep."""
        self._desk.sleep = None
        try:
            hindrance = await self._hindrance(kernel, wish)
        except BaseException:
            wish.end("it has ended")
            raise
        if hindrance is not None:
            wish.end(hindrance)
        return hindrance is None

    async def _hindrance(self, kernel: Kernel, wish: SleepWish) -> str | None:
        """Why the session does not sleep now; None when everything is saved that can be."""
        if not wish.is_final:
            try:
                await self._transcript.write()
            except BrokerError as error:
                return f"its results cannot be stored: {error}"
        saved = await save(kernel, self._checkpoints, self._config.hibernation.save_limit_s)
        if kernel.is_dead:
            return "its kernel has ended"
        if len(self._desk.queue) or self._desk.restart is not None or self._desk.saves:
            return "it is in use again"
        if saved.hindrance and not wish.is_forced:
            return saved.hindrance
        # What cannot be saved at all is told when it wakes, by name; that the last changes are not, here.
        if saved.loss:
            self._desk.notices.append(outcome.ended_unsaved(saved.loss))
        wish.end(saved.loss)
        return None

    async def _ask_restore(self, order: RestoreOrder) -> None:
        self.restore = order
        try:
            await anyio.to_thread.run_sync(partial(self._kernel_folder.ask_restore, order))
        except BrokerError as error:
            # No reason to give a kernel up: what it brings back is told truthfully in any case.
            _log.warning("Session %s: %s", self._desk.name, error)
