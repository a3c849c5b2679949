"""The queue of a session: order, bounds, what is forgotten, and what is told of changes."""

from __future__ import annotations

import pytest

from sagebroker.config import MIB, SessionConfig
from sagebroker.errors import CellNotFoundError, QueueFullError
from sagebroker.model import CellStatus
from sagebroker.protocol.outputs import OutputFold
from sagebroker.session.cell import Cell
from sagebroker.session.queue import CellQueue


def run(queue: CellQueue, text: str = "") -> Cell:
    """A cell that ran and printed ``text``."""
    cell = queue.add("code", None)
    assert queue.take() is cell
    cell.start("m", 1)
    cell.outputs.stdout.append(text)
    cell.finish(CellStatus.OK)
    return cell


def test_numbers_go_on_where_an_earlier_broker_stopped() -> None:
    assert CellQueue("s", SessionConfig(), next_number=7).add("1", None).number == 7


def test_a_time_limit_is_the_default_or_the_asked_one_up_to_the_largest() -> None:
    queue = CellQueue("s", SessionConfig(time_limit_s=5, max_time_limit_s=50))
    limits = [queue.add("1", asked).time_limit_s for asked in (None, 20.0, 1e9)]
    assert limits == [5, 20, 50]


def test_a_full_queue_refuses() -> None:
    queue = CellQueue("s", SessionConfig(max_queued_cells=1))
    queue.add("1", None)
    with pytest.raises(QueueFullError, match="sage_interrupt"):
        queue.add("2", None)


def test_only_so_many_ended_cells_are_remembered_and_the_oldest_go_first() -> None:
    queue = CellQueue("s", SessionConfig(kept_cells=10))
    for _ in range(15):
        run(queue)
    run(queue)
    with pytest.raises(CellNotFoundError, match="cells 6 to 16"):
        queue.get(5)
    assert queue.get(6).number == 6


def test_large_outputs_are_forgotten_before_their_number_is_reached_but_the_newest_stays() -> None:
    queue = CellQueue("s", SessionConfig(kept_bytes=MIB))
    first, second = run(queue, "x" * MIB), run(queue, "y" * 2 * MIB)
    last = run(queue)
    with pytest.raises(CellNotFoundError):
        queue.get(first.number)
    assert queue.get(second.number) is second
    assert queue.get(last.number) is last


def test_waiting_cells_are_never_forgotten() -> None:
    queue = CellQueue("s", SessionConfig(kept_cells=10, max_queued_cells=100))
    waiting = [queue.add("1", None) for _ in range(50)]
    assert [queue.get(cell.number) for cell in waiting] == waiting


def test_dropped_cells_end_without_having_run_and_say_why() -> None:
    queue = CellQueue("s", SessionConfig())
    cells = [queue.add("1", None), queue.add("2", None)]
    assert queue.drop_all("restart", "Not run.") == 2
    assert len(queue) == 0
    for cell in cells:
        assert cell.status is CellStatus.INTERRUPTED
        assert (cell.started_at, cell.stop_reason, cell.notices) == (None, "restart", ["Not run."])


def test_an_end_is_final() -> None:
    cell = run(CellQueue("s", SessionConfig()))
    cell.finish(CellStatus.DIED)
    assert cell.status is CellStatus.OK


def left_cell(number: int, status: CellStatus = CellStatus.QUEUED) -> Cell:
    """A cell of an earlier broker."""
    return Cell(number=number, code="1", time_limit_s=1, outputs=OutputFold(), status=status)


def test_cells_of_an_earlier_broker_are_known_and_only_those_that_waited_wait_again() -> None:
    queue = CellQueue("s", SessionConfig(), next_number=5)
    running, waiting = left_cell(3, CellStatus.RUNNING), left_cell(4)
    for cell in (running, waiting):
        queue.resume(cell)
    new = queue.add("1", None)
    assert [queue.get(number) for number in (3, 4, 5)] == [running, waiting, new]
    assert [queue.take(), queue.take(), queue.take()] == [waiting, new, None]


def test_a_cell_that_was_not_sent_after_all_is_next_again_and_is_none_that_may_have_run() -> None:
    queue = CellQueue("s", SessionConfig())
    first, second = queue.add("1", None), queue.add("2", None)
    assert queue.take() is first
    first.start("m", 1)
    queue.put_back(first)
    assert (first.status, first.msg_id, first.elapsed_s) == (CellStatus.QUEUED, "", 0.0)
    assert [queue.take(), queue.take()] == [first, second]


def test_a_repeated_request_finds_the_newest_cell_of_its_name() -> None:
    queue = CellQueue("s", SessionConfig(kept_cells=10))
    queue.add("1", None)
    queue.add("2", None, request_id="r")
    newest = queue.add("3", None, request_id="r")
    assert queue.of_request("r") is newest
    assert queue.of_request("other") is None
    assert queue.of_request("") is None


def test_every_change_of_what_is_stored_of_a_cell_is_told() -> None:
    told: list[tuple[CellStatus, bool]] = []
    queue = CellQueue(
        "s", SessionConfig(), on_change=lambda cell: told.append((cell.status, cell.told))
    )
    cell = queue.add("1", None)
    queue.take()
    cell.start("m", 1)
    queue.put_back(cell)
    queue.take()
    cell.start("n", 1)
    cell.tell()
    cell.finish(CellStatus.OK)
    cell.finish(CellStatus.DIED)
    cell.tell()
    cell.tell()
    queue.resume(resumed := left_cell(7))
    queue.drop(resumed, "request", "Not run.")
    assert told == [
        (CellStatus.QUEUED, False),
        (CellStatus.RUNNING, False),
        (CellStatus.QUEUED, False),
        (CellStatus.RUNNING, False),
        (CellStatus.OK, False),
        (CellStatus.OK, True),
        (CellStatus.INTERRUPTED, False),
    ]
