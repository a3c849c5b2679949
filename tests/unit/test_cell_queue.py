"""The queue of a session: order, bounds, what is forgotten."""

from __future__ import annotations

import pytest

from sagebroker.config import MIB, SessionConfig
from sagebroker.errors import CellNotFoundError, QueueFullError
from sagebroker.model import CellStatus
from sagebroker.session.cell import Cell
from sagebroker.session.queue import CellQueue


def run(queue: CellQueue, text: str = "") -> Cell:
    """A cell that ran and printed ``text``."""
    cell = queue.add("code", None)
    assert queue.take() is cell
    cell.start()
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
