"""The connection file of a session's endpoint: what a Jupyter client needs to connect to it. Everything here blocks."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final

from sagebroker.errors import NoEndpointError
from sagebroker.kernel.connection import write_file
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
    """Write a connection file of an endpoint.

    Args:
        path: Of the file.
        values: What clients need to know.
        name: The session's, for whoever looks at the file.
        session_id: The session's.

    Raises:
        ConfigError: It cannot be written.
    """
    told = values | {"kernel_name": KERNEL_NAME, "session": name, "session_id": session_id}
    write_file(path, told, os.geteuid(), os.getegid())


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
