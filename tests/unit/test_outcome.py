"""What a cell's end means: every combination that can occur has its status and its sentence."""

from __future__ import annotations

from typing import Any

import pytest

from sagebroker.kernel.keeper import RestoreReport
from sagebroker.model import CellStatus, ExitCause, ExitReport, LadderOutcome
from sagebroker.protocol.execution import Execution
from sagebroker.protocol.messages import Message
from sagebroker.session.outcome import (
    death_sentence,
    ended_unsaved,
    fate_sentence,
    final_status,
    stop_sentence,
    wake_sentence,
)

SIGINT = LadderOutcome(rung="sigint", elapsed_ms=200, variables_kept=True)
NEW_KERNEL = LadderOutcome(rung="new_kernel", elapsed_ms=4300, variables_kept=False)
NEW_CONTAINER = LadderOutcome(rung="new_container", elapsed_ms=8000, variables_kept=False)
REPLACED = ExitReport(cause=ExitCause.REPLACED, generation=1)
CRASHED = ExitReport(cause=ExitCause.SIGNAL, generation=1, signal=11)


def message(channel: Any, msg_type: str, content: dict[str, Any]) -> Message:
    return Message(
        channel=channel,
        msg_type=msg_type,
        msg_id="m",
        parent_id="cell",
        username="",
        session="",
        content=content,
        metadata={},
        buffers=(),
        size=0,
    )


def execution(status: str | None = None, *, failed: bool = False) -> Execution:
    """One that got a reply with this status, or none; ``failed``: an error was shown."""
    one = Execution("cell")
    if failed:
        shown = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
        one.feed(message("iopub", "error", shown), 0.0)
    if status is not None:
        reply = {"status": status, "ename": "E", "evalue": "", "traceback": []}
        one.feed(message("shell", "execute_reply", reply), 0.0)
    return one


@pytest.mark.parametrize(
    ("done", "ladder", "report", "expected"),
    [
        (execution("ok"), None, None, CellStatus.OK),
        (execution("error", failed=True), None, None, CellStatus.ERROR),
        (execution("aborted"), None, None, CellStatus.INTERRUPTED),
        (execution("error", failed=True), SIGINT, None, CellStatus.INTERRUPTED),
        (execution("ok"), SIGINT, None, CellStatus.OK),
        (execution(None, failed=True), SIGINT, None, CellStatus.INTERRUPTED),
        (execution(None), SIGINT, None, CellStatus.INTERRUPTED),
        (execution(None), None, None, CellStatus.OK),
        (execution(None), NEW_KERNEL, REPLACED, CellStatus.INTERRUPTED),
        (execution(None), None, CRASHED, CellStatus.DIED),
        (execution(None), None, REPLACED, CellStatus.DIED),
        (execution("ok"), None, CRASHED, CellStatus.OK),
    ],
)
def test_the_status_of_an_end(
    done: Execution,
    ladder: LadderOutcome | None,
    report: ExitReport | None,
    expected: CellStatus,
) -> None:
    assert final_status(done, ladder, report) is expected


def test_a_stop_says_what_was_done() -> None:
    assert "variables are kept" in stop_sentence("request", 600, SIGINT)
    assert "kernel was killed" in stop_sentence("cancelled", 600, NEW_KERNEL)
    assert "container" in stop_sentence("time_limit", 5, NEW_CONTAINER)
    assert "time limit of 5 s" in stop_sentence("time_limit", 5, SIGINT)


@pytest.mark.parametrize("cause", list(ExitCause))
def test_every_death_has_a_sentence(cause: ExitCause) -> None:
    report = ExitReport(cause=cause, generation=1, signal=11, code=3, memory_limit_bytes=2**31)
    sentence = death_sentence(report)
    assert sentence.startswith("The kernel ")
    assert sentence.endswith(".")


def restored(**changes: Any) -> RestoreReport:
    values: dict[str, Any] = {
        "generation": 2,
        "number": 4,
        "cell": 17,
        "age_s": 3.2,
        "names": 5,
        "missing": (),
        "error": "",
    }
    return RestoreReport(**{**values, **changes})


def test_what_is_back_is_told_with_its_age_and_what_is_missing() -> None:
    sentence = fate_sentence(restored(missing=(("g", "a running generator"),)))
    assert "5 variables as they were after In[17], 3 s before" in sentence
    assert "Missing: g (a running generator)." in sentence


@pytest.mark.parametrize("restore", [None, restored(number=None), restored(number=None, error="x")])
def test_where_nothing_is_back_the_loss_is_owned_up_to(restore: RestoreReport | None) -> None:
    assert "All variables are lost" in fate_sentence(restore)


def test_out_of_memory_names_the_limit() -> None:
    report = ExitReport(cause=ExitCause.OUT_OF_MEMORY, generation=1, memory_limit_bytes=3 * 2**29)
    assert "limit 1.5 GiB" in death_sentence(report)


def test_a_session_that_wakes_tells_what_it_has_and_what_is_missing() -> None:
    sentence = wake_sentence("work", restored(age_s=7200.0, missing=(("g", "a generator"),)))
    assert sentence.startswith("Session 'work' was asleep and is awake again, with 5 variables")
    assert "after In[17], 2 h ago. Missing: g (a generator)." in sentence
    for restore in (None, restored(number=None)):
        assert "It has no variables; the files" in wake_sentence("work", restore)
    failed = wake_sentence("work", restored(number=None, error="no space left"))
    assert "It has no variables (restoring failed: no space left)" in failed


def test_what_could_not_be_saved_at_the_end_is_owned_up_to() -> None:
    assert "the disk is full; what the checkpoint before has is kept" in ended_unsaved(
        "the disk is full"
    )
