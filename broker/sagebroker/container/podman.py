"""Podman's dialect of the Engine API: what it has to be asked, and what its answers mean in Docker's words.

Only what differs is here; `hardening` compares both engines' containers with one table. Where Podman
is asked for less than Docker, the reason stands beside it. Learnt from Podman 4.3.
"""

from __future__ import annotations

import json
import re
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sagebroker.container import seccomp
from sagebroker.errors import ContainerError

if TYPE_CHECKING:
    from docker import APIClient

Json: TypeAlias = Mapping[str, Any]

NAME = "podman"
"""`EngineInfo.name` of the engines this dialect is for."""

NATIVE = "Libpod"
"""Key under which `inspect_whole` adds Podman's own description to the Docker-compatible one."""
_PROFILE = "sagebroker-seccomp-"
"""Beginning of the name of the profile's file."""
_NATIVE_API = "v4.0.0"
"""Version of Podman's own API: the oldest that has all fields read here; newer servers accept it."""

MAX_USER_PROCESSES = 4096
"""Processes of one uid (RLIMIT_NPROC), far above what a session may have, which is another limit's.
Named because Podman otherwise raises it to 2^20, which fails where it is itself in a container."""

_UNASKED_TMPFS = {
    "/run": "ro,noexec,nosuid,nodev,size=65536,mode=755",
    "/var/tmp": "ro,noexec,nosuid,nodev,size=65536,mode=755",
}
"""Podman makes both, writable, in every container with a read-only root (its API has no switch for
that): so they are asked for by name, read-only. 64 KiB: room for the mount points below ``/run``."""
_ADDED_TMPFS_OPTIONS = ("rprivate", "tmpcopyup")
"""Podman adds them to every tmpfs: not shared, and filled with the image's files at that place."""
_REFUSED_TMPFS_OPTION = re.compile(r"(nr_inodes|mode|uid|gid)=")
_LOCAL_NAMES = ("localhost/", "docker.io/")
"""What Podman puts before the name of an image that names no registry."""
_SIGNALS = {str(number.value): number.name for number in signal.Signals}
_LOG_SIZES = {"1MB": "1m"}
_DEFAULT_NAMESPACES = {
    "PidMode": {"private": ""},
    "UTSMode": {"private": ""},
    # An own namespace either way: "shareable" lets the engine's user, who may do anything, join it.
    "IpcMode": {"shareable": "private"},
}


def asked(config: Json) -> dict[str, Any]:
    """The body of a create call as Podman takes it. Pure.

    Args:
        config: The same for Docker.
    """
    host = dict(config["HostConfig"])
    host["Tmpfs"] = {
        **{target: _tmpfs(options) for target, options in host["Tmpfs"].items()},
        **_UNASKED_TMPFS,
    }
    nproc = max(MAX_USER_PROCESSES, host["PidsLimit"])
    host["Ulimits"] = [*host["Ulimits"], {"Name": "nproc", "Soft": nproc, "Hard": nproc}]
    # It keeps one file, and starts it anew when that is full.
    log = host["LogConfig"]
    host["LogConfig"] = {**log, "Config": {"max-size": log["Config"]["max-size"]}}
    return {**config, "HostConfig": host}


def _tmpfs(options: str) -> str:
    """Without what Podman refuses: the number of files, and an owner.

    Files are then bounded by the container's memory, which their inodes count against. The folder is
    root's, so everyone in the container may write there: that is the session and nobody else.
    """
    kept = [option for option in options.split(",") if not _REFUSED_TMPFS_OPTION.match(option)]
    return ",".join([*kept, "mode=1777"])


def create(client: APIClient, config: Json, name: str) -> str:
    """Create a container, with the narrowed seccomp profile; returns its id.

    Blocks; raises one of `docker_errors.FOREIGN_ERRORS`, or a `ContainerError` when this Podman has no
    usable profile.
    """
    profile = _narrowed_profile(client)
    # Podman reads it while it creates, from this machine's disk.
    with tempfile.NamedTemporaryFile("w", prefix=_PROFILE, suffix=".json") as file:
        json.dump(profile, file)
        file.flush()
        host = config["HostConfig"]
        options = [*host["SecurityOpt"], f"seccomp={file.name}"]
        body = {**config, "HostConfig": {**host, "SecurityOpt": options}}
        reply = client.create_container_from_config(body, name=name)  # type: ignore[no-untyped-call]
    return str(reply["Id"])


