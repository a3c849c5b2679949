"""The keeper's status file, read as hostile input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sagebroker.kernel.keeper import REPORT_LIMIT_BYTES, read_status
from sagebroker.model import ExitCause

GOOD = {
    "state": "running",
    "generation": 2,
    "pid": 7,
    "interrupts": 1,
    "replacements": 0,
    "oom_kills": 0,
    "last_exit": {"generation": 1, "signal": 9, "code": None, "oom": True, "requested": False},
    "note": "",
}


def write(folder: Path, text: str) -> None:
    (folder / "status.json").write_text(text)


def test_a_status_is_read(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(GOOD))
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.generation, status.interrupts) == ("running", 2, 1)


@pytest.mark.parametrize(
    ("last_exit", "cause"),
    [
        ({"generation": 1, "signal": 9, "oom": True}, ExitCause.OUT_OF_MEMORY),
        ({"generation": 1, "signal": 9, "oom": True, "requested": True}, ExitCause.REPLACED),
        ({"generation": 1, "signal": 11}, ExitCause.SIGNAL),
        ({"generation": 1, "code": 3}, ExitCause.EXIT),
        ({"generation": 1}, ExitCause.UNKNOWN),
        ({"generation": 7, "code": 3}, ExitCause.UNKNOWN),
        (None, ExitCause.UNKNOWN),
        ({"generation": 1, "code": True}, ExitCause.UNKNOWN),
        ({"generation": 1, "signal": "9"}, ExitCause.UNKNOWN),
    ],
)
def test_the_cause_of_an_exit_is_told(tmp_path: Path, last_exit: object, cause: ExitCause) -> None:
    write(tmp_path, json.dumps({**GOOD, "last_exit": last_exit}))
    status = read_status(tmp_path)
    assert status is not None
    report = status.exit_of(1, 2**30)
    assert report.cause is cause
    assert report.sentence()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"state": 1}',
        "[" * 10_000,
        json.dumps({**GOOD, "generation": "x"}),
        json.dumps({**GOOD, "generation": -1}),
        json.dumps({**GOOD, "generation": 2**63}),
    ],
)
def test_nonsense_is_no_status(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    assert read_status(tmp_path) is None


def test_a_file_that_is_too_large_is_no_status(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({**GOOD, "note": "x" * REPORT_LIMIT_BYTES}))
    assert read_status(tmp_path) is None


def test_links_pipes_and_folders_are_no_status(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(json.dumps(GOOD))
    place = tmp_path / "status.json"
    place.symlink_to(elsewhere)
    assert read_status(tmp_path) is None
    place.unlink()
    os.mkfifo(place)
    assert read_status(tmp_path) is None
    place.unlink()
    place.mkdir()
    assert read_status(tmp_path) is None


def test_the_end_of_a_container_is_not_taken_for_a_replacement(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({**GOOD, "state": "ended", "note": "its time is up"}))
    status = read_status(tmp_path)
    assert status is not None
    report = status.exit_of(2, 2**30)
    assert (report.cause, report.detail) == (ExitCause.CONTAINER_GONE, "its time is up")
