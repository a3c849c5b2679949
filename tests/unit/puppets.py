"""`PuppetEngine`: an engine in memory whose containers are kernels in this process, quick to make and to kill.

A puppet knows one variable: ``set N`` gives it a value and saves that before it answers, ``get`` prints
it, ``block N`` runs until it is let go or interrupted. It keeps a status, a journal and checkpoints as
the real ones do, so that everything above the engine runs as in earnest.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import zmq.asyncio
from anyio.abc import TaskGroup

from sagebroker.inside.journal import head_of, record_of
from sagebroker.kernel.connection import SOCKET_NAMES, ConnectionInfo
from sagebroker.kernel.folders import CONTAINER_FOLDER, CONTAINER_SOCKETS, SOCKET_PREFIX
from sagebroker.kernel.journal import JOURNAL_FILE
from sagebroker.kernel.keeper import RESTORE_FILE, STATUS_FILE
from sagebroker.testing.fake_runtime import FakeContainer, FakeRuntime
from sagebroker.testing.scripted_kernel import Handler, Request, ScriptedKernel


class PuppetEngine(FakeRuntime):
    """See the module.

    Args:
        image: The only one there is.
        tasks: Where puppets run.
        context: Of their sockets.
    """

    def __init__(self, image: str, tasks: TaskGroup, context: zmq.asyncio.Context) -> None:
        super().__init__(
            images={image: "sha256:" + "0" * 64},
            on_start=self._boot,
            on_signal=self._pass_on,
            on_stop=self._halt,
        )
        self._tasks = tasks
        self.context = context
        self.puppets: dict[str, Puppet] = {}
        """By the container's name."""
        self.executed: Counter[str] = Counter()
        """How often each cell was begun with, by its code."""

    def heal(self) -> None:
        """End every fault."""
        self.is_down = False
        self._failures.clear()
        self._delays_s.clear()
        self.lose_events(0)
        self.repeat_events(0)
        for container in self.containers.values():
            container.hidden = False

    async def _boot(self, container: FakeContainer) -> None:
        puppet = self.puppets[container.name] = Puppet(self, container)
        self._tasks.start_soon(puppet.run)

    async def _pass_on(self, container: FakeContainer, name: str) -> None:
        puppet = self.puppets[container.name]
        if name == "SIGINT":
            puppet.interrupt()
        elif name == "SIGUSR1":
            puppet.die(signal.SIGKILL, requested=True)

    async def _halt(self, container: FakeContainer) -> None:
        puppet = self.puppets.pop(container.name, None)
        if puppet is not None:
            puppet.scope.cancel()
            await puppet.ended.wait()


