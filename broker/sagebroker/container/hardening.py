"""The hardening of every container: what is asked of the engine, and whether it was given.

`create_config` is the table of the design as the Engine API's JSON; `violations` compares a real
container's inspect document with it. There is no switch that weakens either. The table is in
Docker's words; `podman` translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sagebroker.container import podman

if TYPE_CHECKING:
    from docker import APIClient

    from sagebroker.container.runtime import EngineInfo
    from sagebroker.container.spec import ContainerSpec, Tmpfs

Json: TypeAlias = Mapping[str, Any]

TMPFS_BYTES_PER_INODE = 16 * 1024
"""One file per 16 KiB of a tmpfs: each inode costs about 1 KiB of kernel memory beside its content,
and Sage's caches hold files of that order."""
MIN_TMPFS_INODES = 1024
"""Enough for Sage's and IPython's own files in a tiny tmpfs."""
LOG_BYTES = "1m"
"""Size of one log file: the engine's default has no bound, and a container can print for ever."""
LOG_FILES = "2"
"""Log files kept: the full one and the one being written."""
MOUNT_PROPAGATION = "rprivate"
"""Neither side sees later mounts of the other."""
NANO = 10**9
"""The engine counts processor time in billionths of a core."""

_MASKED = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
"""Kernel files that the engine's default hides; an empty list would be an unconfined container."""
_READ_ONLY = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/sysrq-trigger")

_MUST_BE_UNSET = (
    "Privileged", "CapAdd", "Devices", "DeviceRequests", "DeviceCgroupRules", "Binds", "VolumesFrom",
    "PortBindings", "PublishAllPorts", "Links", "ExtraHosts", "GroupAdd", "PidMode", "UTSMode",
    "Sysctls", "OomKillDisable", "AutoRemove", "CgroupParent", "Init",
)  # fmt: skip
"""Each of these, if set, gives the container something that is the host's or another container's."""


def create_config(spec: ContainerSpec, engine: EngineInfo | None = None) -> dict[str, Any]:
    """The body of the engine's create call for ``spec``, in the Engine API's own JSON.

    Sizes are bytes. The program is the entry point, so that an image's own one is not run first.

    Args:
        spec: The container.
        engine: Who is asked; Docker if None.
    """
    config = _create_config(spec)
    return podman.asked(config) if _is_podman(engine) else config


def _is_podman(engine: EngineInfo | None) -> bool:
    return engine is not None and engine.name == podman.NAME


