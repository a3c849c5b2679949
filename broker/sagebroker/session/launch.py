"""`Launcher`: makes, finds and removes the containers of sessions."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from pathlib import Path

import anyio
import anyio.to_thread

from sagebroker.config import BrokerConfig
from sagebroker.container import spec as labels
from sagebroker.container.engine import ContainerUser, container_user
from sagebroker.container.runtime import ContainerRuntime, ContainerStatus
from sagebroker.container.spec import ContainerSpec, Limits, Mount, Tmpfs
from sagebroker.errors import (
    BrokerError,
    ConfigError,
    ContainerConflictError,
    ContainerNotFoundError,
    ImageNotFoundError,
    KernelStartError,
    StorageError,
)
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.kernel.folders import (
    CONTAINER_FOLDER,
    CONTAINER_SOCKETS,
    KernelFolder,
    RestoreOrder,
)
from sagebroker.kernel.host import ContainerHost
from sagebroker.kernel.journal import JOURNAL_FILE
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.logs import event
from sagebroker.model import new_session_id, utcnow
from sagebroker.store.folders import SessionFolder
from sagebroker.store.records import Hibernate, OnEnd, SessionRow

ENVIRONMENT = {
    "HOME": "/home/sage",
    "USER": "sage",
    "LOGNAME": "sage",
    "DOT_SAGE": "/home/sage/.sage",
    "MPLCONFIGDIR": "/home/sage/.matplotlib",
    "IPYTHONDIR": "/home/sage/.ipython",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Places that a user without an entry in /etc/passwd needs named; all lie on the tmpfs."""

STREAM_MARGIN_BYTES = 4096
"""Room for the line in which the kernel tells what it left out."""

UNDO_LIMIT_S = 60.0
"""Time to take back a start that failed: removing a container has 30 s, its folders need far less."""

_log = logging.getLogger(__name__)


