"""`ConnectionInfo`: where a kernel's sockets are and the key its messages are signed with."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import zmq

from sagebroker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SocketName = Literal["shell", "iopub", "stdin", "control", "hb"]
SOCKET_NAMES: Final[tuple[SocketName, ...]] = ("shell", "iopub", "stdin", "control", "hb")
"""In the order of their port numbers, from 1."""

KEY_BYTES: Final = 32
"""Random bytes behind a key: 256 bits, the size of the HMAC's hash."""
MAX_FILE_BYTES: Final = 16_384
"""Size of a connection file; real ones have 300 to 400 bytes."""
SIGNATURE_SCHEME: Final = "hmac-sha256"
_FILE_MODE: Final = 0o600
_MAX_PORT: Final = 65_535


@dataclass(frozen=True, kw_only=True)
class ConnectionInfo:
    """What a connection file says. The key never shows in ``repr``.

    Raises:
        ConfigError: A socket's path would be longer than a unix socket's can be.
    """

    ip: str
    """Path that the sockets' names begin with: ``…/s/k`` for ``…/s/k-1`` to ``…/s/k-5``."""
    key: bytes = field(repr=False)
    shell_port: int = 1
    iopub_port: int = 2
    stdin_port: int = 3
    control_port: int = 4
    hb_port: int = 5
    transport: str = "ipc"
    signature_scheme: str = SIGNATURE_SCHEME
    kernel_name: str = ""

    def __post_init__(self) -> None:
        for name in SOCKET_NAMES:
            path = os.fsencode(self.socket_path(name))
            if len(path) > zmq.IPC_PATH_MAX_LEN:
                raise ConfigError(
                    f"The socket path {self.socket_path(name)} has {len(path)} bytes; "
                    f"a unix socket's has at most {zmq.IPC_PATH_MAX_LEN}.",
                    hint="Use a shorter runtime folder (SAGEBROKER_RUNTIME_DIR).",
                )

    @classmethod
    def new(cls, prefix: str, *, kernel_name: str = "") -> ConnectionInfo:
        """A connection with a fresh random key.

        Args:
            prefix: Path the sockets' names begin with.
            kernel_name: Name of the kernelspec.
        """
        return cls(ip=prefix, key=secrets.token_hex(KEY_BYTES).encode(), kernel_name=kernel_name)

    @classmethod
    def load(cls, path: Path) -> ConnectionInfo:
        """Read a connection file.

        Raises:
            ConfigError: It is missing, a symlink, not a regular file, too large or not a
                connection file for ipc with HMAC-SHA256.
        """
        try:
            values = json.loads(_read_bounded(path))
            return cls._from_json(values)
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"The connection file {path} cannot be used: {error}.") from error

    def with_prefix(self, prefix: str) -> ConnectionInfo:
        """The same connection as seen from where its sockets lie at ``prefix``."""
        return replace(self, ip=prefix)

    def socket_path(self, name: SocketName) -> str:
        """The path of one socket."""
        return f"{self.ip}-{self.port(name)}"

    def port(self, name: SocketName) -> int:
        """The number at the end of one socket's path."""
        ports: dict[SocketName, int] = {
            "shell": self.shell_port,
            "iopub": self.iopub_port,
            "stdin": self.stdin_port,
            "control": self.control_port,
            "hb": self.hb_port,
        }
        return ports[name]

    def to_json(self) -> str:
        """The text of the connection file, key included."""
        return json.dumps(self.to_values(), indent=2)

    def to_values(self) -> dict[str, Any]:
        """What the connection file says, key included."""
        return {
            "transport": self.transport,
            "ip": self.ip,
            **{f"{name}_port": self.port(name) for name in SOCKET_NAMES},
            "key": self.key.decode("ascii"),
            "signature_scheme": self.signature_scheme,
            "kernel_name": self.kernel_name,
        }

    def write(self, path: Path, uid: int, gid: int) -> None:
        """Write the connection file, readable by its owner only, in one step.

        Args:
            path: Where; an existing file is replaced.
            uid: Owner, the user the kernel runs as. Giving it to another user takes root.
            gid: Group.

        Raises:
            ConfigError: It cannot be written or given to ``uid``.
        """
        write_file(path, self.to_values(), uid, gid)

    @classmethod
    def _from_json(cls, values: Any) -> ConnectionInfo:
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")  # noqa: TRY004 - the file is wrong, not a caller
        ip, key = values.get("ip"), values.get("key")
        if values.get("transport") != "ipc" or not isinstance(ip, str) or not ip.startswith("/"):
            raise ValueError("its transport is not ipc with an absolute path")
        if values.get("signature_scheme") != SIGNATURE_SCHEME:
            raise ValueError(f"its signature scheme is not {SIGNATURE_SCHEME}")
        if not isinstance(key, str) or not key or not key.isascii():
            raise ValueError("it has no key")
        ports = {f"{name}_port": values.get(f"{name}_port") for name in SOCKET_NAMES}
        for name, port in ports.items():
            if type(port) is not int or not 0 < port <= _MAX_PORT:
                raise ValueError(f"its {name} is not a port number")
        if len(set(ports.values())) != len(ports):
            raise ValueError("two of its ports are the same")
        kernel_name = values.get("kernel_name")
        return cls(
            ip=ip,
            key=key.encode(),
            kernel_name=kernel_name if isinstance(kernel_name, str) else "",
            **ports,  # type: ignore[arg-type]  # all were checked to be int
        )


def write_file(path: Path, values: dict[str, Any], uid: int, gid: int) -> None:
    """Write a connection file, readable by its owner only, in one step.

    Args:
        path: Where; an existing file is replaced.
        values: What it says.
        uid: Owner. Giving it to another user takes root.
        gid: Group.

    Raises:
        ConfigError: It cannot be written or given to ``uid``.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, _FILE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), _FILE_MODE)
                if (uid, gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), uid, gid)
                file.write(json.dumps(values, indent=2).encode())
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"The connection file {path} cannot be written: {error}.") from error


def _read_bounded(path: Path) -> bytes:
    # O_NONBLOCK: a FIFO in the file's place must not block the open.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    return data
