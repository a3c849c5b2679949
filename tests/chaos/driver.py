"""A broker's client that is killed: ``python -m tests.chaos.driver STATE RUNTIME``, a `Plan` as JSON on stdin.

Works on five sessions at once, at random, and tells on stdout what it is about to do and what it was told.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
from tests.chaos.marked_points import POINTS, Marks, say
from tests.chaos.remains import mounts_below

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.errors import BrokerError, CellNotFoundError
from sagebroker.logs import set_up_logging
from sagebroker.model import CellStatus, SessionState
from sagebroker.session.cell import Cell
from sagebroker.session.session import Session

NAMES = ("ada", "emmy", "kurt", "sofia", "evariste")

LIMIT_S = 120.0
"""A hang is told within this; nothing is measured by it."""

CLEAN_LIMIT_S = 90.0
"""After this nothing may be left of sessions that are closed."""

SWEEP_LIMIT_S = 20.0
"""For the first search for orphans to reach its marked point, while nobody works."""

OPERATIONS = {
    "quick": 16,
    "several": 4,
    "printing": 8,
    "gil": 2,
    "interrupt": 3,
    "checkpoint": 3,
    "restart": 2,
    "hibernate": 1,
    "reopen": 1,
    "die": 5,
}
"""Names of `Client`'s methods, and how often each is chosen."""

