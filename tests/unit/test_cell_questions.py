"""What a cell asks: who waits for it is told of every change, once."""

from __future__ import annotations

import anyio
import pytest

from sagebroker.model import CellStatus, InputRequest
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session.cell import Cell

GUARD_S = 5.0
FIRST = InputRequest(prompt="First? ", is_password=False)
SECOND = InputRequest(prompt="Second? ", is_password=False)


@pytest.fixture
def cell() -> Cell:
    cell = Cell(number=1, code="", time_limit_s=1.0, outputs=OutputFold())
    cell.start("m", 1)
    return cell


@pytest.mark.parametrize("ends", [False, True])
async def test_who_waits_since_an_answer_hears_what_comes_next_however_often_it_was_withdrawn(
    cell: Cell, ends: bool
) -> None:
    cell.ask(FIRST)
    cell.ask(None)
    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(cell.wait_settled, 2 * GUARD_S)
            await anyio.wait_all_tasks_blocked()
            # The broker has said so at once, the kernel says so, too.
            cell.ask(None)
            cell.finish(CellStatus.OK) if ends else cell.ask(SECOND)


@pytest.mark.parametrize("next_one", [None, SECOND])
async def test_a_question_is_over_when_it_is_withdrawn_or_another_comes(
    cell: Cell, next_one: InputRequest | None
) -> None:
    cell.ask(FIRST)
    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(cell.wait_moved_on)
            await anyio.wait_all_tasks_blocked()
            cell.ask(next_one)
    assert cell.asks is next_one


async def test_a_question_is_over_with_its_cell_and_none_comes_after(cell: Cell) -> None:
    cell.ask(FIRST)
    with anyio.fail_after(GUARD_S):
        async with anyio.create_task_group() as tg:
            tg.start_soon(cell.wait_moved_on)
            await anyio.wait_all_tasks_blocked()
            cell.finish(CellStatus.INTERRUPTED)
        cell.ask(SECOND)
        await cell.wait_moved_on()
    assert cell.word == "interrupted"


async def test_a_flood_of_questions_leaves_the_last_one(cell: Cell) -> None:
    for _ in range(10_000):
        cell.ask(InputRequest(prompt="x", is_password=False))
    cell.ask(SECOND)
    assert (cell.asks, cell.questions) == (SECOND, 10_001)
