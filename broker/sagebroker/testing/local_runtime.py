"""`LocalRuntime`: a `FakeRuntime` whose containers are kernels of ours on this machine.

Everything above the engine runs as in earnest: connection files, sockets, signals, the ladder,
checkpoints, the journal. What is missing is the container, and Sage: the kernel is a plain Python's.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread

from sagebroker.container.spec import ContainerSpec
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.kernel.folders import CONTAINER_FOLDER, CONTAINER_SOCKETS, SOCKET_PREFIX
from sagebroker.kernel.journal import JOURNAL_FILE
from sagebroker.kernel.keeper import RESTORE_FILE, STATUS_FILE
from sagebroker.testing.fake_runtime import FakeContainer, FakeRuntime

_KEEPER = Path(__file__).with_name("local_keeper.py")
_STOP_LIMIT_S = 5.0


class LocalRuntime(FakeRuntime):
    """See the module. Use as ``async with``, so that no process is left."""

    def __init__(self, image: str) -> None:
        super().__init__(
            images={image: "sha256:" + "0" * 64},
            on_start=self._spawn,
            on_signal=self._pass_on,
            on_stop=self._end,
        )
        self.keepers: dict[str, subprocess.Popen[bytes]] = {}

    async def __aenter__(self) -> LocalRuntime:
        return self

    async def __aexit__(self, *_: object) -> None:
        for container in list(self.containers.values()):
            await self._end(container)
        await self.aclose()

    async def _spawn(self, container: FakeContainer) -> None:
        self.keepers[container.id] = await anyio.to_thread.run_sync(self._start, container.spec)

    def _start(self, spec: ContainerSpec) -> subprocess.Popen[bytes]:
        places = {mount.target: mount.source for mount in spec.mounts}
        sockets = places[CONTAINER_SOCKETS]
        connection = ConnectionInfo.load(places[CONTAINER_FOLDER] / "connection.json")
        local = places[CONTAINER_FOLDER] / "local.json"
        local.write_text(
            connection.with_prefix(str(sockets / SOCKET_PREFIX)).to_json(), encoding="utf-8"
        )
        configuration = places[CONTAINER_FOLDER] / "local-keeper.json"
        configuration.write_text(json.dumps(_configuration(places)), encoding="utf-8")
        return subprocess.Popen(
            [sys.executable, str(_KEEPER), str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def _pass_on(self, container: FakeContainer, name: str) -> None:
        self.keepers[container.id].send_signal(signal.Signals[name])

    async def _end(self, container: FakeContainer) -> None:
        keeper = self.keepers.pop(container.id, None)
        if keeper is not None:
            keeper.terminate()
            await anyio.to_thread.run_sync(keeper.wait, _STOP_LIMIT_S)


def _configuration(places: dict[str, Path]) -> dict[str, Any]:
    """The keeper's configuration with the places on this machine in place of the container's."""
    control, sockets = places[CONTAINER_FOLDER], places[CONTAINER_SOCKETS]
    given: dict[str, Any] = json.loads((control / "keeper.json").read_text(encoding="utf-8"))
    if given["checkpoint"]:
        given["checkpoint"] |= {
            "folder": str(places["/checkpoint"]),
            "report_file": str(sockets / RESTORE_FILE),
            "order_file": str(control / "restore.json"),
        }
    return given | {
        "connection_file": str(control / "local.json"),
        "status_file": str(sockets / STATUS_FILE),
        "journal_file": str(places["/checkpoint"] / JOURNAL_FILE),
        "cwd": str(places["/files"]),
        "kernel_class": "ipykernel.ipkernel.IPythonKernel",
        "preload": [],
        "warm_up": False,
    }
