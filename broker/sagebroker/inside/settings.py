"""The keeper's configuration file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

CONFIGURATION_FILE = Path("/run/kernel/keeper.json")
"""Where the broker puts it; the folder is mounted read-only."""


class ConfigurationError(Exception):
    """The configuration file is missing or holds something else than it should."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Where checkpoints are, and their limits."""

    folder: str = "/checkpoint"
    report_file: str = "/run/kernel/s/restore.json"
    """Tells what came of the restore at a kernel's start."""
    order_file: str = "/run/kernel/restore.json"
    """Which checkpoint the broker wants restored; its folder is mounted read-only."""
    limit_bytes: int = 500_000_000
    """Most bytes of one checkpoint; what does not fit in is left out and named."""
    time_limit_s: float = 30.0
    """Seconds for writing one; a quarter of it for one variable."""
    keep: int = 3
    """How many are kept, besides those that have a label."""
    memory_limit_bytes: int = 512 * 2**20
    """Memory that writing one may take beyond what it shares with the kernel."""
    restore_limit_s: float = 60.0
    """Seconds for a restore, after which the kernel ends and starts anew without its cause; a
    quarter of it for one variable."""


@dataclass(frozen=True)
class KeeperConfig:
    """What the broker tells the keeper; the defaults suit a plain Python kernel."""

    connection_file: str = "/run/kernel/connection.json"
    status_file: str = "/run/kernel/s/status.json"
    lease_file: str = "/run/kernel/lease"
    lease_limit_s: float = 600.0
    """Seconds for which the lease file may stay untouched; 0 is for ever."""
    hard_life_s: float = 86400.0
    """Seconds after which the container ends whatever happens."""
    preload: tuple[str, ...] = ()
    """Modules imported once, before the kernels are forked."""
    kernel_class: str = "ipykernel.ipkernel.IPythonKernel"
    warm_up: bool = False
    """Whether Sage's slow first calls are made before the fork."""
    cwd: str = "/files"
    crash_limit: int = 3
    """Deaths nobody asked for, within `crash_window_s`, after which no kernel is forked."""
    crash_window_s: float = 60.0
    stream_chunk_bytes: int = 65536
    """Most bytes of one stream message."""
    stream_limit_bytes: int = 20_000_000
    """Most bytes of a stream of one cell."""
    checkpoint: CheckpointConfig | None = None
    """How the namespace is saved after cells; None, or an empty object in the file: not at all."""
    journal_file: str = ""
    """Where the newest cell's messages are kept; empty: nowhere."""


def parse_configuration(text: str) -> KeeperConfig:
    """Read the configuration from JSON; unknown keys are those of a newer broker and are ignored.

    Raises:
        ConfigurationError: Not a JSON object, or a value of another type than its default's.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigurationError("not a JSON object")
    return KeeperConfig(**_values(KeeperConfig, given))


def _values(kind: type[KeeperConfig | CheckpointConfig], given: dict[str, Any]) -> dict[str, Any]:
    return {
        field.name: _checked(field.name, given[field.name], field.default)
        for field in fields(kind)
        if field.name in given
    }


def _checked(name: str, value: Any, default: Any) -> Any:
    if name == "checkpoint":
        if value is None or isinstance(value, dict):
            return CheckpointConfig(**_values(CheckpointConfig, value)) if value else None
    elif isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
    elif isinstance(default, bool) or isinstance(value, bool):
        if isinstance(default, bool) and isinstance(value, bool):
            return value
    elif isinstance(default, float):
        if isinstance(value, (int, float)) and value >= 0:
            return float(value)
    elif isinstance(value, type(default)) and (not isinstance(value, int) or value >= 0):
        return value
    raise ConfigurationError(f"{name} is {value!r}")


def read_configuration(path: Path = CONFIGURATION_FILE) -> KeeperConfig:
    """Read the configuration from its file.

    Raises:
        ConfigurationError: Unreadable or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return parse_configuration(text)