class Launcher:
    """Containers of sessions on one engine.

    Args:
        runtime: Returns the engine, connecting when first asked.
    """

    def __init__(
        self,
        config: BrokerConfig,
        instance: str,
        runtime: Callable[[], Awaitable[ContainerRuntime]],
    ) -> None:
        self._config = config
        self._instance = instance
        self._runtime = runtime
        self.kernelspec = KernelSpec.load(config.kernel.kernelspec)
        self.limits = self.kernelspec.container(config.container)
        self.image = config.kernel.image or self.kernelspec.broker.image

    def draft(
        self, name: str, *, on_end: OnEnd, hibernate: Hibernate
    ) -> Callable[[int], SessionRow]:
        """The row of a new session, for a user id."""
        made = partial(
            SessionRow,
            id=new_session_id(),
            name=name,
            on_end=on_end,
            hibernate=hibernate,
            created=utcnow().isoformat(),
            wire_id=secrets.token_hex(16),
            kernelspec=self.kernelspec.name,
            image=self.image,
            memory_bytes=self.limits.memory_bytes,
            state="reserved",
            active_at=utcnow().timestamp(),
        )
        return lambda uid: made(uid=uid)

    async def launch(
        self, row: SessionRow, folder: SessionFolder, *, restore: RestoreOrder
    ) -> ContainerHost:
        """Start a new container for a session, in place of what is left of an earlier one.

        Args:
            row: The session's.
            folder: Its folder, locked.
            restore: Which checkpoint its kernel restores.

        Raises:
            ImageNotFoundError: The image is not there; says how to get it.
            BrokerError: The engine or the disk refused. What was made is removed again, or, where
                the engine does not answer, at the next launch.
        """
        runtime = await self._runtime()
        try:
            digest = await runtime.image_digest(row.image)
        except ImageNotFoundError as error:
            raise ImageNotFoundError(
                f"The engine has no image {row.image!r}.",
                hint="Make it with: sagebroker image build",
            ) from error
        await self._remove(row.id)
        is_asked = False
        try:
            gid = row.uid if os.geteuid() == 0 else os.getegid()
            connection = await self._make_folders(row, folder, gid, restore=restore)
            user = container_user(await runtime.ping(), uid=row.uid, gid=gid)
            spec = self._spec(row, folder, self.kernel_folder(row.id), user, digest)
            is_asked = True
            container = await runtime.create(spec)
            await runtime.start(container)
        except BaseException:
            with anyio.move_on_after(UNDO_LIMIT_S, shield=True):
                await self._undo(row.id, with_container=is_asked)
            raise
        _log.info(
            "Container %s runs session %s",
            spec.name,
            row.id,
            extra=event("container.created", session=row.id, container=container),
        )
        return self._host(runtime, container, row, connection)

    async def _make_folders(
        self, row: SessionRow, folder: SessionFolder, gid: int, *, restore: RestoreOrder
    ) -> ConnectionInfo:
        keeper = self._keeper_config(row)
        connection = await anyio.to_thread.run_sync(
            partial(self.kernel_folder(row.id).create, restore=restore), row.uid, gid, keeper
        )
        for mounted in (folder.files, folder.checkpoints):
            await anyio.to_thread.run_sync(_give, mounted, row.uid, gid)
        return connection

    async def _undo(self, session_id: str, *, with_container: bool) -> None:
        try:
            if with_container:
                await self._remove(session_id)
            else:
                await anyio.to_thread.run_sync(self.kernel_folder(session_id).delete)
        except BrokerError as error:
            # The failure that is being told matters more; the next launch removes it first.
            _log.warning("A failed start of session %s is not undone yet: %s", session_id, error)

    async def adopt(self, row: SessionRow) -> ContainerHost | None:
        """The running container of a session that an earlier broker left, or None.

        None also where the way to its kernel is gone. Whatever comes of it, nothing is changed.

        Raises:
            KernelStartError: Somebody paused the container, or its sockets are in another folder.
            ContainerConflictError: The container is another installation's.
            ConfigError: The runtime folder is not this user's alone.
        """
        runtime = await self._runtime()
        name = container_name(row.id)
        try:
            found = await runtime.inspect(name)
        except ContainerNotFoundError:
            return None
        if found.labels.get(labels.LABEL_INSTANCE) != self._instance:
            raise ContainerConflictError(
                f"The container {name} belongs to another installation of sagebroker.",
                hint=f"Remove or rename it, for instance with `docker rename {name} NEW_NAME`.",
            )
        if found.state == "paused":
            raise KernelStartError(
                f"The container of session {row.name!r} is paused.",
                hint=f"Its variables are kept; unpause it with `docker unpause {name}`.",
            )
        if found.state != "running":
            return None
        kernel_folder = self.kernel_folder(row.id)
        await anyio.to_thread.run_sync(kernel_folder.check)
        await anyio.to_thread.run_sync(kernel_folder.touch_lease)
        try:
            connection = await anyio.to_thread.run_sync(kernel_folder.load)
        except ConfigError as error:
            await anyio.to_thread.run_sync(_check_elsewhere, row, found)
            # A logout removes $XDG_RUNTIME_DIR, a tidy system old files in /tmp.
            _log.warning("The kernel of session %s is out of reach: %s", row.id, error)
            return None
        host = self._host(runtime, found.id, row, connection)
        status = await host.status()
        # A keeper that has given up starts no kernel again: its container is of no use.
        return None if status is not None and status.state == "crash_loop" else host

    def _host(
        self,
        runtime: ContainerRuntime,
        container: str,
        row: SessionRow,
        connection: ConnectionInfo,
    ) -> ContainerHost:
        return ContainerHost(
            runtime,
            container,
            connection=connection,
            sockets=self.kernel_folder(row.id).sockets,
            memory_limit_bytes=row.memory_bytes,
        )

    async def discard(self, session_id: str) -> None:
        """Remove a session's container and sockets; harmless when they are gone.

        Raises:
            ContainerError: The engine did not remove the container; its sockets stay, as it may use them.
            StorageError: The container is gone, the folder of its sockets is not.
        """
        await self._remove(session_id)
        _log.info(
            "The container of session %s is removed",
            session_id,
            extra=event("container.removed", session=session_id),
        )

    async def erase(self, session_id: str) -> None:
        """`discard`, for a session that is no more: its endpoint, too. Raises as that."""
        await self.discard(session_id)
        await anyio.to_thread.run_sync(self.kernel_folder(session_id).delete_endpoint)

    async def _remove(self, session_id: str) -> None:
        runtime = await self._runtime()
        await runtime.remove(container_name(session_id))
        await anyio.to_thread.run_sync(self.kernel_folder(session_id).delete)

    async def containers(self) -> list[ContainerStatus]:
        """Every container of this installation."""
        runtime = await self._runtime()
        return await runtime.list(self.own_labels)

    @property
    def own_labels(self) -> dict[str, str]:
        """What every container of this installation carries."""
        return {labels.LABEL_INSTANCE: self._instance}

    def kernel_folder(self, session_id: str) -> KernelFolder:
        """Where a session's sockets are."""
        return KernelFolder(self._config.runtime_dir, session_id)

    def _keeper_config(self, row: SessionRow) -> dict[str, object]:
        broker, checkpoint = self.kernelspec.broker, self._config.checkpoint
        saving = {
            "folder": "/checkpoint",
            "limit_bytes": checkpoint.limit_bytes,
            "time_limit_s": checkpoint.time_limit_s,
            "keep": checkpoint.keep,
        }
        return {
            "checkpoint": saving if checkpoint.enabled else {},
            "journal_file": f"/checkpoint/{JOURNAL_FILE}",
            "connection_file": f"{CONTAINER_FOLDER}/connection.json",
            "status_file": f"{CONTAINER_SOCKETS}/status.json",
            "lease_file": f"{CONTAINER_FOLDER}/lease",
            # A session that is to stay outlives its broker; its hard life still ends it.
            "lease_limit_s": 0.0 if row.on_end == "stay" else self.limits.lease_limit_s,
            "hard_life_s": self.limits.hard_life_s,
            "preload": list(broker.preload),
            "kernel_class": broker.kernel_class,
            "warm_up": broker.warm_up,
            "cwd": "/files",
            "crash_limit": self._config.session.crash_limit,
            "crash_window_s": self._config.session.crash_window_s,
            # Cut in the kernel already, so that a flood costs nothing on the way; what comes through
            # is kept whole here, with the kernel's own word on how much is missing.
            "stream_limit_bytes": self._config.session.stream_bytes - STREAM_MARGIN_BYTES,
        }

    def _spec(
        self,
        row: SessionRow,
        folder: SessionFolder,
        kernel_folder: KernelFolder,
        user: ContainerUser,
        digest: str,
    ) -> ContainerSpec:
        limits = self.limits
        config_hash = hashlib.sha256(
            json.dumps(limits.model_dump(), sort_keys=True).encode()
        ).hexdigest()[:16]
        return ContainerSpec(
            name=container_name(row.id),
            image=row.image,
            command=self.kernelspec.command(),
            uid=user.uid,
            gid=user.gid,
            userns_mode=user.userns_mode,
            rootless=user.rootless,
            limits=Limits(
                memory_bytes=limits.memory_bytes,
                cpus=limits.cpus,
                pids=limits.pids,
                open_files=limits.open_files,
                file_bytes=limits.file_bytes,
            ),
            mounts=(
                Mount(source=kernel_folder.control, target=CONTAINER_FOLDER, read_only=True),
                Mount(source=kernel_folder.sockets, target=CONTAINER_SOCKETS, read_only=False),
                Mount(source=folder.files, target="/files", read_only=False),
                Mount(source=folder.checkpoints, target="/checkpoint", read_only=False),
                Mount(source=inside_folder(), target="/opt/sagebroker", read_only=True),
            ),
            tmpfs=(
                Tmpfs(target="/tmp", size_bytes=limits.tmp_bytes),
                Tmpfs(target="/home/sage", size_bytes=limits.tmp_bytes, mode=0o700),
            ),
            environment=dict(ENVIRONMENT),
            labels={
                labels.LABEL_INSTANCE: self._instance,
                labels.LABEL_ROLE: "session",
                labels.LABEL_SESSION: row.id,
                labels.LABEL_GENERATION: secrets.token_hex(8),
                labels.LABEL_IMAGE_DIGEST: digest,
                labels.LABEL_CONFIG_HASH: config_hash,
                labels.LABEL_CREATED: utcnow().isoformat(),
                labels.LABEL_RUNTIME: str(self._config.runtime_dir),
            },
        )


def _check_elsewhere(row: SessionRow, container: ContainerStatus) -> None:
    """Raise `KernelStartError` where a running kernel's sockets are in the folder of another configuration."""
    folder = container.labels.get(labels.LABEL_RUNTIME, "")
    if folder and (Path(folder) / row.id / "ctl" / "connection.json").exists():
        raise KernelStartError(
            f"The kernel of session {row.name!r} runs, but its sockets are in {folder}.",
            hint=f"Set SAGEBROKER_RUNTIME_DIR={folder} to reach it, or end it with: sagebroker sessions close "
            f"{row.name}",
        )


def container_name(session_id: str) -> str:
    """The name of a session's container; the same for each of its incarnations."""
    return f"sagebroker-{session_id}"


def inside_folder() -> Path:
    """The folder with what runs in the container."""
    return Path(str(files("sagebroker"))) / "inside"


def _give(folder: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        try:
            os.chown(folder, uid, gid)
        except OSError as error:
            raise StorageError(
                f"The folder {folder} cannot be given to user {uid}: {error}.",
                hint="Set SAGEBROKER_STATE_DIR to a folder on a disk that knows owners.",
            ) from error
