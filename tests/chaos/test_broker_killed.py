"""The broker is killed with -9 again and again: nothing is lost without a word, and nothing runs twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.driver import NAMES, Plan
from tests.chaos.ledger import Ledger
from tests.chaos.marked_points import POINTS
from tests.chaos.remains import remove_all

pytestmark = [pytest.mark.sage, pytest.mark.docker, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]

SEED = int(os.environ.get("SAGEBROKER_CHAOS_SEED", "3"))
"""Another one makes another story; what kills a broker at any moment is never quite the same twice."""
OPERATIONS = 200
EARLIEST_KILL_S, LATEST_KILL_S = 0.5, 6.0
"""Of a broker that is killed at any moment, after its sessions are open."""
LIFE_LIMIT_S = 150.0
"""A life that takes longer hangs."""
LOG_CHARS = 8000
"""Of a life's log, where it did not end as it should."""


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder for the brokers' state and sockets, of which nothing is left, whatever happens."""
    path = Path(tempfile.mkdtemp(prefix=f"sb{os.getpid()}-", dir="/tmp"))
    yield path
    remove_all(path)


def live(place: Path, plan: Plan, ledger: Ledger, *, kill_after_s: float | None = None) -> None:
    """One life of the driver, from its start to its being killed."""
    log = place / f"life{plan.life}.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.driver", str(place / "state"), str(place / "run")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as driver,
    ):
        hangs = threading.Event()

        def end_hanging() -> None:
            hangs.set()
            driver.kill()

        timers = [threading.Timer(LIFE_LIMIT_S, end_hanging)]
        timers[0].start()
        try:
            assert driver.stdin is not None
            assert driver.stdout is not None
            driver.stdin.write(plan.to_json() + "\n")
            driver.stdin.close()
            for line in driver.stdout:
                event = _parsed(line)
                ledger.take(event)
                if event["event"] == "up" and kill_after_s is not None:
                    timers.append(threading.Timer(kill_after_s, driver.kill))
                    timers[-1].start()
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()
            driver.kill()
    wanted = 0 if plan.is_last else -signal.SIGKILL
    end = "hung" if hangs.is_set() else driver.returncode
    assert end == wanted, f"{plan}: {end}\n{log.read_text()[-LOG_CHARS:]}"


def _parsed(line: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(line)
    except ValueError:
        return {"event": "cut off by the kill"}
    return parsed


@pytest.fixture(scope="module")
def ledger(place: Path, sage_image: str) -> Ledger:
    """What came of brokers that worked on five sessions and were killed; the last one closed all."""
    told = Ledger()
    chance = random.Random(SEED)
    life = 0
    points: list[str] = []
    for index, point in enumerate(POINTS, 1):
        # At any moment in between, but not where a point finds what the one before has left.
        points += [point.name, ""] if index % 4 == 3 else [point.name]
    while points or told.operations.total() < OPERATIONS:
        name = points.pop(0) if points else ""
        life += 1
        plan = Plan(life=life, seed=SEED, point=name, pending=told.pending())
        kill_after_s = None if name else chance.uniform(EARLIEST_KILL_S, LATEST_KILL_S)
        live(place, plan, told, kill_after_s=kill_after_s)
    live(place, Plan(life=life + 1, seed=SEED, pending=told.pending(), is_last=True), told)
    print(told.summary())
    return told


def test_it_is_killed_at_every_marked_point_during_two_hundred_operations(ledger: Ledger) -> None:
    assert ledger.killed_at == [point.name for point in POINTS]
    assert ledger.operations.total() >= OPERATIONS
    assert ledger.names == set(NAMES)


def test_every_variable_is_there_or_its_loss_was_told(ledger: Ledger) -> None:
    assert ledger.kept > 0
    assert ledger.complaints_about_variables() == []


def test_no_cell_ran_twice_and_no_line_of_a_file_is_lost(ledger: Ledger) -> None:
    assert ledger.complaints_about_files() == []


def test_every_cell_has_the_end_that_was_told_and_its_whole_output(ledger: Ledger) -> None:
    assert ledger.complaints_about_cells() == []


def test_nothing_hangs_is_refused_or_becomes_another_session(ledger: Ledger) -> None:
    assert ledger.troubles == []


def test_nothing_is_left_of_the_sessions_that_are_closed(ledger: Ledger) -> None:
    assert ledger.left == []
