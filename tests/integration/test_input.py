"""Cells that ask something, on a real ipykernel."""

from __future__ import annotations

import anyio
import pytest
from tests.cells import LIMIT_S, ended, result

from sagebroker.broker import Broker
from sagebroker.errors import NoInputWantedError
from sagebroker.model import CellStatus
from sagebroker.session.asking import MAX_ANSWER_CHARS
from sagebroker.session.cell import Cell
from sagebroker.session.session import Session


async def asking(session: Session, code: str) -> Cell:
    cell = session.submit(code)
    await cell.wait_settled(LIMIT_S)
    assert cell.asks is not None
    return cell


@pytest.mark.parametrize(
    "text",
    ["", "a\nb\r\n", "ü\u2028\x00", "\\", "\ud800", "x" * MAX_ANSWER_CHARS],
    ids=["empty", "lines", "odd", "backslash", "surrogate", "long"],
)
async def test_any_text_is_an_answer(broker: Broker, text: str) -> None:
    session, _ = await broker.open_session("s")
    cell = await asking(session, "a = input()")
    await session.answer(cell, text)
    assert await cell.wait(LIMIT_S)
    expected = text.encode("utf-8", "backslashreplace").decode()
    compare = await ended(session, f"a == {expected!r}")
    assert result(compare) == "True"


async def test_too_long_an_answer_is_refused_and_the_question_stands(broker: Broker) -> None:
    session, _ = await broker.open_session("s")
    cell = await asking(session, "input()")
    with pytest.raises(NoInputWantedError, match="1000001 characters"):
        await session.answer(cell, "x" * (MAX_ANSWER_CHARS + 1))
    await session.answer(cell, "y")
    assert await cell.wait(LIMIT_S)
    assert result(cell) == "'y'"


async def test_two_answers_at_once_are_one(broker: Broker) -> None:
    session, _ = await broker.open_session("s")
    cell = await asking(session, "(input(), input())")
    refused = []

    async def answer(text: str) -> None:
        try:
            await session.answer(cell, text)
        except NoInputWantedError as error:
            refused.append(str(error))

    async with anyio.create_task_group() as tg:
        tg.start_soon(answer, "one")
        tg.start_soon(answer, "two")
    assert len(refused) == 1
    assert "does not wait for input: it is running" in refused[0]
    await cell.wait_settled(LIMIT_S)
    await session.answer(cell, "three")
    assert await cell.wait(LIMIT_S)
    assert "'three'" in result(cell)


async def test_an_answer_whose_caller_goes_before_it_is_sent_leaves_the_question(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("s")
    cell = await asking(session, "input()")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await session.answer(cell, "gone")
    assert cell.asks is not None
    await session.answer(cell, "here")
    assert await cell.wait(LIMIT_S)
    assert result(cell) == "'here'"


ALARMED = """
import signal

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    input('Quick! ')
except KeyboardInterrupt:
    import pathlib, time
    while not pathlib.Path('go').exists():
        time.sleep(0.01)
input('Slow? ')
"""


async def test_a_question_that_the_cell_withdraws_is_asked_no_more(broker: Broker) -> None:
    session, _ = await broker.open_session("s")
    cell = await asking(session, ALARMED)
    with anyio.fail_after(LIMIT_S):
        await cell.wait_moved_on()
    assert cell.word == "running"
    with pytest.raises(NoInputWantedError, match="it is running"):
        await session.answer(cell, "late")
    await session.files().write("go", b"")
    await cell.wait_settled(LIMIT_S)
    await session.answer(cell, "x")
    assert await cell.wait(LIMIT_S)
    assert result(cell) == "'x'"


async def test_a_forked_process_that_asks_is_told_that_it_cannot(broker: Broker) -> None:
    session, _ = await broker.open_session("s")
    code = """
import os
reads, writes = os.pipe()
if os.fork() == 0:
    try:
        input()
    except EOFError as error:
        os.write(writes, str(error).encode())
    finally:
        os._exit(0)
os.read(reads, 999)
"""
    with anyio.fail_after(LIMIT_S):
        told = await ended(session, code)
    assert "a forked process cannot ask for input" in result(told)


async def test_a_question_is_not_lost_with_channels_that_a_huge_output_breaks(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("s")
    # Its frame is over the limit, and the question comes before the channels are rebuilt.
    huge = "display({'text/plain': 'x' * (70 * 2**20)}, raw=True)"
    code = f"import time\n{huge}\ntime.sleep(0.3)\n(input('? '), input('Then? '))"
    cell = await asking(session, code)
    await session.answer(cell, "one")
    await cell.wait_settled(LIMIT_S)
    assert cell.asks is not None
    assert cell.asks.prompt == "Then? "
    await session.answer(cell, "two")
    assert await cell.wait(LIMIT_S)
    assert result(cell) == "('one', 'two')"


async def test_an_interrupt_of_a_cell_that_waits_keeps_its_variables(broker: Broker) -> None:
    session, _ = await broker.open_session("s")
    cell = await asking(session, "kept = 5; input()")
    outcome = await session.interrupt()
    assert outcome is not None
    assert (outcome.rung, outcome.variables_kept) == ("sigint", True)
    assert (cell.status, cell.asks) == (CellStatus.INTERRUPTED, None)
    assert result(await ended(session, "kept")) == "5"
