"""`local_runtime`: a `FakeRuntime` whose containers are real ipykernels on this machine.

Everything above the engine runs as in earnest: connection files, sockets, signals, the ladder. What
is missing is the container.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import anyio.to_thread

from sagebroker.container.spec import ContainerSpec
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.kernel.folders import CONTAINER_FOLDER, CONTAINER_SOCKETS, SOCKET_PREFIX
from sagebroker.kernel.keeper import STATUS_FILE
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
        arguments = [str(local), str(sockets / STATUS_FILE), str(places["/files"])]
        return subprocess.Popen(
            [sys.executable, str(_KEEPER), *arguments],
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
