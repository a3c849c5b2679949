"""The Engine API's JSON, read into the broker's types. Pure; shared by Docker and Podman.

A document that lacks what identifies a container is an error, never an absence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

from sagebroker.container.runtime import (
    ContainerEvent,
    ContainerStats,
    ContainerStatus,
    EngineInfo,
)
from sagebroker.errors import ContainerError

Json: TypeAlias = Mapping[str, Any]

NANOSECONDS = 1e9
"""The engine counts processor time in nanoseconds."""

_EXITED = re.compile(r"Exited \((\d+)\)")
_FRACTION = re.compile(r"\.(\d{6})\d*")
_ENDED = ("exited", "dead")
_PODMANS_STATES = {"stopped": "exited", "configured": "created", "initialized": "created"}
"""Podman's states between two of Docker's; its exit code is known as soon as it says ``stopped``."""
_PODMANS_ACTIONS = {"remove": "destroy", "died": "die"}
"""Of containers; Docker uses neither word for them."""


def engine_info(version: Json, info: Json) -> EngineInfo:
    """What the engine's ``/version`` and ``/info`` say together."""
    components = [str(part.get("Name", "")) for part in version.get("Components") or []]
    options = tuple(str(option) for option in info.get("SecurityOptions") or [])
    podman = any("podman" in name.lower() for name in components)
    return EngineInfo(
        name="podman" if podman else "docker",
        version=str(version.get("Version", "")),
        api_version=str(version.get("ApiVersion", "")),
        rootless=any("rootless" in option for option in options),
        cgroup_version=str(info.get("CgroupVersion", "")),
        security_options=options,
        operating_system=str(info.get("OperatingSystem", "")),
        cpus=int(info.get("NCPU") or 0),
        memory_bytes=int(info.get("MemTotal") or 0),
        warnings=(*(str(line) for line in info.get("Warnings") or []), *_missing(info, options)),
    )


def _missing(info: Json, options: tuple[str, ...]) -> list[str]:
    """Limits that this engine cannot enforce; containers made by it would be refused."""
    found = [
        f"The engine cannot enforce the limit {key}."
        for key in ("MemoryLimit", "SwapLimit", "PidsLimit", "CpuCfsQuota")
        if info.get(key) is False
    ]
    if not any("seccomp" in option for option in options):
        found.append("The engine has no seccomp filter.")
    if any("rootless" in option for option in options) and str(info.get("CgroupVersion")) == "1":
        found.append("A rootless engine can enforce no limit with cgroup v1.")
    return found


def status_from_inspect(document: Json) -> ContainerStatus:
    """One container's inspect document.

    Raises:
        ContainerError: It has no id or state.
    """
    try:
        state: Json = document["State"]
        word = _state(state["Status"])
        error = str(state.get("Error") or "")
        return ContainerStatus(
            id=str(document["Id"]),
            name=str(document["Name"]).removeprefix("/"),
            state=word,
            labels=_labels((document.get("Config") or {}).get("Labels")),
            exit_code=int(state["ExitCode"]) if word in _ENDED or error else None,
            oom_killed=bool(state.get("OOMKilled")),
            error=error,
            created_at=seconds_from_stamp(str(document.get("Created", ""))),
            pid=int(state.get("Pid") or 0),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise _malformed("description of a container", problem) from problem


def status_from_summary(entry: Json) -> ContainerStatus:
    """One entry of the engine's list. It lacks the out-of-memory flag and the pid: inspect has them.

    Raises:
        ContainerError: It has no id, name or state.
    """
    try:
        exited = _EXITED.match(str(entry.get("Status") or ""))
        return ContainerStatus(
            id=str(entry["Id"]),
            name=str(entry["Names"][0]).removeprefix("/"),
            state=_state(entry["State"]),
            labels=_labels(entry.get("Labels")),
            exit_code=int(exited[1]) if exited else None,
            created_at=float(entry.get("Created") or 0),
        )
    except (KeyError, IndexError, TypeError, ValueError) as problem:
        raise _malformed("list of containers", problem) from problem


def stats_from_json(document: Json) -> ContainerStats:
    """One sample of use; zeros for a container that does not run."""
    memory: Json = document.get("memory_stats") or {}
    detail: Json = memory.get("stats") or {}
    # File pages that can be dropped at once are not use (cgroup v1, then v2 name).
    cache = int(detail.get("total_inactive_file") or detail.get("inactive_file") or 0)
    usage: Json = (document.get("cpu_stats") or {}).get("cpu_usage") or {}
    return ContainerStats(
        memory_bytes=max(0, int(memory.get("usage") or 0) - cache),
        pids=int((document.get("pids_stats") or {}).get("current") or 0),
        cpu_seconds=int(usage.get("total_usage") or 0) / NANOSECONDS,
    )


def event_from_json(document: Json) -> ContainerEvent | None:
    """One event; None for one that is not about a container or does not say about which.

    Engines have sent events without an id: a hint without one is no hint.
    """
    actor = document.get("Actor")
    if document.get("Type") != "container" or not isinstance(actor, Mapping):
        return None
    attributes = actor.get("Attributes")
    action, container = document.get("Action") or document.get("status"), actor.get("ID")
    if not isinstance(action, str) or not isinstance(container, str) or not container:
        return None
    texts = _labels(attributes if isinstance(attributes, Mapping) else {})
    code = texts.get("exitCode", "")
    # "exec_start: sh -c …" and "health_status: healthy" carry a tail that is not the action.
    word = action.partition(":")[0]
    return ContainerEvent(
        action=_PODMANS_ACTIONS.get(word, word),
        container_id=container,
        name=texts.get("name", ""),
        labels=texts,
        exit_code=int(code) if code.isascii() and code.isdigit() else None,
    )


def seconds_from_stamp(stamp: str) -> float:
    """Wall-clock seconds of the engine's RFC 3339 stamp, which may have nanoseconds.

    Raises:
        ValueError: It is no such stamp.
    """
    if not stamp:
        return 0.0
    return datetime.fromisoformat(_FRACTION.sub(r".\1", stamp).replace("Z", "+00:00")).timestamp()


def _state(word: object) -> str:
    return _PODMANS_STATES.get(str(word), str(word))


def _labels(raw: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in raw.items()} if isinstance(raw, Mapping) else {}


def _malformed(what: str, problem: Exception) -> ContainerError:
    return ContainerError(
        f"The container engine sent a {what} that cannot be read ({type(problem).__name__}: {problem}).",
        hint="`sagebroker doctor` shows its version.",
    )
