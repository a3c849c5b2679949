"""The table of the hardening, and that every deviation from it is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagebroker.container.engine import ContainerUser
from sagebroker.container.hardening import create_config, violations
from sagebroker.container.spec import ContainerSpec
from sagebroker.testing.containers import make_folders, session_spec


@pytest.fixture
def spec(tmp_path: Path) -> ContainerSpec:
    return session_spec(
        image="sagebroker/fake:1",
        folders=make_folders(tmp_path),
        user=ContainerUser(uid=1234, gid=1235),
        instance="test",
    )


def inspected(spec: ContainerSpec) -> dict[str, Any]:
    """What Docker 20.10 shows of a container made from ``spec``."""
    config = copy.deepcopy(create_config(spec))
    host = config.pop("HostConfig")
    config["Env"] += ["PATH=/usr/bin", "SAGE_VERSION=10.8"]
    config["Labels"]["org.opencontainers.image.title"] = "of the image"
    host |= {
        "Binds": None,
        "CapAdd": None,
        "Devices": [],
        "PidMode": "",
        "OomKillDisable": False,
        "MaskedPaths": [
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/sys/firmware",
            "/proc/acpi",
        ],
        "ReadonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        "ConsoleSize": [0, 0],
    }
    host["Ulimits"].reverse()
    mounts = [
        {
            "Type": "bind",
            "Source": str(mount.source),
            "Destination": mount.target,
            "Mode": "",
            "RW": not mount.read_only,
            "Propagation": "rprivate",
        }
        for mount in spec.mounts
    ]
    return {"Config": config, "HostConfig": host, "Mounts": mounts, "AppArmorProfile": ""}


def test_a_container_as_asked_for_has_no_violation(spec: ContainerSpec) -> None:
    assert violations(inspected(spec), spec) == []


def test_an_empty_document_violates_everything(spec: ContainerSpec) -> None:
    assert len(violations({}, spec)) > 20


Change = Callable[[dict[str, Any]], object]


def host(**values: Any) -> Change:
    return lambda document: document["HostConfig"].update(values)


def config(**values: Any) -> Change:
    return lambda document: document["Config"].update(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (host(CapDrop=[]), "CapDrop"),
        (host(CapDrop=["NET_RAW"]), "CapDrop"),
        (host(CapAdd=["SYS_ADMIN"]), "CapAdd"),
        (host(Privileged=True), "Privileged"),
        (host(SecurityOpt=None), "no-new-privileges"),
        (host(SecurityOpt=["no-new-privileges:true", "seccomp=unconfined"]), "unconfined"),
        (host(SecurityOpt=["no-new-privileges:true", "apparmor=unconfined"]), "unconfined"),
        (host(SecurityOpt=["no-new-privileges:true", "label=disable"]), "label=disable"),
        (host(SecurityOpt=["no-new-privileges:false"]), "no-new-privileges"),
        (host(ReadonlyRootfs=False), "ReadonlyRootfs"),
        (host(NetworkMode="bridge"), "NetworkMode"),
        (host(NetworkMode="host"), "NetworkMode"),
        (host(IpcMode="host"), "IpcMode"),
        (host(PidMode="host"), "PidMode"),
        (host(UTSMode="host"), "UTSMode"),
        (host(CgroupnsMode="host"), "CgroupnsMode"),
        (host(UsernsMode="host"), "UsernsMode"),
        (host(Memory=0), "Memory"),
        (host(MemorySwap=-1), "MemorySwap"),
        (host(NanoCpus=0), "NanoCpus"),
        (host(PidsLimit=None), "PidsLimit"),
        (host(ShmSize=2**40), "ShmSize"),
        (host(Ulimits=[]), "Ulimits"),
        (host(LogConfig={"Type": "json-file", "Config": {}}), "LogConfig"),
        (host(RestartPolicy={"Name": "always", "MaximumRetryCount": 0}), "RestartPolicy"),
        (host(AutoRemove=True), "AutoRemove"),
        (host(Init=True), "Init"),
        (host(Devices=[{"PathOnHost": "/dev/sda"}]), "Devices"),
        (host(Binds=["/:/host"]), "Binds"),
        (host(VolumesFrom=["x"]), "VolumesFrom"),
        (host(PortBindings={"80/tcp": [{}]}), "PortBindings"),
        (host(ExtraHosts=["host:host-gateway"]), "ExtraHosts"),
        (host(OomKillDisable=True), "OomKillDisable"),
        (host(MaskedPaths=[]), "MaskedPaths"),
        (host(MaskedPaths=None), "MaskedPaths"),
        (host(ReadonlyPaths=[]), "ReadonlyPaths"),
        (host(Tmpfs={}), "Tmpfs"),
        (host(Tmpfs={"/tmp": "rw"}), "Tmpfs"),
        (config(User=""), "User"),
        (config(User="0:0"), "User"),
        (config(Cmd=["sh"]), "Cmd"),
        (config(Entrypoint=["/entry.sh"]), "Entrypoint"),
        (config(WorkingDir="/"), "WorkingDir"),
        (config(Env=["HOME=/root"]), "HOME"),
        (config(Labels={}), "label"),
        (config(Tty=True), "Tty"),
        (config(Healthcheck={"Test": ["CMD", "x"]}), "Healthcheck"),
        (lambda document: document.update(AppArmorProfile="unconfined"), "AppArmorProfile"),
        (lambda document: document["Mounts"].pop(), "is not mounted"),
        (lambda document: document["Mounts"][0].update(RW=True), "/run/kernel"),
        (lambda document: document["Mounts"][2].update(Source="/etc"), "/files"),
        (lambda document: document["Mounts"][2].update(Propagation="rshared"), "propagation"),
        (
            lambda document: document["Mounts"].append({"Type": "volume", "Destination": "/data"}),
            "volume mount at /data",
        ),
        (
            lambda document: document["Mounts"].append(
                {"Type": "bind", "Source": "/var/run/docker.sock", "Destination": "/d.sock"}
            ),
            "bind mount at /d.sock",
        ),
    ],
)
def test_each_deviation_is_found_and_named(spec: ContainerSpec, change: Change, named: str) -> None:
    document = inspected(spec)
    change(document)
    found = violations(document, spec)
    assert found
    assert named in "; ".join(found)


def test_swap_is_never_added_to_memory(spec: ContainerSpec) -> None:
    host = create_config(spec)["HostConfig"]
    assert host["MemorySwap"] == host["Memory"]


def test_a_tmpfs_is_bounded_in_bytes_and_files_and_belongs_to_the_session(
    spec: ContainerSpec,
) -> None:
    options = create_config(spec)["HostConfig"]["Tmpfs"]["/home/sage"].split(",")
    assert {"size=8388608", "nr_inodes=1024", "mode=700", "uid=1234", "gid=1235"} <= set(options)
    assert {"nosuid", "nodev", "exec"} <= set(options)


def test_a_place_inside_another_is_mounted_after_it(spec: ContainerSpec) -> None:
    targets = [mount["Target"] for mount in create_config(spec)["HostConfig"]["Mounts"]]
    assert targets.index("/run/kernel") < targets.index("/run/kernel/s")


def test_the_images_own_entry_point_is_not_run(spec: ContainerSpec) -> None:
    made = create_config(spec)
    assert (*made["Entrypoint"], *made["Cmd"]) == spec.command
