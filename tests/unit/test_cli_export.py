"""``sagebroker export`` as a person uses it, on a store without an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from tests.unit.store_rows import LARGE, cell_row, session_row

from sagebroker.store.database import Database
from sagebroker.store.folders import StateFolder

HANG_GUARD_S = 60.0

ID = "aaaaaaaaaa"

Export = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def export(short_dir: Path) -> Export:
    """Run the command beside a store with the session ``work``."""
    state = StateFolder(short_dir / "state")
    state.open()
    store = Database.open(state.database, lambda session: state.folder(session).outputs)
    state.folder(ID).path.mkdir(parents=True)
    store.add_session(session_row(ID, name="work", state="hibernated"))
    store.save(
        cells=[
            cell_row(1, code="print(2)", execution_count=1, started_at=1.0, ended_at=2.0),
            cell_row(2, code="x = input()", execution_count=2, started_at=3.0, ended_at=4.0),
            cell_row(3, code="x", execution_count=3, started_at=5.0, ended_at=6.0),
        ],
        outputs={(ID, 1): [("stream", {"name": "stdout", "text": LARGE})]},
    )
    store.close()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "SAGEBROKER_STATE_DIR": str(short_dir / "state"),
            "SAGEBROKER_RUNTIME_DIR": str(short_dir / "run"),
            "SAGEBROKER_ENGINE_URL": f"unix://{short_dir}/none.sock",
            "XDG_CONFIG_HOME": str(short_dir / "home"),
            "COLUMNS": "200",
        }
        return subprocess.run(
            [sys.executable, "-m", "sagebroker", "export", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_GUARD_S,
            cwd=short_dir,
            env=environment,
        )

    return call


def test_a_session_that_sleeps_is_written_whole_and_what_cannot_be_repeated_is_told(
    export: Export, short_dir: Path
) -> None:
    done = export("work", "out.ipynb")
    assert (done.returncode, done.stdout) == (0, "3 cells are in out.ipynb.\n"), done.stderr
    assert done.stderr.splitlines() == [
        "A replay does not repeat 2 of the 3 cells:",
        "  cell 2, not run: asks for input: input()",
        "  cell 3, not run: uses x of cell 2, which is not run again",
    ]
    notebook = nbformat.read(short_dir / "out.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].outputs[0].text == LARGE
    assert [p.name for p in short_dir.iterdir() if "ipynb" in p.name] == ["out.ipynb"]


def test_a_file_that_is_there_is_replaced_only_by_force(export: Export, short_dir: Path) -> None:
    (short_dir / "out.ipynb").write_text("precious")
    refused = export("work", "out.ipynb")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert (short_dir / "out.ipynb").read_text() == "precious"
    assert export("work", "out.ipynb", "--force").returncode == 0
    first = nbformat.read(short_dir / "out.ipynb", as_version=4)
    assert export("work", "out.ipynb", "--force").returncode == 0
    second = nbformat.read(short_dir / "out.ipynb", as_version=4)
    assert first.cells == second.cells


def test_a_dash_is_stdout_and_has_the_notebook_alone(export: Export) -> None:
    done = export("work", "-")
    assert done.returncode == 0, done.stderr
    assert len(nbformat.reads(done.stdout, as_version=4).cells) == 3
    assert "cell 2" in done.stderr


def test_json_tells_the_cells_that_are_not_repeated(export: Export) -> None:
    done = export("work", "out.ipynb", "--json")
    told = json.loads(done.stdout)
    assert (told["file"], told["cells"], told["missing"]) == ("out.ipynb", 3, "")
    assert [(one["cell"], one["mode"]) for one in told["not_repeated"]] == [
        (2, "skip"),
        (3, "skip"),
    ]
    assert done.stderr == ""
    assert export("work", "-", "--json").returncode == 2


def test_a_limit_is_kept_to_and_what_is_left_out_is_told(export: Export, short_dir: Path) -> None:
    done = export("work", "out.ipynb", "--limit-mib", "0.1")
    assert done.returncode == 0, done.stderr
    assert "cell 1, not compared: stdout of its output was left out of this notebook" in done.stderr
    assert (short_dir / "out.ipynb").stat().st_size < 0.1 * 2**20


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nowhere", "out.ipynb"), 2, "'work'"),
        (("work", "no-such-folder/out.ipynb"), 1, "cannot be written: No such file or directory"),
        (("work", ".", "--force"), 2, "is a folder"),
        (("work", "state/store.sqlite/out.ipynb"), 1, "Not a directory"),
        (("work",), 2, "OUT.ipynb"),
        (("work", "out.ipynb", "--limit-mib", "0"), 2, "--limit-mib"),
    ],
)
def test_what_cannot_be_done_is_told_and_leaves_nothing(
    export: Export, short_dir: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = export(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert [p.name for p in short_dir.iterdir() if "ipynb" in p.name] == []
