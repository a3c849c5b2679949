"""Which of a cell's questions have been lost on their way, by its kernel's journal."""

from __future__ import annotations

import pytest

from sagebroker.model import InputRequest
from sagebroker.protocol.messages import Message
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session.cell import Cell
from sagebroker.session.missed import Questions


def asked(prompt: str) -> Message:
    content = {"prompt": prompt, "password": False}
    return Message(channel="stdin", msg_type="input_request", msg_id="q", content=content)


ANSWERED = Message(channel="stdin", msg_type="input_reply", msg_id="a")
OUTPUT = Message(channel="iopub", msg_type="stream", msg_id="o")


def wanted(prompt: str) -> InputRequest:
    return InputRequest(prompt=prompt, is_password=False)


@pytest.fixture
def cell() -> Cell:
    cell = Cell(number=1, code="", time_limit_s=1.0, outputs=OutputFold())
    cell.start("m", 1)
    return cell


@pytest.fixture
def questions() -> Questions:
    return Questions()


def test_a_question_that_has_not_come_by_the_second_look_is_lost(
    cell: Cell, questions: Questions
) -> None:
    questions.add([OUTPUT, asked("1")])
    assert questions.missed(cell) is None
    assert questions.missed(cell) == wanted("1")


def test_one_that_has_come_is_not(cell: Cell, questions: Questions) -> None:
    questions.add([asked("1")])
    assert questions.missed(cell) is None
    cell.ask(wanted("1"))
    for _ in range(3):
        assert questions.missed(cell) is None


def test_one_whose_answer_the_kernel_has_not_noted_yet_is_not_asked_again(
    cell: Cell, questions: Questions
) -> None:
    cell.ask(wanted("1"))
    questions.add([asked("1")])
    cell.ask(None)
    for _ in range(3):
        assert questions.missed(cell) is None
    questions.add([ANSWERED, asked("2")])
    assert questions.missed(cell) is None
    assert questions.missed(cell) == wanted("2")


def test_a_second_one_is_found_though_the_first_was_lost_and_withdrawn(
    cell: Cell, questions: Questions
) -> None:
    questions.add([asked("1"), ANSWERED])
    assert questions.missed(cell) is None
    questions.add([asked("2")])
    assert questions.missed(cell) is None
    assert questions.missed(cell) == wanted("2")
    cell.ask(wanted("2"))
    assert questions.missed(cell) is None
    cell.ask(None)
    assert questions.missed(cell) is None
    assert questions.missed(cell) is None
