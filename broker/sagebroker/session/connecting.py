"""The connection file of a session's endpoint: what a Jupyter client needs to connect to it. Everything here blocks."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final

from sagebroker.errors import ConfigError, NoEndpointError
from sagebroker.kernel.tcp_endpoint import TcpPlace

if TYPE_CHECKING:
    from pathlib import Path

    from sagebroker.store.folders import SessionFolder

CONNECTION_FILE: Final = "connection.json"
"""In a session's folder."""
TCP_CONNECTION_FILE: Final = "connection-tcp.json"
"""The same for clients of other machines."""
KERNEL_NAME: Final = "sagemath"
"""Name of the kernelspec, for clients that look at it."""


def read_connection(folder: SessionFolder, *, is_remote: bool = False) -> dict[str, Any]:
    """What the file of a session says.

    Args:
        folder: The session's.
        is_remote: For a client on another machine.

    Raises:
        NoEndpointError: There is none.
    """
    path = folder.path / (TCP_CONNECTION_FILE if is_remote else CONNECTION_FILE)
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if is_remote:
            raise NoEndpointError(
                "The session takes no Jupyter clients of other machines.",
                hint="The setting jupyter.tcp_host, where the session is served, lets them in.",
            ) from error
        raise NoEndpointError(
            "The session takes no Jupyter clients: its connection file cannot be read.",
            hint="End the sagebroker process that serves it, and open it again; its log has the reason.",
        ) from error
    return values


def write_connection(path: Path, values: dict[str, Any], name: str, session_id: str) -> None:
    """Write a connection file, readable by its owner only, in one step.

    Args:
        path: Of the file.
        values: What clients need to know.
        name: The session's, for whoever looks at the file.
        session_id: The session's.

    Raises:
        ConfigError: It cannot be written.
    """
    told = values | {"kernel_name": KERNEL_NAME, "session": name, "session_id": session_id}
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(json.dumps(told, indent=2), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"The connection file {path} cannot be written: {error}.") from error


def place_of(folder: Path, *, host: str, address: str, key: bytes) -> TcpPlace:
    """The place of a session's sockets for other machines, the same as before if there was one.

    Args:
        folder: The session's.
        host: Address to listen at.
        address: Under which clients reach it.
        key: With which messages are signed.
    """
    try:
        text = (folder / TCP_CONNECTION_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    return TcpPlace.made_of(text, host=host, address=address, key=key)
