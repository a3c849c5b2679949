"""A server whose containers are plain ipykernels: ``python local_server.py FOLDER [serve]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio

from sagebroker.config import BrokerConfig
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.logs import set_up_logging
from sagebroker.server.serve import Serving, serve
from sagebroker.server.stdio import serve_stdio
from sagebroker.testing.local_runtime import LocalRuntime


async def main(folder: Path, mode: str) -> None:
    config = BrokerConfig.load(state_dir=folder / "state", runtime_dir=folder / "run")
    async with LocalRuntime(KernelSpec.load("sagemath").broker.image) as runtime:
        if mode == "serve":
            on_free_port = config.serve.model_copy(update={"port": 0})
            config = config.model_copy(update={"serve": on_free_port})
            await serve(config, runtime, on_ready=tell)
        else:
            await serve_stdio(config, runtime)


def tell(serving: Serving) -> None:
    print(json.dumps(serving.as_json()), flush=True)


if __name__ == "__main__":
    set_up_logging("warning", as_json=False)
    anyio.run(main, Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "stdio")
