from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagebroker.model import InputRequest
from sagebroker.protocol.execution import (
    GRACE_LIMIT_S,
    GRACE_S,
    Execution,
    ExecutionPhase,
    input_wanted,
)
from sagebroker.protocol.messages import Channel, Message


def _message(channel: Channel, msg_type: str, parent: str = "m", **content: Any) -> Message:
    return Message(
        channel=channel, msg_type=msg_type, msg_id="x", parent_id=parent, content=content
    )


BUSY = _message("iopub", "status", execution_state="busy")
IDLE = _message("iopub", "status", execution_state="idle")
OK = _message("shell", "execute_reply", status="ok", execution_count=3)
OUTPUT = _message("iopub", "stream", name="stdout", text="x")


def _fed(*messages: Message, now: float = 0.0) -> Execution:
    execution = Execution("m")
    for message in messages:
        execution.feed(message, now)
    return execution


def test_an_execution_goes_through_its_phases() -> None:
    execution = Execution("m")
    seen = [execution.phase]
    for message in (BUSY, OK, IDLE):
        execution.feed(message, 0.0)
        seen.append(execution.phase)
    assert seen == list(ExecutionPhase)
    assert execution.ended(0.0)
    assert (execution.status, execution.execution_count) == ("ok", 3)


@pytest.mark.parametrize("count", [2**53, 2**70, -1, "3", True, None])
def test_a_prompt_number_that_no_honest_kernel_gives_is_none(count: object) -> None:
    told = _message("iopub", "execute_input", execution_count=count)
    replied = _message("shell", "execute_reply", status="ok", execution_count=count)
    assert _fed(told, replied).execution_count is None
    assert _fed(OK, told).execution_count == 3


@pytest.mark.parametrize("order", [(OK, IDLE), (IDLE, OK), (BUSY, IDLE, OK)])
def test_reply_and_idle_end_it_in_either_order(order: tuple[Message, ...]) -> None:
    execution = _fed(*order)
    assert execution.ended(0.0)
    assert not execution.reply_lost
    assert not execution.idle_lost


def test_nothing_ends_without_reply_or_idle() -> None:
    execution = _fed(BUSY, OUTPUT)
    assert not execution.ended(1e9)
    assert execution.next_check(0.0) is None


def test_a_lost_reply_is_told_after_the_grace() -> None:
    execution = _fed(BUSY, IDLE, now=10.0)
    assert not execution.ended(10.0 + 0.9 * GRACE_S)
    assert execution.next_check(10.0) == 10.0 + GRACE_S
    assert execution.ended(10.0 + GRACE_S)
    assert (execution.reply_lost, execution.status) == (True, None)


def test_outputs_that_still_stream_in_extend_the_grace_up_to_its_limit() -> None:
    execution = _fed(BUSY, OK, now=0.0)
    now = 0.0
    while not execution.ended(now):
        now += 0.4
        execution.feed(OUTPUT, now)
    assert GRACE_LIMIT_S <= now <= GRACE_LIMIT_S + 0.4
    assert execution.idle_lost


def test_messages_with_another_parent_are_ignored() -> None:
    execution = _fed(_message("shell", "execute_reply", "other", status="ok"))
    assert execution.phase is ExecutionPhase.PENDING


def test_of_several_replies_the_first_counts() -> None:
    execution = _fed(OK, _message("shell", "execute_reply", status="error"), IDLE)
    assert (execution.status, execution.duplicate_replies) == ("ok", 1)


def test_a_reply_on_a_wrong_channel_ends_nothing() -> None:
    execution = _fed(_message("iopub", "execute_reply", status="ok"))
    assert execution.reply is None


def test_an_error_in_the_reply_alone_is_a_failure() -> None:
    reply = _message("shell", "execute_reply", status="error", ename="E", evalue="v", traceback=[])
    failure = _fed(reply, IDLE).failure
    assert failure is not None
    assert (failure.ename, failure.evalue) == ("E", "v")


def test_the_error_shown_on_iopub_goes_before_the_one_in_the_reply() -> None:
    error = _message("iopub", "error", ename="Shown", evalue="v", traceback=["t"])
    failure = _fed(error, _message("shell", "execute_reply", status="error"), IDLE).failure
    assert failure is not None
    assert failure.ename == "Shown"


def test_an_exception_shown_by_a_cell_that_ends_well_is_not_its_failure() -> None:
    execution = _fed(_message("iopub", "error", ename="Handled"), OK, IDLE)
    assert (execution.status, execution.failure) == ("ok", None)


def test_an_error_with_a_lost_reply_is_still_an_error() -> None:
    execution = _fed(_message("iopub", "error", ename="KeyboardInterrupt"), IDLE)
    assert execution.status == "error"
    assert execution.failure is not None


@pytest.mark.parametrize("status", ["aborted", "abort"])
def test_an_aborted_cell_was_not_run(status: str) -> None:
    execution = _fed(_message("shell", "execute_reply", status=status), IDLE)
    assert (execution.status, execution.failure) == ("aborted", None)


def test_the_pager_text_is_gathered_from_the_payload() -> None:
    payload = [
        {"source": "page", "data": {"text/plain": "help"}},
        {"source": "page", "data": 3},
        "junk",
    ]
    execution = _fed(_message("shell", "execute_reply", status="ok", payload=payload))
    assert execution.payload == "help"


def test_user_expressions_travel_with_the_reply() -> None:
    values = {"a": {"status": "ok", "data": {"text/plain": "2"}}}
    execution = _fed(_message("shell", "execute_reply", status="ok", user_expressions=values))
    assert execution.user_expressions == values


def test_a_question_is_cut_and_its_terminal_codes_go() -> None:
    asked = input_wanted(
        _message("stdin", "input_request", prompt="\x1b[1mName\ud800" + "?" * 9000)
    )
    assert asked is not None
    assert asked.prompt.startswith("Name\\ud800??")
    assert len(asked.prompt) < 2100
    assert not asked.is_password
    assert input_wanted(_message("stdin", "input_request", prompt=7, password=1)) == InputRequest(
        prompt="", is_password=False
    )
    assert input_wanted(_message("stdin", "input_reply")) is None


junk = (
    st.none()
    | st.integers()
    | st.text()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.text())
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["status", "execution_count", "payload", "user_expressions", "ename", "traceback"]
        ),
        junk,
    )
)
def test_any_reply_can_be_read(content: dict[str, Any]) -> None:
    execution = _fed(_message("shell", "execute_reply", **content), IDLE)
    assert execution.ended(0.0)
    assert execution.status in ("ok", "error", "aborted")
    assert (execution.failure is not None) == (execution.status == "error")
    assert isinstance(execution.payload, str)
    assert isinstance(execution.user_expressions, dict)
