"""Cells of real Sage that ask something."""

from __future__ import annotations

import anyio
import pytest
from tests.cells import LIMIT_S, ended, result

from sagebroker.broker import Broker
from sagebroker.errors import NoInputWantedError
from sagebroker.model import CellStatus

pytestmark = pytest.mark.sage

ALARMED = """
import os
alarm(0.3)
try:
    input('Quick! ')
except KeyboardInterrupt:
    while not os.path.exists('go'):
        sleep(float(0.01))
int(input('Slow? '))^2
"""


async def test_a_question_that_an_alarm_ends_is_asked_no_more(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    cell = session.submit(ALARMED)
    await cell.wait_settled(LIMIT_S)
    assert cell.asks is not None
    with anyio.fail_after(LIMIT_S):
        await cell.wait_moved_on()
    assert cell.word == "running"
    with pytest.raises(NoInputWantedError, match="it is running"):
        await session.answer(cell, "late")
    await session.files().write("go", b"")
    await cell.wait_settled(LIMIT_S)
    await session.answer(cell, "12")
    assert await cell.wait(LIMIT_S)
    assert result(cell) == "144"


@pytest.mark.parametrize("way", ["interrupt", "time_limit"])
async def test_a_cell_that_waits_for_an_answer_is_stopped_and_costs_no_variable(
    broker: Broker, way: str
) -> None:
    session, _ = await broker.open_session("default")
    limit_s = 1.5 if way == "time_limit" else None
    cell = session.submit("kept = 2^5; input('Well? ')", time_limit_s=limit_s)
    await cell.wait_settled(LIMIT_S)
    assert cell.asks is not None
    if way == "interrupt":
        await session.interrupt()
    assert await cell.wait(LIMIT_S)
    assert cell.status is CellStatus.INTERRUPTED
    assert cell.ladder is not None
    assert (cell.ladder.rung, cell.ladder.variables_kept) == ("sigint", True)
    assert result(await ended(session, "kept")) == "32"
