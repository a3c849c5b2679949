"""A broker over puppets, callers of it, what goes wrong around it, and what must hold whatever has happened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import anyio
import zmq.asyncio
from anyio.abc import TaskGroup, TaskStatus
from tests.unit.puppets import Puppet, PuppetEngine

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, HibernationConfig, KernelConfig, SessionConfig
from sagebroker.errors import BrokerError
from sagebroker.kernel.folders import ENDPOINT_SUFFIX
from sagebroker.model import CellStatus, SessionState
from sagebroker.session.cell import Cell
from sagebroker.session.launch import container_name
from sagebroker.session.session import Session
from sagebroker.testing.fake_runtime import FakeContainer

IMAGE = "sagebroker/puppet:1"

HANG_S = 60.0
"""Nothing that is asked for may take longer, whatever is broken."""
PATIENCE_S = 0.3
"""A caller's, while things may be broken; what has not ended then is looked at after all is well."""


class World:
    """The broker, its engine, and what is known of each session's variable."""

    def __init__(self, folder: Path, tasks: TaskGroup, context: zmq.asyncio.Context) -> None:
        self.engine = PuppetEngine(IMAGE, tasks, context)
        self.config = BrokerConfig(
            state_dir=folder / "state",
            runtime_dir=folder / "run",
            kernel=KernelConfig(image=IMAGE, ready_limit_s=5, sigint_waits_s=(0.2, 0.2)),
            session=SessionConfig(max_sessions=2),
            hibernation=HibernationConfig(drain_s=0.05, save_limit_s=2),
        )
        self.broker: Broker
        self.is_killed = False
        self.values: dict[str, set[int | None]] = {}
        """By session id: what its variable may be."""
        self.open_cells: list[Cell] = []
        self._tasks = tasks
        self._leave = anyio.Event()
        self._left = anyio.Event()
        self._count = 0

    # The broker's life.

    async def begin(self) -> None:
        """A broker comes."""
        self._leave, self._left, self.is_killed = anyio.Event(), anyio.Event(), False
        self.broker = await self._tasks.start(self._serve)

    async def end(self, *, killed: bool = False) -> None:
        """It goes, or is killed."""
        self.is_killed = killed
        self._leave.set()
        await self._left.wait()

    async def _serve(self, *, task_status: TaskStatus[Broker]) -> None:
        try:
            async with Broker(self.config, self.engine) as broker:
                task_status.started(broker)
                await self._leave.wait()
        finally:
            self._left.set()

    async def next_broker(self, *, killed: bool) -> None:
        """Another one takes its place, which knows nothing but what is stored."""
        await self.end(killed=killed)
        assert killed or all(cell.status.is_final for cell in self.open_cells)
        # In the store or the journal they go on; here nobody waits for them any more.
        self.open_cells = []
        await self.begin()

    # What callers do.

    async def open(self, name: str) -> None:
        """Open a session, or wake it, or find it again."""
        with suppress_told():
            session, _ = await self.broker.open_session(name)
            self.values.setdefault(session.id, {None})

    async def _session(self, name: str) -> Session | None:
        """The session, opened if that can be."""
        if self.broker.open_one(name) is None:
            await self.open(name)
        return self.broker.open_one(name)

    async def set(self, name: str) -> None:
        """Give a session's variable a new value."""
        session = await self._session(name)
        if session is None:
            return
        self._count += 1
        cell = await self._run(session, f"set {self._count}")
        if cell is not None:
            self.values[session.id].add(self._count)
            self._learn(session, cell)

    async def get(self, name: str) -> None:
        """Look at a session's variable."""
        session = await self._session(name)
        if session is not None:
            cell = await self._run(session, "get")
            if cell is not None:
                self._learn(session, cell)

    async def block(self, name: str) -> None:
        """Begin a cell that does not end by itself."""
        session = await self._session(name)
        if session is not None and session.current is None:
            self._count += 1
            code = f"block {self._count}"
            await self._run(session, code, until=lambda: self.engine.executed[code] > 0)

    async def _run(
        self, session: Session, code: str, until: Callable[[], bool] | None = None
    ) -> Cell | None:
        with suppress_told():
            cell = session.submit(code)
            self.open_cells.append(cell)
            with anyio.move_on_after(PATIENCE_S):
                while not cell.status.is_final and not (until and until()):
                    await anyio.sleep(0.002)
            return cell
        return None

    def _learn(self, session: Session, cell: Cell) -> None:
        """Compare what a cell says with what is known."""
        verb, _, number = cell.code.partition(" ")
        known = self.values[session.id]
        if cell.status is not CellStatus.OK or cell.output_lost:
            return
        if verb == "set":
            self.values[session.id] = {int(number)}
        elif verb == "get":
            text = cell.outputs.stdout.text()
            value = None if text == "None" else int(text)
            assert value in known, f"{value} is none of {known}"

    async def interrupt(self, name: str) -> None:
        """Stop what runs."""
        session = self.broker.open_one(name)
        if session is not None:
            with anyio.move_on_after(PATIENCE_S):
                await session.interrupt()

    async def let_go(self, name: str) -> None:
        """Let a cell that blocks end by itself."""
        puppet = self.puppet(name)
        if puppet is not None:
            puppet.let_go.set()

    async def restart(self, name: str, *, restore: bool) -> None:
        """A new kernel."""
        session = self.broker.open_one(name)
        if session is None:
            return
        before = self.values[session.id]
        if not restore:
            self.values[session.id] = {*before, None}
        with suppress_told():
            try:
                await session.restart(restore="newest" if restore else "none")
            except BrokerError as error:
                if "left as it is" in str(error):
                    self.values[session.id] = before
                raise
            # What is made after a restart must outlive the next death.
            await self.set(name)

    async def hibernate(self, name: str) -> None:
        """Let a session sleep."""
        session = self.broker.open_one(name)
        if session is not None:
            with anyio.move_on_after(PATIENCE_S):
                await session.hibernate()

    async def close(self, name: str) -> None:
        """Close a session, open or asleep."""
        with suppress_told():
            await self.broker.close_session(name)

    async def sweep(self) -> None:
        """Search for orphans, by whatever list the engine gives."""
        with suppress_told():
            await self.broker._upkeep._sweep.run({s.id for s in self.broker.sessions()})

    # What goes wrong.

    def container(self, name: str) -> FakeContainer | None:
        """The container of an open session."""
        session = self.broker.open_one(name)
        if session is None:
            return None
        found = [c for c in self.engine.containers.values() if c.name == container_name(session.id)]
        return found[0] if found else None

    def puppet(self, name: str) -> Puppet | None:
        """What runs in it."""
        container = self.container(name)
        return None if container is None else self.engine.puppets.get(container.name)

    async def kill_kernel(self, name: str) -> None:
        """A segmentation fault."""
        puppet = self.puppet(name)
        if puppet is not None:
            puppet.die(11)

    async def kill_container(self, name: str, how: str) -> None:
        """Somebody ends or removes the container, or hides it from lists."""
        container = self.container(name)
        if container is None:
            return
        if how == "vanish":
            await self.engine.vanish(container.id)
        elif how == "die":
            await self.engine.die(container.id)
        else:
            container.hidden = True

    async def disturb_events(self, how: str) -> None:
        """The engine's events get lost or come twice."""
        if how == "lose":
            self.engine.lose_events(3)
        elif how == "repeat":
            self.engine.repeat_events(3)
        else:
            self.engine.break_events()

    # What must hold.

    async def heal(self) -> None:
        """All faults end; then every session answers, and nothing is there that nobody owns."""
        self.engine.heal()
        for session in self.broker.sessions():
            await self._answers(session)
        for row in await self.broker.stored_sessions():
            # Left awake by a broker that was killed; one that was being closed is the sweep's.
            is_awake = row.state != "hibernated" and row.on_end != "close"
            if is_awake and self.broker.open_one(row.name) is None:
                await self._found_again(row.name)
        for cell in self.open_cells:
            with anyio.fail_after(HANG_S):
                await cell.wait(HANG_S)
            assert cell.status.is_final, f"{cell.code} never ends"
            self._is_told(cell)
        self.open_cells = []
        assert [
            code for code, times in self.engine.executed.items() if times > 1 and code != "get"
        ] == []
        await self._is_tidy()

    async def _found_again(self, name: str) -> None:
        """A session that nobody serves is taken over, if need be in place of one that answers."""
        sessions = self.broker.sessions()
        if len(sessions) == self.config.session.max_sessions:
            assert await sessions[0].hibernate(force=True) == ""
        session, _ = await self.broker.open_session(name)
        self.values.setdefault(session.id, {None})
        await self._answers(session)

    async def _answers(self, session: Session) -> None:
        """A session serves, or says why not and serves after a restart, with the value it has to have."""
        if session.current is not None or len(self._waiting(session)):
            with anyio.fail_after(HANG_S):
                while any(not cell.status.is_final for cell in self._waiting(session)):
                    await session.interrupt()
                    await anyio.sleep(0.02)
        while True:
            with anyio.fail_after(HANG_S):
                while session.info().state is SessionState.STARTING:
                    await anyio.sleep(0.01)
            if session.info().state is SessionState.FAILED:
                assert session.info().note.endswith((".", "again."))
                await session.restart(restore="newest")
            if session.is_ending:
                return
            try:
                cell = session.submit("get")
            except BrokerError:
                continue
            with anyio.fail_after(HANG_S):
                assert await cell.wait(HANG_S)
            self._is_told(cell)
            if cell.status is CellStatus.OK:
                self._learn(session, cell)
                return

    def _waiting(self, session: Session) -> list[Cell]:
        return [c for c in session._desk.queue._cells.values() if not c.status.is_final]

    def _is_told(self, cell: Cell) -> None:
        """A cell that did not end well says why; one that was not run was not."""
        if cell.status is CellStatus.OK:
            assert self.engine.executed[cell.code] >= 1
            return
        assert cell.notices or cell.failure, f"{cell} says nothing"
        if any("not run" in notice for notice in cell.notices) and cell.code != "get":
            assert self.engine.executed[cell.code] == 0, f"{cell} was run"

    async def _is_tidy(self) -> None:
        """Containers are those of the active sessions, once the search for orphans has been."""
        with anyio.fail_after(HANG_S):
            while True:
                await self.sweep()
                active = {
                    container_name(s.id)
                    for s in self.broker.sessions()
                    if s.info().state is not SessionState.FAILED
                }
                if {c.name for c in self.engine.containers.values()} == active:
                    break
                await anyio.sleep(0.02)
        run = self.config.runtime_dir
        names = {p.name for p in run.iterdir()} if run.exists() else set()
        endpoints = {f"{s.id}{ENDPOINT_SUFFIX}" for s in self.broker.sessions()}
        assert {container_name(n) for n in names - endpoints} == active
        assert endpoints <= names


class suppress_told(AbstractContextManager[None]):  # noqa: N801 - like contextlib's
    """Passes over an error of the broker that is told in sentences; any other is a failure."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, BrokerError):
            return False
        assert str(error).strip().endswith((".", "`")), str(error)
        return True


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    """A world with its first broker; nothing of it is left."""
    with zmq.asyncio.Context() as context:
        async with anyio.create_task_group() as tasks:
            made = World(folder, tasks, context)
            await made.begin()
            try:
                yield made
            finally:
                with anyio.CancelScope(shield=True):
                    await made.end()
                    made.engine.heal()
                    for container in list(made.engine.containers):
                        await made.engine.vanish(container)
                tasks.cancel_scope.cancel()