def _create_config(spec: ContainerSpec) -> dict[str, Any]:
    return {
        "Image": spec.image,
        "Entrypoint": list(spec.command[:1]),
        "Cmd": list(spec.command[1:]),
        "User": f"{spec.uid}:{spec.gid}",
        "WorkingDir": spec.working_dir,
        "Env": [f"{name}={value}" for name, value in sorted(spec.environment.items())],
        "Labels": dict(spec.labels),
        "StopSignal": "SIGTERM",
        # An image's health check is run by the engine as a further process of the container.
        "Healthcheck": {"Test": ["NONE"]},
        "Tty": False,
        "OpenStdin": False,
        "HostConfig": _host_config(spec),
    }


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    limits = spec.limits
    return {
        "CapDrop": ["ALL"],
        # Nothing else here: the engine's default seccomp and AppArmor profiles stay in force.
        "SecurityOpt": ["no-new-privileges:true"],
        "ReadonlyRootfs": True,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "UsernsMode": spec.userns_mode,
        "Memory": limits.memory_bytes,
        # Equal to Memory: no swap. Swapping would turn a clean out-of-memory into a stalled machine.
        "MemorySwap": limits.memory_bytes,
        "NanoCpus": round(limits.cpus * NANO),
        "PidsLimit": limits.pids,
        "ShmSize": limits.shm_bytes,
        "Ulimits": [
            _ulimit("core", 0),
            _ulimit("nofile", limits.open_files),
            _ulimit("fsize", limits.file_bytes),
        ],
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": LOG_BYTES, "max-file": LOG_FILES},
        },
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        # Its exit code and out-of-memory flag are needed after its death.
        "AutoRemove": False,
        "Privileged": False,
        # PID 1 is the keeper, which reaps and forwards signals itself.
        "Init": False,
        "Tmpfs": {place.target: _tmpfs_options(place, spec) for place in spec.tmpfs},
        "Mounts": [
            {
                "Type": "bind",
                "Source": str(mount.source),
                "Target": mount.target,
                "ReadOnly": mount.read_only,
                "BindOptions": {"Propagation": MOUNT_PROPAGATION},
            }
            # A place inside another one has to be mounted after it.
            for mount in sorted(spec.mounts, key=lambda mount: mount.target)
        ],
    }


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def _tmpfs_options(place: Tmpfs, spec: ContainerSpec) -> str:
    inodes = max(MIN_TMPFS_INODES, place.size_bytes // TMPFS_BYTES_PER_INODE)
    # exec, against the engine's default: Cython cells, ctypes and numba load the libraries they make
    # in /tmp and $HOME. noexec would be no boundary: the session runs any code it likes as it is.
    return (
        f"rw,exec,nosuid,nodev,size={place.size_bytes},nr_inodes={inodes},"
        f"mode={place.mode:o},uid={spec.uid},gid={spec.gid}"
    )


def create_container(
    client: APIClient, spec: ContainerSpec, engine: EngineInfo | None = None
) -> str:
    """Create a container; returns its id. Blocks; raises one of `docker_errors.FOREIGN_ERRORS`."""
    config = create_config(spec, engine)
    if _is_podman(engine):
        return podman.create(client, config, spec.name)
    reply = client.create_container_from_config(config, name=spec.name)  # type: ignore[no-untyped-call]
    return str(reply["Id"])


def inspect_container(
    client: APIClient, container: str, engine: EngineInfo | None = None
) -> dict[str, Any]:
    """The description that `violations` judges. Blocks; raises one of `docker_errors.FOREIGN_ERRORS`."""
    if _is_podman(engine):
        return podman.inspect_whole(client, container)
    return cast("dict[str, Any]", client.inspect_container(container))


def violations(inspected: Json, spec: ContainerSpec, engine: EngineInfo | None = None) -> list[str]:
    """Every point in which a real container is not what `create_config` asked for.

    Args:
        inspected: What `inspect_container` returned.
        spec: What it was created from.
        engine: Whose it is; Docker if None.

    Returns:
        One clause for each difference; empty when the container is as it must be.
    """
    wanted = create_config(spec, engine)
    further: list[str] = []
    if engine is not None and _is_podman(engine):
        further = podman.further_violations(inspected)
        inspected = podman.in_dockers_words(inspected, spec.image, engine.cgroup_version)
    host: Json = inspected.get("HostConfig") or {}
    return [
        *_differences("", _config_part(wanted), inspected.get("Config") or {}),
        *_differences("HostConfig.", _host_part(wanted["HostConfig"]), host),
        *_unset(host),
        *_capabilities(host),
        *_confinement(inspected, host),
        *_subset(
            "environment variable", _variables(wanted), _variables(inspected.get("Config") or {})
        ),
        *_subset("label", spec.labels, (inspected.get("Config") or {}).get("Labels") or {}),
        *_mounts(inspected, spec),
        *further,
    ]


def _config_part(wanted: Json) -> dict[str, Any]:
    keys = ("Image", "Entrypoint", "Cmd", "User", "WorkingDir", "StopSignal", "Healthcheck", "Tty")
    return {key: wanted[key] for key in (*keys, "OpenStdin")}


def _host_part(wanted: Json) -> dict[str, Any]:
    elsewhere = {"CapDrop", "SecurityOpt", "Mounts", "CgroupnsMode", *_MUST_BE_UNSET}
    return {key: value for key, value in wanted.items() if key not in elsewhere}


def _plain(value: Any) -> Any:
    """``value`` in a form in which equal settings are equal: nothing is nothing, order is none."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        if all(isinstance(item, Mapping) and "Name" in item for item in value):
            return sorted((_plain(item) for item in value), key=lambda item: str(item["Name"]))
        return [_plain(item) for item in value]
    return value


def _differences(prefix: str, wanted: Json, real: Json) -> list[str]:
    found = []
    for key, value in wanted.items():
        have = real.get(key)
        if _plain(value) != _plain(have) and (value or have):
            found.append(f"{prefix}{key} is {have!r} instead of {value!r}")
    return found


def _unset(host: Json) -> list[str]:
    # Docker writes -1 for "default" nowhere here: any true value is a setting.
    return [f"HostConfig.{key} is {host[key]!r}" for key in _MUST_BE_UNSET if host.get(key)]


def _capabilities(host: Json) -> list[str]:
    dropped = [str(name).upper() for name in host.get("CapDrop") or []]
    return [] if "ALL" in dropped else [f"HostConfig.CapDrop is {dropped!r}"]


def _confinement(inspected: Json, host: Json) -> list[str]:
    found = []
    options = [str(option) for option in host.get("SecurityOpt") or []]
    if not any(o in ("no-new-privileges", "no-new-privileges:true") for o in options):
        found.append(f"HostConfig.SecurityOpt is {options!r}, without no-new-privileges")
    if any("unconfined" in option or "disable" in option for option in options):
        found.append(f"HostConfig.SecurityOpt is {options!r}")
    if inspected.get("AppArmorProfile") == "unconfined":
        found.append("AppArmorProfile is 'unconfined'")
    if host.get("CgroupnsMode") == "host":
        found.append("HostConfig.CgroupnsMode is 'host'")
    for key, places in (("MaskedPaths", _MASKED), ("ReadonlyPaths", _READ_ONLY)):
        # Podman does not show the lists; its translation leaves the key out then.
        if key in host and not set(places) <= set(host[key] or []):
            found.append(f"HostConfig.{key} is {host[key]!r}")
    return found


def _variables(config: Json) -> dict[str, str]:
    pairs = (str(entry).partition("=") for entry in config.get("Env") or [])
    return {name: value for name, _, value in pairs}


def _subset(what: str, wanted: Mapping[str, str], real: Json) -> list[str]:
    """The image may add to environment and labels, but not change what was asked for."""
    return [
        f"{what} {name} is {real.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if real.get(name) != value
    ]


def _mounts(inspected: Json, spec: ContainerSpec) -> list[str]:
    wanted = {m.target: (str(m.source), not m.read_only) for m in spec.mounts}
    memory = {place.target for place in spec.tmpfs}
    found, seen = [], set()
    for mount in inspected.get("Mounts") or []:
        target, kind = str(mount.get("Destination")), mount.get("Type")
        if kind == "tmpfs" and target in memory:
            continue
        seen.add(target)
        if kind != "bind" or target not in wanted:
            found.append(f"there is a {kind} mount at {target} that was not asked for")
        elif (str(mount.get("Source")), bool(mount.get("RW"))) != wanted[target]:
            have = f"{mount.get('Source')} ({'rw' if mount.get('RW') else 'ro'})"
            found.append(f"{target} is {have} instead of {wanted[target]!r}")
        elif mount.get("Propagation") not in (MOUNT_PROPAGATION, "private"):
            found.append(f"{target} has propagation {mount.get('Propagation')!r}")
    found += [f"{target} is not mounted" for target in sorted(wanted.keys() - seen)]
    return found
