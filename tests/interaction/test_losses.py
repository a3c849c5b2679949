"""Every loss is told to somebody, once: by the cell's own answer, or by the session's next one."""

from __future__ import annotations

import anyio
import pytest
from mcp import Client
from tests.interaction.calling import HANG_GUARD_S, call, run
from tests.interaction.reading import text_of

from sagebroker.broker import Broker
from sagebroker.model import CellStatus
from sagebroker.server.cell_tools import after_interrupt


async def test_a_loss_that_no_answer_told_is_told_by_the_next_one_once(
    memory_client: Client, broker: Broker
) -> None:
    await run(memory_client, "import os, time\ntime.sleep(0.5); os._exit(3)", wait_s=0)
    with anyio.fail_after(HANG_GUARD_S):
        assert await broker.session("default").cell(1).wait(HANG_GUARD_S)
    loss = "Cell 1: The kernel exited by itself with code 3"
    assert loss in text_of(await run(memory_client, "1 + 1"))
    assert loss not in text_of(await run(memory_client, "1 + 1"))


@pytest.mark.parametrize("tool", ["sage_run", "sage_wait", "sage_interrupt"])
async def test_a_loss_that_an_answer_told_is_not_told_again(
    memory_client: Client, broker: Broker, tool: str
) -> None:
    if tool == "sage_run":
        told = await run(memory_client, "import os\nos._exit(3)")
    elif tool == "sage_wait":
        await run(memory_client, "import os\nos._exit(3)", wait_s=0)
        told = await call(memory_client, "sage_wait", session="default", cell=1)
    else:
        code = (
            "import os, signal\nsignal.signal(signal.SIGINT, lambda *_: os._exit(3))\nprint('set')"
        )
        await run(memory_client, code + "\nwhile True: pass", wait_s=0)
        cell = broker.session("default").cell(1)
        with anyio.fail_after(HANG_GUARD_S):
            while "set" not in cell.outputs.stdout.head:
                await anyio.sleep(0.02)
        told = await call(memory_client, "sage_interrupt")
    assert text_of(told).count("variables are lost") == 1
    assert "variables are kept" not in text_of(told)
    assert "variables are lost" not in text_of(await run(memory_client, "1 + 1"))


async def test_interrupting_a_cell_that_just_took_its_kernel_along_promises_nothing(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    cell = session.submit("import os\nos._exit(3)")
    assert await cell.wait(HANG_GUARD_S)
    assert cell.status is CellStatus.DIED
    said = "\n".join(after_interrupt(session, cell))
    assert said.count("variables are lost") == 1
    assert "variables are kept" not in said
    assert "ended by itself before" not in said


async def test_interrupting_a_cell_that_has_just_ended_says_that_nothing_was_stopped(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    cell = session.submit("1")
    assert await cell.wait(HANG_GUARD_S)
    assert after_interrupt(session, cell)[-1].endswith("nothing was stopped.")
