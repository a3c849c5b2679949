"""A real session as a notebook: written by the command beside its broker, and replayed in a fresh container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import nbformat
import pytest
from nbformat import NotebookNode
from tests.cells import ended, result, started

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.model import CellStatus
from sagebroker.notebook.cells import notebook_outputs
from sagebroker.session.session import Session

pytestmark = [pytest.mark.sage, pytest.mark.docker]

CASES = Path(__file__).parent.parent / "data" / "sage_cases.json"

HANG_GUARD_S = 240.0

CODES = (
    "R.<x, y> = QQ[]; f(t) = t^2 + 1\nfactor(x^2 - y^2)",
    "print('out')\nimport sys; print('warn', file=sys.stderr)\nf(3)",
    "plot(sin, (0, 1))",
    "1/0",
    "%display latex",
    "sqrt(2)/3",
    "%display plain",
    "show(matrix(2, 2, [1, 2, 3, 4]))",
    "with open('table.txt', 'w') as file: _ = file.write('1 2 3')",
    "sum(ZZ(n) for n in open('table.txt').read().split())",
    "g = random_matrix(ZZ, 50, x=10^6).det(); g",
    "g + 1",
    "set_random_seed(7); ZZ.random_element(10^9)",
    "object()",
    "factor?",
)
"""Cells that end by themselves."""


async def command(config: BrokerConfig, image: str, *arguments: str) -> str:
    """What the command prints, run by a process of its own."""
    environment = {
        **os.environ,
        "SAGEBROKER_STATE_DIR": str(config.state_dir),
        "SAGEBROKER_RUNTIME_DIR": str(config.runtime_dir),
        "SAGEBROKER_KERNEL__IMAGE": image,
        "XDG_CONFIG_HOME": str(config.state_dir.parent / "home"),
    }
    with anyio.fail_after(HANG_GUARD_S):
        done = await anyio.run_process(
            [sys.executable, "-m", "sagebroker", *arguments],
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def compared(outputs: list[NotebookNode]) -> list[tuple[str, object]]:
    """Of a cell's outputs what must be the same in a replay: texts, names of exceptions, kinds of pictures."""
    seen: list[tuple[str, object]] = []
    for output in outputs:
        match output.output_type:
            case "stream":
                seen.append((output.name, output.text))
            case "error":
                seen.append((output.ename, output.evalue))
            case kind:
                seen.append((kind, (sorted(output.data), output.data.get("text/plain"))))
    return seen


async def replayed(session: Session, notebook: NotebookNode) -> list[int]:
    """Run what a notebook has run again; returns the numbers of the cells that show something else."""
    different = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", ())
        if "skip-execution" in tags:
            continue
        again = await ended(session, cell.source, time_limit_s=120)
        fails = "raises-exception" in tags
        right = again.status is (CellStatus.ERROR if fails else CellStatus.OK)
        if "nbval-ignore-output" not in tags:
            right = right and compared(notebook_outputs(again)) == compared(cell.outputs)
        if not right:
            different.append(cell.metadata.sagebroker.number)
    return different


async def test_a_session_of_all_kinds_of_cells_is_written_while_it_runs_and_replays(
    broker: Broker, config: BrokerConfig, sage_image: str, short_dir: Path
) -> None:
    session, _ = await broker.open_session("work")
    for code in CODES:
        await ended(session, code)
    endless = await started(session, "n = 0\nwhile True: n += 1")
    await session.cancel(endless, "request")
    for code in ("n > 0", "n = 5", "n^2", "import os; os.kill(os.getpid(), int(9))", "n", "f(2)"):
        await ended(session, code)
    running = await started(session, "while True: pass")

    file = short_dir / "work.ipynb"
    told = json.loads(await command(config, sage_image, "export", "work", str(file), "--json"))
    await session.cancel(running, "request")
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert told["cells"] == len(notebook.cells) == 23
    assert {one["cell"]: (one["mode"], one["reasons"][0]) for one in told["not_repeated"]} == {
        11: ("differs", "depends on chance: random_matrix"),
        12: ("differs", "uses g of cell 11, which may have another value"),
        14: ("differs", "shows an address in memory"),
        16: ("skip", "was interrupted"),
        17: ("skip", "uses n of cell 16, which is not run again"),
        20: ("skip", "ended with its kernel"),
        21: (
            "differs",
            "uses n as the new kernel after cell 20 had it, perhaps an older value",
        ),
        22: (
            "differs",
            "uses f as the new kernel after cell 20 had it, perhaps an older value",
        ),
        23: ("skip", "had not ended"),
    }
    cells = {cell.metadata.sagebroker.number: cell for cell in notebook.cells}
    assert [o.get("name", o.output_type) for o in cells[2].outputs] == [
        "stdout",
        "stderr",
        "execute_result",
    ]
    assert "image/png" in cells[3].outputs[0].data
    assert cells[4].metadata.tags == ["raises-exception"]
    assert "text/latex" in cells[6].outputs[0].data
    assert "Return the factorization" in cells[15].metadata.sagebroker.pager
    [kernel] = notebook.metadata.sagebroker.kernels
    assert kernel.startswith("sage 10.")

    fresh, _ = await broker.open_session("replay")
    assert await replayed(fresh, notebook) == []
    assert result(await ended(fresh, "f(1)")) == "2"


async def test_the_cases_of_this_project_replay_from_their_notebook(
    broker: Broker, config: BrokerConfig, sage_image: str, short_dir: Path
) -> None:
    session, _ = await broker.open_session("cases")
    for case in json.loads(CASES.read_text(encoding="utf-8")):
        codes = case["code"] if isinstance(case["code"], list) else [case["code"]]
        for code in codes:
            await ended(session, code, time_limit_s=120)
    # Before a cell is sent all earlier ones are on disk.
    await session.cancel(await started(session, "while True: pass"), "request")
    file = short_dir / "cases.ipynb"
    told = json.loads(await command(config, sage_image, "export", "cases", str(file), "--json"))
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    fresh, _ = await broker.open_session("replay")
    assert await replayed(fresh, notebook) == []
    assert len(told["not_repeated"]) < len(notebook.cells) / 10, told["not_repeated"]
