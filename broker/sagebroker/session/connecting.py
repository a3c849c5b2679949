"""The connection file of a session's endpoint: what a Jupyter client needs to connect to it. Everything here blocks."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, Final

from sagebroker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from sagebroker.kernel.connection import ConnectionInfo
    from sagebroker.store.folders import SessionFolder

CONNECTION_FILE: Final = "connection.json"
"""In a session's folder."""


def read_connection(folder: SessionFolder) -> dict[str, Any]:
    """What the file of a session says. Raises `ConfigError` where there is none."""
    path = folder.path / CONNECTION_FILE
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The session has no endpoint for Jupyter clients: {path} cannot be read ({error}).",
            hint="End the sagebroker process that serves it, and open it again; its log has the reason.",
        ) from error
    return values


def write_connection(path: Path, connection: ConnectionInfo, name: str, session_id: str) -> None:
    """Write the file, readable by its owner only, in one step; with the session's name and id.

    Raises:
        ConfigError: It cannot be written.
    """
    values = json.loads(connection.to_json()) | {"session": name, "session_id": session_id}
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(json.dumps(values, indent=2), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"The connection file {path} cannot be written: {error}.") from error
