"""Where a broker is killed: hooks that the driver hangs into the product, named for what has happened by then.

A hook kills its own process with SIGKILL, so that nothing at all runs after the point.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sagebroker.container.docker import DockerRuntime
from sagebroker.kernel.channels import ChannelSet
from sagebroker.kernel.host import ContainerHost
from sagebroker.session import orphans
from sagebroker.session.cell import Cell
from sagebroker.session.ending import Ending
from sagebroker.session.launch import Launcher
from sagebroker.session.saving import RowKeeper
from sagebroker.session.transcript import Transcript
from sagebroker.store.database import Database
from sagebroker.store.folders import SessionFolder
from sagebroker.store.sqlite_file import SqliteFile

STREAMS_BEFORE_DEATH = 3
"""Messages of output after which a printing cell loses its broker."""


@dataclass(frozen=True)
class Point:
    """A marked point, and what the driver does to reach it."""

    name: str
    trigger: str
    """The operation that leads there; empty where the driver's start does."""
    fault: int
    """Its number in the list of faults that the design is tested against."""


POINTS = (
    Point("folder made, row not stored", "reopen", 16),
    Point("row stored, container not created", "reopen", 16),
    Point("container created, not started", "reopen", 17),
    Point("container started, kernel not ready", "reopen", 18),
    Point("container started for a session that wakes", "hibernate", 18),
    Point("cell stored, not sent", "quick", 20),
    Point("cell sent", "quick", 20),
    Point("cell printing", "printing", 20),
    Point("following the cell of a killed broker", "", 20),
    Point("kernel holding the GIL", "gil", 20),
    Point("cell ended, its end not stored", "quick", 20),
    Point("kernel told to make way for a new one", "restart", 20),
    Point("checkpoint asked for", "checkpoint", 20),
    Point("to be closed, container still there", "reopen", 21),
    Point("sweeping what was to be closed", "", 22),
    Point("to be closed, folder still there", "reopen", 21),
    Point("folder gone, row still there", "reopen", 21),
    Point("variables saved, session not asleep", "hibernate", 21),
    Point("asleep, container still there", "hibernate", 21),
    Point("asleep, container gone", "hibernate", 21),
    Point("sweeping", "", 22),
    Point("adopting", "", 22),
    Point("in a transaction of a cell", "quick", 23),
    Point("in a transaction of a session", "hibernate", 23),
)
"""In the order in which they are visited: two of them find what the one before has left."""


def say(event: str, **fields: Any) -> None:
    """One line on stdout, all of it or nothing."""
    os.write(1, (json.dumps({"event": event, **fields}) + "\n").encode())


class Marks:
    """Kills this process at one point, once it is armed."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.is_armed = False
        self._streams = 0
        if point:
            self._hang_in()

    def reach(self, point: str) -> None:
        """Die here if this is the point."""
        if self.is_armed and point == self.point:
            say("killed", point=point)
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)

    def _hang_in(self) -> None:
        self._before(Database, "add_session", "folder made, row not stored")
        self._before(DockerRuntime, "create", "row stored, container not created")
        self._before(DockerRuntime, "start", "container created, not started")
        self._after(DockerRuntime, "start", "container started, kernel not ready")
        self._after(DockerRuntime, "start", "container started for a session that wakes")
        self._before(Cell, "finish", "cell ended, its end not stored", when=_is_well)
        self._after(ContainerHost, "replace", "kernel told to make way for a new one")
        self._before(Ending, "discard", "to be closed, container still there", when=_closes)
        self._before(SessionFolder, "delete", "to be closed, folder still there")
        self._before(RowKeeper, "remove", "folder gone, row still there")
        self._before(RowKeeper, "change", "variables saved, session not asleep", when=_falls_asleep)
        self._after(RowKeeper, "change", "asleep, container still there", when=_falls_asleep)
        self._after(Ending, "discard", "asleep, container gone", when=_sleeps)
        self._before(orphans, "remove", "sweeping what was to be closed")
        self._before(orphans, "_is_blank", "sweeping")
        self._before(orphans.Sweep, "_remove_unneeded", "sweeping")
        self._after(Launcher, "adopt", "adopting")
        self._before(ChannelSet, "send", "cell stored, not sent", when=_is_cell)
        self._after(ChannelSet, "send", "cell sent", when=_is_cell)
        self._after(ChannelSet, "send", "checkpoint asked for", when=_is_question)
        self._after(Transcript, "add", "cell printing", when=self._has_printed)
        self._after(
            Transcript, "add", "following the cell of a killed broker", when=self._has_printed
        )
        self._in_transactions()

    def _before(
        self, owner: Any, name: str, point: str, *, when: Callable[..., bool] | None = None
    ) -> None:
        original = getattr(owner, name)

        # Not a coroutine itself: what it returns is awaited, or is not, as before.
        @functools.wraps(original)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            if when is None or when(*args, **kwargs):
                self.reach(point)
            return original(*args, **kwargs)

        setattr(owner, name, hooked)

    def _after(
        self, owner: Any, name: str, point: str, *, when: Callable[..., bool] | None = None
    ) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            counts = when is None or when(*args, **kwargs)
            result = original(*args, **kwargs)
            if hasattr(result, "__await__"):
                return self._awaited(result, point if counts else "")
            if counts:
                self.reach(point)
            return result

        setattr(owner, name, hooked)

    async def _awaited(self, result: Any, point: str) -> Any:
        value = await result
        self.reach(point)
        return value

    def _in_transactions(self) -> None:
        """Between BEGIN and COMMIT, when everything is written."""
        original = SqliteFile._writing
        kinds: list[str] = []

        @contextmanager
        def writing(file: SqliteFile, *, durable: bool = True) -> Iterator[Any]:
            with original(file, durable=durable) as sql:
                yield sql
                self.reach(f"in a transaction of a {kinds[-1] if kinds else ''}")

        SqliteFile._writing = writing  # type: ignore[method-assign, assignment]
        for name, kind in (("save", "cell"), ("change_session", "session")):
            self._noting(Database, name, kinds, kind)

    def _noting(self, owner: Any, name: str, kinds: list[str], kind: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            kinds.append(kind)
            try:
                return original(*args, **kwargs)
            finally:
                kinds.pop()

        setattr(owner, name, hooked)

    def _has_printed(self, _: Transcript, cell: Cell, message: Any) -> bool:
        # Only cells that go on for long: the next broker is to find this one running.
        if self.is_armed and message.msg_type == "stream" and "sleep" in cell.code:
            self._streams += 1
        return self._streams >= STREAMS_BEFORE_DEATH


def _is_well(cell: Cell, status: Any, *_: Any) -> bool:
    return bool(status == "ok")


def _falls_asleep(keeper: RowKeeper, **fields: Any) -> bool:
    return fields.get("state") == "hibernated"


def _closes(ending: Ending) -> bool:
    return ending._keeper.row.on_end == "close"


def _sleeps(ending: Ending) -> bool:
    return ending._keeper.row.state == "hibernated"


def _is_cell(channels: Any, channel: str, kind: str, content: Any, **_: Any) -> bool:
    return kind == "execute_request" and not content["silent"]


def _is_question(channels: Any, channel: str, kind: str, content: Any, **_: Any) -> bool:
    return kind == "execute_request" and bool(content["silent"])
