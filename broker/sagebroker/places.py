"""Where a server is found: its lock, its sockets, its paths. For those who start without the server's libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from sagebroker.config import BrokerConfig

MCP_PATH: Final = "/mcp"
API_PATH: Final = "/api"


def server_lock(config: BrokerConfig) -> Path:
    """Held by the server of a state folder, with its process's id in it."""
    return config.state_dir / "server.lock"


def server_log(config: BrokerConfig) -> Path:
    """What a server that was started in the background has to say."""
    return config.state_dir / "server.log"


def token_file(config: BrokerConfig) -> Path:
    """The tokens of a state folder's users."""
    return config.state_dir / "tokens.json"


def mcp_socket(config: BrokerConfig, instance: str) -> Path:
    """Where the server of an installation speaks MCP to stdio front ends."""
    return config.runtime_dir / f"{instance}.mcp"


def http_socket(config: BrokerConfig, instance: str) -> Path:
    """Where the server of an installation speaks HTTP to its own user."""
    return config.runtime_dir / f"{instance}.http"
