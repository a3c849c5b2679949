"""A stdio server whose containers are plain ipykernels: ``python local_server.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

from sagebroker.config import BrokerConfig
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.logs import set_up_logging
from sagebroker.server.stdio import serve_stdio
from sagebroker.testing.local_runtime import LocalRuntime


async def main(folder: Path) -> None:
    config = BrokerConfig(state_dir=folder / "state", runtime_dir=folder / "run")
    async with LocalRuntime(KernelSpec.load("sagemath").broker.image) as runtime:
        await serve_stdio(config, runtime)


if __name__ == "__main__":
    set_up_logging("warning", as_json=False)
    anyio.run(main, Path(sys.argv[1]))
