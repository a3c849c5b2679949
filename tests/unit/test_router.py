from __future__ import annotations

import pytest

from sagebroker.kernel.heartbeat import LATE_S, SUSPECT_S, verdict
from sagebroker.kernel.intake import MAX_REASONS, Intake, WireLimits
from sagebroker.kernel.router import MessageRouter
from sagebroker.protocol.messages import Message


def _message(parent: str) -> Message:
    return Message(channel="iopub", msg_type="status", msg_id="x", parent_id=parent)


def test_a_message_goes_to_whoever_waits_for_its_parent() -> None:
    foreign: list[Message] = []
    mine: list[Message] = []
    router = MessageRouter(foreign.append)
    with router.expect("a", mine.append):
        router.deliver(_message("a"))
        router.deliver(_message("b"))
        router.deliver(_message(""))
    router.deliver(_message("a"))
    assert [message.parent_id for message in mine] == ["a"]
    assert [message.parent_id for message in foreign] == ["b", "", "a"]


def test_nobody_waits_any_more_after_an_error() -> None:
    foreign: list[Message] = []
    router = MessageRouter(foreign.append)
    with pytest.raises(KeyError), router.expect("a", foreign.append):
        raise KeyError
    with router.expect("a", foreign.append):
        pass


@pytest.mark.parametrize("msg_id", ["", "a"])
def test_an_id_can_be_waited_for_once(msg_id: str) -> None:
    router = MessageRouter(lambda _: None)
    with (
        router.expect("a", lambda _: None),
        pytest.raises(ValueError, match="already"),
        router.expect(msg_id, lambda _: None),
    ):
        pass


@pytest.mark.parametrize(
    ("silent_s", "expected"),
    [(0.0, "beating"), (LATE_S, "late"), (SUSPECT_S, "suspect"), (1e9, "suspect")],
)
def test_silence_becomes_late_and_then_suspect(silent_s: float, expected: str) -> None:
    assert verdict(silent_s) == expected


def _take(intake: Intake[bytes], *frames: bytes, now: float = 0.0) -> list[bytes] | None:
    taken = None
    for index, frame in enumerate(frames):
        taken = intake.take(frame, now, more=index + 1 < len(frames))
    return taken


def test_frames_are_put_together_to_messages() -> None:
    intake = Intake[bytes](WireLimits(), 0.0)
    assert intake.take(b"a", 0.0, more=True) is None
    assert intake.take(b"b", 0.0, more=False) == [b"a", b"b"]
    assert (intake.counts.messages, intake.counts.bytes) == (1, 2)


def test_a_message_too_large_is_dropped_and_the_next_is_taken() -> None:
    intake = Intake[bytes](WireLimits(max_message_bytes=10), 0.0)
    assert _take(intake, b"x" * 6, b"x" * 6, b"x") is None
    assert _take(intake, b"x") == [b"x"]
    assert intake.counts.dropped == {"size": 1}


def test_a_message_of_too_many_frames_is_dropped_without_keeping_them() -> None:
    intake = Intake[bytes](WireLimits(), 0.0)
    assert _take(intake, *([b"x"] * 1000)) is None
    assert intake.counts.dropped == {"frames": 1}


def test_the_budget_of_bytes_comes_back_with_time() -> None:
    intake = Intake[bytes](WireLimits(burst_bytes=10, bytes_per_s=5), 0.0)
    assert _take(intake, b"x" * 10) is not None
    assert _take(intake, b"x") is None
    assert intake.is_flooded
    assert _take(intake, b"x" * 10, now=1.0) is None
    assert _take(intake, b"xx", now=2.0) is not None
    assert not intake.is_flooded


def test_the_budget_of_messages_comes_back_with_time() -> None:
    intake = Intake[bytes](WireLimits(burst_messages=2, messages_per_s=1), 0.0)
    assert [_take(intake, b"x") is not None for _ in range(4)] == [True, True, False, False]
    assert _take(intake, b"x", now=1.0) is not None


def test_a_clock_that_goes_back_gives_no_budget() -> None:
    intake = Intake[bytes](WireLimits(burst_messages=1, messages_per_s=1), 10.0)
    _take(intake, b"x", now=10.0)
    assert _take(intake, b"x", now=5.0) is None


def test_a_kernel_that_counts_as_hostile_is_not_read_any_more() -> None:
    intake = Intake[bytes](WireLimits(max_invalid=2), 0.0)
    for number in range(2):
        assert not intake.is_over
        intake.refuse(f"reason {number}")
    assert intake.is_over
    assert _take(intake, b"x") is None
    assert intake.counts.dropped == {"hostile": 1}


def test_reasons_the_kernel_can_choose_are_bounded() -> None:
    intake = Intake[bytes](WireLimits(), 0.0)
    for number in range(1000):
        intake.refuse(f"a signature of {number} bytes")
    assert len(intake.counts.invalid) == MAX_REASONS + 1
    assert intake.counts.invalid.total() == 1000
