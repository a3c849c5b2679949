"""Bringing a broker to one certain moment: it is killed there, or held until something else has happened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tests.cells import LIMIT_S

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.session.cell import Cell
from sagebroker.session.ending import Ending
from sagebroker.session.session import Session

Doomed = Callable[[], AbstractAsyncContextManager[Broker]]
"""Makes a broker that is as good as killed when it is left."""


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A broker that ends inside does nothing for its sessions but to lose their locks."""

    async def leave(session: Session) -> None:
        await session._life.stop("stay")

    async def write_nothing(ending: Ending) -> None:
        await anyio.to_thread.run_sync(ending._folder.unlock)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "leave", leave)
        patch.setattr(Ending, "run", write_nothing)
        yield


class Held:
    """Calls of one asynchronous function wait at its beginning, from now on until `go_on` is set.

    Args:
        monkeypatch: Of the test.
        owner: Class, module or object that has the function.
        name: Of the function.
        only: Which calls, by their arguments; each by default.
        at_end: They wait when everything is done, and cannot be cancelled there.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: object,
        name: str,
        *,
        only: Callable[..., bool] = lambda *_, **__: True,
        at_end: bool = False,
    ) -> None:
        self._reached = anyio.Event()
        self.go_on = anyio.Event()
        original = getattr(owner, name)

        async def held(*args: Any, **kwargs: Any) -> Any:
            if not only(*args, **kwargs):
                return await original(*args, **kwargs)
            if not at_end:
                self._reached.set()
                await self.go_on.wait()
                return await original(*args, **kwargs)
            done = await original(*args, **kwargs)
            self._reached.set()
            with anyio.CancelScope(shield=True):
                await self.go_on.wait()
            return done

        monkeypatch.setattr(owner, name, held)

    async def reached(self) -> None:
        """Return when a call has come."""
        with anyio.fail_after(LIMIT_S):
            await self._reached.wait()


async def until(is_so: Callable[[], object]) -> None:
    """Return when it is so."""
    with anyio.fail_after(LIMIT_S):
        while not is_so():
            await anyio.sleep(0.01)


def folder_of(config: BrokerConfig, session: Session) -> Path:
    return config.state_dir / "sessions" / session.id


def files_of(config: BrokerConfig, session: Session) -> Path:
    return folder_of(config, session) / "files"


async def shown(cell: Cell, text: str) -> None:
    """Return when the cell has printed the text."""
    await until(lambda: text in cell.outputs.stdout.text())


async def stored(*cells: Cell) -> None:
    """Return when the store knows of the cells."""
    await until(lambda: all(cell.is_stored for cell in cells))
