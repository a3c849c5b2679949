"""``sagebroker run`` whose containers are plain ipykernels: ``python local_run.py FOLDER CODE``."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from sagebroker.cli.console import run_async
from sagebroker.cli.run import compute
from sagebroker.config import BrokerConfig
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.logs import set_up_logging
from sagebroker.session.cell import Cell
from sagebroker.testing.local_runtime import LocalRuntime


async def main(folder: Path, code: str) -> Cell | None:
    config = BrokerConfig(state_dir=folder / "state", runtime_dir=folder / "run")
    async with LocalRuntime(KernelSpec.load("sagemath").broker.image) as runtime:
        return await compute(config, code, "", 600.0, runtime=runtime)


if __name__ == "__main__":
    set_up_logging("info", as_json=False)
    try:
        cell = run_async(main, Path(sys.argv[1]), sys.argv[2], heeds_signals=True)
    except typer.Exit as left:
        sys.exit(left.exit_code)
    sys.exit("left before the end" if cell is None else f"cell ended: {cell.status}")