SEVERAL = 3
"""Cells sent at once: two of them wait."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one life of the driver is to do."""

    life: int
    seed: int
    point: str = ""
    """Where it is killed; empty where its parent does it at any moment."""
    pending: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """By session's id: cells whose end no earlier life was told, by token and number."""
    is_last: bool = False
    """Look at everything, then close everything."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Client:
    """Works on one session."""

    def __init__(self, broker: Broker, name: str, plan: Plan, marks: Marks) -> None:
        self._broker = broker
        self._name = name
        self._plan = plan
        self._marks = marks
        self._random = random.Random(f"{plan.seed} {plan.life} {name}")
        self._count = 0
        self._may_die = name == NAMES[plan.life % len(NAMES)]
        self.session: Session

    async def connect(self) -> None:
        """Open the session; first hear how the cells ended that earlier lives have sent."""
        self.session, created = await self._broker.open_session(self._name)
        self._say("open", name=self._name, created=created)
        for token, number in self._plan.pending.pop(self.session.id, []):
            await self._catch_up(token, number)
        self._tell("told")

    async def work(self, trigger: str) -> None:
        """Do things for ever; after a few, what leads to the marked point."""
        before = self._random.randint(1, 3) if trigger else -2
        while True:
            name = self._choose()
            if before == 0:
                name, self._marks.is_armed = trigger, True
            before -= 1
            self._say("begins", operation=name)
            try:
                with anyio.fail_after(LIMIT_S):
                    await getattr(self, name)()
            except BrokerError as error:
                self._say("refused", operation=name, error=f"{error.code}: {error}")
                if self.session.is_ending:
                    await self.connect()
            else:
                self._say("done", operation=name)
            assert before != -1, f"it was never reached: {self._plan.point}"

    def _choose(self) -> str:
        while True:
            (name,) = self._random.choices(list(OPERATIONS), list(OPERATIONS.values()))
            if name != "die":
                return name
            if self._may_die:
                # Three deaths within a minute are a crash loop, which others test.
                self._may_die = False
                return name

    async def quick(self) -> None:
        await self._ended(*self._submit())

    async def several(self) -> None:
        sent = [self._submit() for _ in range(SEVERAL)]
        for token, cell in sent:
            await self._ended(token, cell)

    async def printing(self) -> None:
        is_marked = self._marks.is_armed and self._marks.point == "cell printing"
        lines = 40 if is_marked else self._random.randint(2, 12)
        await self._ended(*self._submit(lines=lines))

    async def gil(self) -> None:
        token, cell = self._submit("_ = pari('for(i=1,4*10^7,)')")
        if self._marks.point == "kernel holding the GIL":
            while cell.status is CellStatus.QUEUED:
                await anyio.sleep(0.01)
            await anyio.sleep(0.5)
            self._marks.reach("kernel holding the GIL")
        await self._ended(token, cell)

    async def interrupt(self) -> None:
        token, cell = self._submit(lines=40)
        while not cell.outputs.stdout.total:
            await anyio.sleep(0.01)
        done = await self.session.interrupt()
        self._say("interrupted", rung=done and done.rung)
        await self._ended(token, cell)

    async def checkpoint(self) -> None:
        while self.session.info().state is not SessionState.READY:
            # The kernel has died before this, or still runs what an earlier client has sent.
            await anyio.sleep(0.01)
        saved = await self.session.checkpoint(f"life-{self._plan.life}")
        self._tell("saved", number=saved.number, missing=saved.missing, error=saved.error)

    async def restart(self) -> None:
        self._say("restarting")
        answer = await self.session.restart(restore="newest")
        self._tell("restarted", answer=answer)

    async def hibernate(self) -> None:
        self._say("hibernating")
        hindrance = await self.session.hibernate(force=True)
        self._say("hibernated", hindrance=hindrance)
        await self.connect()

    async def reopen(self) -> None:
        self._say("closing")
        answer = await self._broker.close_session(self._name)
        self._say("closed", answer=answer)
        await self.connect()

    async def die(self) -> None:
        await self._ended(*self._submit("__import__('os')._exit(int(3))"))

    async def look(self) -> None:
        """Tell everything there is of the session."""
        sent = self.session.submit(
            "print(__import__('json').dumps({k: int(v) for k, v in globals().items() if k[:2] == 'v_'}))"
        )
        await sent.wait(LIMIT_S)
        log = Path(sys.argv[1]) / "sessions" / self.session.id / "files" / "log"
        self._say(
            "final",
            status=sent.status,
            variables=json.loads(sent.outputs.stdout.text() or "{}"),
            log=log.read_text().split() if log.exists() else [],
            cells=[await self._read(number) for number in range(1, sent.number)],
        )

    async def _read(self, number: int) -> dict[str, Any]:
        cell = await self._broker.read_cell(self._name, number)
        return {"code": cell.code, "msg_id": cell.msg_id, **_end(cell)}

    def _submit(self, middle: str = "", *, lines: int = 0) -> tuple[str, Cell]:
        """A cell that leaves word in a file, does something and sets a variable of its own."""
        self._count += 1
        token = f"{self._plan.life}_{NAMES.index(self._name)}_{self._count}"
        variable, value = f"v_{token}", self._random.randrange(10**9)
        if lines:
            middle = (
                f"_ = [(print('{token} line', i, flush=True), __import__('time').sleep(float(0.1)))"
                f" for i in range({lines})]"
            )
        code = f"print('{token}', file=open('/files/log', 'a'))\n{middle}\n{variable} = {value}"
        stdout = "".join(f"{token} line {i}\n" for i in range(lines))
        self._say("sending", token=token, variable=variable, value=value, stdout=stdout)
        cell = self.session.submit(code)
        self._say("sent", token=token, number=cell.number)
        return token, cell

    async def _ended(self, token: str, cell: Cell) -> None:
        if not await cell.wait(LIMIT_S):
            self._say("hangs", token=token, number=cell.number)
            return
        cell.tell()
        self._tell("ended", token=token, **_end(cell))

    async def _catch_up(self, token: str, number: int) -> None:
        try:
            cell = await self._broker.read_cell(self._name, number)
        except CellNotFoundError:
            self._say("unknown", token=token, number=number)
            return
        if f"'{token}'" in cell.code:
            await self._ended(token, cell)
        else:
            self._say("unknown", token=token, number=number)

    def _say(self, event: str, **fields: Any) -> None:
        say(event, session=self.session.id, **fields)

    def _tell(self, event: str, **fields: Any) -> None:
        self._say(event, **fields, notices=self.session.take_notices())


def _end(cell: Cell) -> dict[str, Any]:
    return {
        "number": cell.number,
        "status": cell.status,
        "stdout": cell.outputs.stdout.text(),
        "output_lost": cell.output_lost,
        "cell_notices": cell.notices,
        "error": cell.failure and f"{cell.failure.ename}: {cell.failure.evalue}",
    }


def remnants(config: BrokerConfig) -> list[str]:
    """Folders and mounts of sessions."""
    sessions = config.state_dir / "sessions"
    return [
        *(str(p) for folder in (sessions, config.runtime_dir) for p in sorted(folder.iterdir())),
        *mounts_below(config.runtime_dir),
    ]


async def finish(broker: Broker, clients: list[Client]) -> None:
    """Look at all sessions, close them, and wait until nothing is left."""
    for client in clients:
        await client.look()
    names = [row.name for row in await broker.stored_sessions()]
    for name in names:
        say("closing for good", name=name, answer=await broker.close_session(name))
    runtime = await broker.runtime()
    left: list[str] = []
    until = time.monotonic() + CLEAN_LIMIT_S
    while time.monotonic() < until:
        containers = await runtime.list(broker.own_labels)
        rows = await broker.stored_sessions()
        left = [*(c.name for c in containers), *(r.name for r in rows), *remnants(broker.config)]
        if not left:
            break
        await anyio.sleep(0.5)
    say("finished", names=names, left=left)


async def main(plan: Plan) -> None:
    marks = Marks(plan.point)
    triggers = {point.name: point.trigger for point in POINTS}
    trigger = triggers.get(plan.point, "")
    marks.is_armed = bool(plan.point) and not trigger
    config = BrokerConfig(state_dir=Path(sys.argv[1]), runtime_dir=Path(sys.argv[2]))
    async with Broker(config, adopt=True) as broker:
        if plan.point.startswith("sweeping"):
            await broker.runtime()
            await anyio.sleep(SWEEP_LIMIT_S)
            raise AssertionError(f"it was never reached: {plan.point}")
        clients = [Client(broker, name, plan, marks) for name in NAMES]
        async with anyio.create_task_group() as tg:
            for client in clients:
                tg.start_soon(client.connect)
        say("up")
        if plan.is_last:
            await finish(broker, clients)
            return
        async with anyio.create_task_group() as tg:
            for index, client in enumerate(clients):
                is_chosen = index == plan.life % len(clients)
                tg.start_soon(client.work, trigger if is_chosen else "")


if __name__ == "__main__":
    set_up_logging("info", as_json=False)
    anyio.run(main, Plan(**json.loads(sys.stdin.readline())))
