"""`SessionProvisioner`: lets any Jupyter tool have a session as its kernel.

jupyter_client's managers believe that they own a process. What they own here is at most a session: one that
they have opened is closed with them, one that was joined is left as it is. They also delete a kernel's
sockets when they end, so that each of them gets links to the endpoint's, in a folder of its own.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import anyio.to_thread
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Unicode

from sagebroker.config import BrokerConfig
from sagebroker.errors import BrokerError, ConfigError
from sagebroker.jupyter.link import (
    RESTART_LIMIT_S,
    Connection,
    Link,
    broker_request,
    control_request,
)

if TYPE_CHECKING:
    from jupyter_client.connect import KernelConnectionInfo

SESSION_NAMES: Final = "jupyter"
"""Beginning of the names of sessions that nobody has named."""
SILENCE_LIMIT_S: Final = 60.0
"""Silence of the broker after which a kernel counts as dead; a broker that is started anew needs a few seconds."""
SHUTDOWN_LIMIT_S: Final = 30.0
"""For a session to be closed: its container goes in below 1 s."""
EXIT_DEAD: Final = 1
_PORTS: Final = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_LINK_PREFIX: Final = "k"
_ENDED: Final = ("closed", "failed")


class SessionProvisioner(KernelProvisionerBase):
    """See the module. In a kernelspec: ``metadata.kernel_provisioner``, by the name ``sagebroker-provisioner``."""

    session = Unicode(
        config=True, help="Session to join, opened if need be; empty for a new one each time."
    )
    state_dir = Unicode(config=True, help="State folder, where it is not the usual one.")
    runtime_dir = Unicode(config=True, help="Folder of sockets, where it is not the usual one.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The base class has one for all of its instances.
        self.connection_info: KernelConnectionInfo = {}
        self._link: Link
        self._connection: Connection | None = None
        self._folder: Path | None = None
        self._is_attached = False
        self._answered_at = 0.0

    @property
    def has_process(self) -> bool:
        """Whether there is a session behind this."""
        return self._is_attached

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """What `launch_kernel` is called with; nothing of it reaches the container."""
        kwargs.pop("extra_arguments", None)
        kwargs.pop("transport_encryption", None)
        return await super().pre_launch(cmd=list(self.kernel_spec.argv), **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Open or join the session; where there is one already, put a new kernel into it.

        Raises:
            BrokerError: There is no session, or no new kernel; says why.
        """
        del cmd, kwargs
        if self._connection is None:
            self._link = Link(await anyio.to_thread.run_sync(self._load))
            self._connection = await self._open()
        else:
            await broker_request(
                self._connection, "restart", limit_s=RESTART_LIMIT_S, restore=False
            )
        try:
            info = await anyio.to_thread.run_sync(self._make_links, self._connection)
        except OSError as error:
            await self.cleanup()
            raise ConfigError(
                f"The links to the sockets of a session cannot be made: {error}.",
                hint="Make the runtime folder writable (SAGEBROKER_RUNTIME_DIR).",
            ) from error
        self.connection_info = cast("KernelConnectionInfo", info)
        self._is_attached = True
        self._answered_at = time.monotonic()
        return self.connection_info

    async def poll(self) -> int | None:
        """None while there is a kernel, or one is on its way."""
        if self._connection is None or not self._is_attached:
            return 0
        if not await anyio.to_thread.run_sync(self._link.is_there, self._connection):
            return EXIT_DEAD
        try:
            info = await broker_request(self._connection, "info")
        except BrokerError:
            silence_s = time.monotonic() - self._answered_at
            return None if silence_s < SILENCE_LIMIT_S else EXIT_DEAD
        self._answered_at = time.monotonic()
        return EXIT_DEAD if info["state"] in _ENDED else None

    async def wait(self) -> int | None:
        """Called when `poll` has said that it is over."""
        self._is_attached = False
        return 0

    async def send_signal(self, signum: int) -> None:
        """Stop what runs, for SIGINT; leave the session, for signals that end a process.

        Raises:
            BrokerError: It could not be stopped; says why.
        """
        if self._connection is None or signum == 0:
            return
        if signum != signal.SIGINT:
            self._is_attached = False
        elif not getattr(self.parent, "shutting_down", False):
            # A manager that leaves interrupts first: what runs may be somebody else's.
            await control_request(self._connection, "interrupt_request", {})

    async def kill(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's signature
        """Leave the session."""
        del restart
        self._is_attached = False

    async def terminate(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's signature
        """Leave the session."""
        del restart
        self._is_attached = False

    async def shutdown_requested(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's signature
        """Leave the session: its kernel answers such requests, and goes on."""
        del restart
        self._is_attached = False

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's signature
        """Close the session, if it was opened for this kernel alone, and is not needed for the next one."""
        if restart or self._connection is None:
            return
        connection, self._connection = self._connection, None
        if self._folder is not None:
            # In no thread, as all of this: tools shut down when their interpreter ends.
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self.session:
            return
        try:
            with anyio.fail_after(SHUTDOWN_LIMIT_S):
                await self._link.close(connection["session"])
        except (BrokerError, TimeoutError) as error:
            self.log.warning(
                "The session %s is not closed: %s. It can be, by: sagebroker sessions close %s",
                connection["session"],
                error,
                connection["session"],
            )

    def get_stable_start_time(self, recommended: float = 10.0) -> float:
        """A kernel that a restart brings has up to this time."""
        return max(recommended, RESTART_LIMIT_S)

    def _load(self) -> BrokerConfig:
        places: dict[str, Any] = {"state_dir": self.state_dir, "runtime_dir": self.runtime_dir}
        return BrokerConfig.load(**{name: path for name, path in places.items() if path})

    async def _open(self) -> Connection:
        if not self.session:
            return await self._link.open_new(SESSION_NAMES)
        connection, _ = await self._link.open(self.session)
        return connection

    def _make_links(self, connection: Connection) -> Connection:
        """The connection by links to the sockets, which a manager removes when it ends. Blocks."""
        if self._folder is None:
            parent = self._link.config.runtime_dir
            self._folder = Path(tempfile.mkdtemp(prefix="links-", dir=parent))
        prefix = self._folder / _LINK_PREFIX
        for port in _PORTS:
            place = Path(f"{prefix}-{connection[port]}")
            place.unlink(missing_ok=True)
            place.symlink_to(f"{connection['ip']}-{connection[port]}")
        return {
            "transport": "ipc",
            "ip": str(prefix),
            **{port: connection[port] for port in _PORTS},
            "key": str(connection["key"]).encode(),
            "signature_scheme": connection["signature_scheme"],
        }