def _narrowed_profile(client: APIClient) -> dict[str, Any]:
    path = str(_get(client, "info")["host"]["security"].get("seccompProfilePath") or "")
    try:
        return seccomp.narrowed(json.loads(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise ContainerError(
            f"Podman's seccomp profile {path!r} cannot be used: {error}.",
            hint="Sessions are not run without one. It comes with the package containers-common (Debian: "
            "golang-github-containers-common); `seccomp_profile` in containers.conf names it.",
        ) from error


def _get(client: APIClient, path: str) -> Any:
    """What Podman's own API says of ``path``."""
    url = f"{client.base_url}/{_NATIVE_API}/libpod/{path}"
    reply = client.get(url, timeout=client.timeout)
    reply.raise_for_status()
    return reply.json()


def inspect_whole(client: APIClient, container: str) -> dict[str, Any]:
    """A container's Docker-compatible description, with Podman's own one as `NATIVE`.

    The first does not show capabilities, cgroup namespace and log size. Blocks; raises one of
    `docker_errors.FOREIGN_ERRORS`.
    """
    document = cast("dict[str, Any]", client.inspect_container(container))
    return {**document, NATIVE: _get(client, f"containers/{container}/json")}


def in_dockers_words(inspected: Json, image: str, cgroup_version: str) -> dict[str, Any]:
    """What `inspect_whole` returned, as Docker would show the same container. Pure.

    A value whose meaning is not known stays as it is, and so counts as a deviation.

    Args:
        inspected: Podman's document.
        image: The image's name as it was asked for.
        cgroup_version: The engine's, ``1`` or ``2``.
    """
    native: Json = inspected.get(NATIVE) or {}
    return {
        **inspected,
        "Config": _config(inspected.get("Config") or {}, image),
        "HostConfig": _host(inspected, native, cgroup_version),
    }


def further_violations(inspected: Json) -> list[str]:
    """What must hold on Podman and has no counterpart in Docker's words. Pure."""
    options = (inspected.get("HostConfig") or {}).get("SecurityOpt") or []
    profiles = [str(option) for option in options if str(option).startswith("seccomp=")]
    if len(profiles) == 1 and Path(profiles[0].removeprefix("seccomp=")).name.startswith(_PROFILE):
        return []
    return [f"HostConfig.SecurityOpt is {options!r}, without the narrowed seccomp profile"]


def _config(config: Json, image: str) -> dict[str, Any]:
    told = dict(config)
    if told.get("Image") in [prefix + image for prefix in _LOCAL_NAMES]:
        told["Image"] = image
    if "StopSignal" in told:
        told["StopSignal"] = _SIGNALS.get(str(told["StopSignal"]), told["StopSignal"])
    check = told.get("Healthcheck")
    if isinstance(check, Mapping) and check.get("Test") == ["NONE"]:
        # It adds its default interval and timeout, of a check that there is not.
        told["Healthcheck"] = {"Test": ["NONE"]}
    return told


def _host(inspected: Json, native: Json, cgroup_version: str) -> dict[str, Any]:
    told: dict[str, Any] = dict(inspected.get("HostConfig") or {})
    own: Json = native.get("HostConfig") or {}
    for key, words in _DEFAULT_NAMESPACES.items():
        if key in told:
            told[key] = words.get(told[key], told[key])
    # It names each one that was dropped from its default set; what counts is that none is left.
    if all(key in native and not native[key] for key in ("BoundingCaps", "EffectiveCaps")):
        told["CapDrop"] = ["ALL"]
    mode = own.get("CgroupMode")
    # With cgroup v1 it has no such namespace unless asked by its own API. Then a session can read the
    # path of its cgroup; the files of cgroups are read-only in any case.
    told["CgroupnsMode"] = "private" if (mode, cgroup_version) == ("host", "1") else mode
    told["LogConfig"] = _log(told.get("LogConfig") or {}, own.get("LogConfig") or {})
    told["Ulimits"] = [
        {**limit, "Name": str(limit.get("Name")).removeprefix("RLIMIT_").lower()}
        for limit in told.get("Ulimits") or []
    ]
    told["Tmpfs"] = {
        target: ",".join(o for o in options.split(",") if o not in _ADDED_TMPFS_OPTIONS)
        for target, options in (told.get("Tmpfs") or {}).items()
    }
    told["Binds"] = _further_binds(told.get("Binds") or [], inspected.get("Mounts") or [])
    for key in ("MaskedPaths", "ReadonlyPaths"):
        # Not shown at all; a container shows in tests that they are in force.
        if told.get(key) is None:
            told.pop(key, None)
    return told


def _log(told: Json, own: Json) -> dict[str, Any]:
    size = _LOG_SIZES.get(str(own.get("Size")), own.get("Size"))
    kind = "json-file" if told.get("Type") == "k8s-file" else told.get("Type")
    return {"Type": kind, "Config": {"max-size": size}}


def _further_binds(binds: list[str], mounts: list[Json]) -> list[str]:
    """Binds that are not also in the list of mounts, where each is compared with what was asked for."""
    known = tuple(f"{mount.get('Source')}:{mount.get('Destination')}:" for mount in mounts)
    return [bind for bind in binds if not bind.startswith(known)]