class Puppet:
    """The keeper and the kernel of one container."""

    def __init__(self, engine: PuppetEngine, container: FakeContainer) -> None:
        self._engine = engine
        places = {mount.target: mount.source for mount in container.spec.mounts}
        self._control = places[CONTAINER_FOLDER]
        self._sockets = places[CONTAINER_SOCKETS]
        self._checkpoints = places["/checkpoint"]
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.let_go = anyio.Event()
        self.value: int | None = None
        self._dead = anyio.Event()
        self._interrupted = anyio.Event()
        self._is_computing = False
        self._status: dict[str, Any] = {
            "state": "warming",
            "generation": 0,
            "interrupts": 0,
            "replacements": 0,
            "oom_kills": 0,
            "last_exit": None,
            "note": "",
        }

    async def run(self) -> None:
        """Run one kernel after the other."""
        try:
            with self.scope:
                while True:
                    await self._incarnation()
        finally:
            self.ended.set()

    async def _incarnation(self) -> None:
        self._dead, self._interrupted = anyio.Event(), anyio.Event()
        self._is_computing = False
        connection = ConnectionInfo.load(self._control / "connection.json")
        kernel = ScriptedKernel(connection.with_prefix(str(self._sockets / SOCKET_PREFIX)))
        kernel.script = Script(self._execute)
        self._status["generation"] += 1
        self._restore()
        with ExitStack() as sockets:
            kernel.bind(sockets, self._engine.context)
            self._tell(state="running")
            async with anyio.create_task_group() as tasks:
                for name in SOCKET_NAMES:
                    tasks.start_soon(kernel.serve, name)
                await self._dead.wait()
                tasks.cancel_scope.cancel()

    def die(self, number: int, *, requested: bool = False) -> None:
        """The kernel is ended by a signal; the next one comes at once."""
        self._status["last_exit"] = {
            "generation": self._status["generation"],
            "signal": number,
            "code": None,
            "oom": False,
            "requested": requested,
        }
        self._dead.set()

    def interrupt(self) -> None:
        """SIGINT."""
        self._tell(interrupts=self._status["interrupts"] + 1)
        if self._is_computing:
            self._interrupted.set()

    async def _execute(self, kernel: ScriptedKernel, request: Request) -> None:
        if request.content.get("silent"):
            asked = request.content.get("user_expressions", {})
            await kernel.answer(request, user_expressions=dict.fromkeys(asked, _settled()))
            return
        cell = _Cell(kernel, request, self._checkpoints / JOURNAL_FILE)
        self._engine.executed[request.code] += 1
        verb, _, number = request.code.partition(" ")
        if verb == "set":
            self.value = int(number)
            self._save()
        elif verb == "get":
            await cell.print(str(self.value))
        elif await self._blocks():
            await cell.end(
                status="error",
                ename="KeyboardInterrupt",
                evalue="",
                traceback=["KeyboardInterrupt"],
            )
            return
        await cell.end(status="ok")

    async def _blocks(self) -> bool:
        """Compute until let go, or interrupted: then True."""
        self.let_go, self._interrupted, self._is_computing = anyio.Event(), anyio.Event(), True
        async with anyio.create_task_group() as tasks:
            for happened in (self.let_go, self._interrupted):
                tasks.start_soon(_cancel_after, happened, tasks.cancel_scope)
        self._is_computing = False
        return self._interrupted.is_set()

    def _numbers(self) -> list[int]:
        return sorted(int(p.name) for p in self._checkpoints.iterdir() if p.name.isdigit())

    def _save(self) -> None:
        number = 1 + max(self._numbers(), default=0)
        draft = self._checkpoints / "draft"
        draft.mkdir()
        (draft / "value").write_text(json.dumps(self.value))
        manifest = {
            "version": 1,
            "saved_at": 1.0,
            "cell": 1,
            "generation": self._status["generation"],
            "names": [] if self.value is None else ["value"],
            "missing": [],
            "bytes": 1,
        }
        (draft / "manifest.json").write_text(json.dumps(manifest))
        draft.rename(self._checkpoints / str(number))

    def _restore(self) -> None:
        order = json.loads((self._control / "restore.json").read_text())
        numbers = self._numbers()
        number = order.get("number", numbers[-1] if numbers else None)
        self.value = None
        if order["mode"] == "none":
            number = None
            self._save()
        elif number is not None:
            self.value = json.loads((self._checkpoints / str(number) / "value").read_text())
        report = {
            "generation": self._status["generation"],
            "number": number,
            "cell": 1,
            "age_s": 1.0,
            "names": int(self.value is not None),
            "missing": [],
            "error": "",
        }
        (self._sockets / RESTORE_FILE).write_text(json.dumps(report))

    def _tell(self, **changes: Any) -> None:
        self._status.update(changes)
        draft = self._sockets / "status.new"
        draft.write_text(json.dumps(self._status))
        draft.replace(self._sockets / STATUS_FILE)


class Script(dict[str, Handler]):
    """The same answer to every cell."""

    def __init__(self, handler: Handler) -> None:
        super().__init__({"": handler})
        self._handler = handler

    def get(self, code: str, default: Any = None) -> Any:
        """See `ScriptedKernel.script`."""
        del code, default
        return self._handler


class _Cell:
    """A cell that is being run: what it publishes goes to its journal, too."""

    def __init__(self, kernel: ScriptedKernel, request: Request, journal: Path) -> None:
        self._kernel = kernel
        self._request = request
        self._journal = journal
        journal.write_bytes(head_of(str(request.header["msg_id"])))

    async def print(self, text: str) -> None:
        await self._publish("stream", {"name": "stdout", "text": text})

    async def end(self, **reply: Any) -> None:
        self._kernel.execution_count += 1
        content = {"execution_count": self._kernel.execution_count, **reply}
        frames = self._note("execute_reply", content)
        await self._kernel.reply_raw(self._request, frames)
        await self._publish("status", {"execution_state": "idle"})

    async def _publish(self, msg_type: str, content: dict[str, Any]) -> None:
        frames = self._note(msg_type, content)
        await self._kernel.publish_raw([msg_type.encode(), *frames])

    def _note(self, msg_type: str, content: dict[str, Any]) -> list[bytes]:
        frames = self._kernel.frames(msg_type, content, self._request.header)
        with self._journal.open("ab") as file:
            file.write(b"".join(record_of(frames[1:])))
        return frames


def _settled() -> dict[str, Any]:
    """The answer to how far checkpoints are: all is saved."""
    said = {"number": 1, "error": "", "settled": True, "pending": False}
    return {"status": "ok", "data": {"text/plain": repr(json.dumps(said))}}


async def _cancel_after(happened: anyio.Event, scope: anyio.CancelScope) -> None:
    await happened.wait()
    scope.cancel()
