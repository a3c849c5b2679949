"""What outlives a kernel or a broker: the variables in checkpoints, the running cell in the journal."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import anyio.to_thread
from tests.cells import LIMIT_S, ended, result

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.kernel.journal import JOURNAL_FILE, JournalReader
from sagebroker.protocol.execution import Execution
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session.cell import Cell
from sagebroker.session.session import Session

ALL_KINDS_OF_OUTPUT = """
import os, subprocess, sys, time
from IPython.display import clear_output, display
print("cleared")
clear_output()
print("out")
print("err", file=sys.stderr)
handle = display("a", display_id=True)
handle.update("b")
subprocess.run(["echo", "by a program"])
if os.fork() == 0:
    print("by a child")
    os._exit(0)
os.wait()
print("waiting", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
print("é" * 100_000)
1 / 0
"""


def folder_of(session: Session, config: BrokerConfig) -> Path:
    return config.state_dir / "sessions" / session.id


async def saved(session: Session, config: BrokerConfig, number: int) -> None:
    """Return when a checkpoint of that number is whole."""
    place = anyio.Path(folder_of(session, config) / "checkpoints" / str(number))
    with anyio.fail_after(LIMIT_S):
        while not await place.exists():
            await anyio.sleep(0.01)


def seen(outputs: OutputFold) -> tuple[object, ...]:
    """All that a cell shows."""
    return outputs.stdout.text(), outputs.stderr.text(), outputs.displays, outputs.failure


class Follower:
    """Follows a session's newest cell by its journal."""

    def __init__(self, session: Session, config: BrokerConfig) -> None:
        host = session._desk.host
        assert host is not None
        path = folder_of(session, config) / "checkpoints" / JOURNAL_FILE
        self.reader = JournalReader(path, host.connection.key)
        self.execution: Execution | None = None

    async def look(self) -> Execution | None:
        """What is known of the cell now."""
        for message in await anyio.to_thread.run_sync(self.reader.read_new):
            self.execution = self.execution or Execution(self.reader.msg_id)
            self.execution.feed(message, time.monotonic())
        assert not self.reader.is_broken
        return self.execution

    async def agrees(self, cell: Cell, text: str) -> None:
        """Return when both show the text, and then all the same."""
        with anyio.fail_after(LIMIT_S):
            while (
                (known := await self.look()) is None
                or text not in known.outputs.stdout.text()
                or text not in cell.outputs.stdout.text()
            ):
                await anyio.sleep(0.01)
        assert seen(known.outputs) == seen(cell.outputs)


async def test_after_the_death_of_a_kernel_its_variables_are_back_and_that_is_said(
    broker: Broker, config: BrokerConfig
) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 12345")
    await saved(session, config, 1)
    cell = await ended(session, "import os; os._exit(1)")
    assert result(await ended(session, "keep")) == "12345"
    # With the cell, or with the next answer where the new kernel took its time.
    said = " ".join([*cell.notices, *session.take_notices()])
    assert "exited by itself with code 1" in said
    assert "1 variables as they were after In[1]" in said


async def test_the_journal_of_a_running_cell_holds_what_its_outputs_come_to(
    broker: Broker, config: BrokerConfig
) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "print('of an earlier cell')")
    follower = Follower(session, config)
    cell = session.submit(ALL_KINDS_OF_OUTPUT)
    with anyio.fail_after(LIMIT_S):
        while "waiting" not in cell.outputs.stdout.text():
            await anyio.sleep(0.01)
    await follower.agrees(cell, "by a child")
    (folder_of(session, config) / "files" / "go").touch()
    assert await cell.wait(LIMIT_S)
    known = await follower.look()
    assert known is not None
    assert known.phase == "ended"
    assert seen(known.outputs) == seen(cell.outputs)
    assert known.status == "error"
    assert known.execution_count == cell.execution_count == 2
    assert not follower.reader.is_truncated


async def test_a_dead_kernels_last_cell_stays_in_the_journal_until_the_next_one(
    broker: Broker, config: BrokerConfig
) -> None:
    session, _ = await broker.open_session("default")
    code = "import os\nprint('last words', flush=True)\nos._exit(1)"
    await ended(session, code)
    with anyio.fail_after(LIMIT_S):
        while session.info().kernel_generation != 2:
            await anyio.sleep(0.01)
    follower = Follower(session, config)
    known = await follower.look()
    assert known is not None
    assert known.outputs.stdout.text() == "last words\n"
    assert known.phase == "running"
    await ended(session, "1")
    await follower.look()
    assert follower.reader.is_replaced
