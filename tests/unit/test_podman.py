"""Podman's dialect: what it is asked, that its words are understood, and that deviations still show."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sagebroker.container.engine import ContainerUser
from sagebroker.container.hardening import create_config, violations
from sagebroker.container.runtime import EngineInfo
from sagebroker.container.seccomp import DENIED, NAMESPACE_FLAGS, narrowed
from sagebroker.container.spec import ContainerSpec
from sagebroker.testing.containers import make_folders, session_spec

PODMAN = EngineInfo(
    name="podman", version="4.3.1", api_version="1.41", rootless=False, cgroup_version="1"
)


@pytest.fixture
def spec(tmp_path: Path) -> ContainerSpec:
    return session_spec(
        image="sagebroker/fake:1",
        folders=make_folders(tmp_path),
        user=ContainerUser(uid=1234, gid=1235),
        instance="test",
    )


def inspected(spec: ContainerSpec) -> dict[str, Any]:
    """What Podman 4.3 shows of a container made from ``spec``, with its own description added."""
    config = copy.deepcopy(create_config(spec, PODMAN))
    host = config.pop("HostConfig")
    config |= {"Image": "localhost/" + spec.image, "StopSignal": "15"}
    config["Env"] += ["container=podman", "HOSTNAME=2c8"]
    config["Healthcheck"] |= {"Interval": 30 * 10**9, "Timeout": 30 * 10**9, "Retries": 3}
    mounts = [
        {
            "Type": "bind",
            "Source": str(mount.source),
            "Destination": mount.target,
            "RW": not mount.read_only,
            "Propagation": "rprivate",
        }
        for mount in spec.mounts
    ]
    host |= {
        "Binds": [f"{m['Source']}:{m['Destination']}:rprivate,bind,rw" for m in mounts],
        "CapAdd": [],
        "CapDrop": ["CHOWN", "KILL"],
        "CgroupnsMode": "",
        "IpcMode": "shareable",
        "LogConfig": {"Type": "json-file", "Config": None},
        "MaskedPaths": None,
        "ReadonlyPaths": None,
        "PidMode": "private",
        "SecurityOpt": ["no-new-privileges", "seccomp=/tmp/sagebroker-seccomp-x1.json"],
        "Tmpfs": {to: f"{options},rprivate,tmpcopyup" for to, options in host["Tmpfs"].items()},
        "UTSMode": "private",
        "Ulimits": [
            {**limit, "Name": "RLIMIT_" + limit["Name"].upper()} for limit in host["Ulimits"]
        ],
    }
    native = {
        "BoundingCaps": None,
        "EffectiveCaps": None,
        "HostConfig": {"CgroupMode": "host", "LogConfig": {"Type": "json-file", "Size": "1MB"}},
    }
    return {"Config": config, "HostConfig": host, "Mounts": mounts, "Libpod": native}


def test_a_container_as_asked_for_has_no_violation(spec: ContainerSpec) -> None:
    assert violations(inspected(spec), spec, PODMAN) == []


def test_podmans_words_are_none_of_dockers(spec: ContainerSpec) -> None:
    assert len(violations(inspected(spec), spec)) > 5


def test_an_empty_document_violates_everything(spec: ContainerSpec) -> None:
    assert len(violations({}, spec, PODMAN)) > 20


Change = Callable[[dict[str, Any]], object]


def host(**values: Any) -> Change:
    return lambda document: document["HostConfig"].update(values)


def native(**values: Any) -> Change:
    return lambda document: document["Libpod"].update(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (native(BoundingCaps=["CAP_CHOWN"]), "CapDrop"),
        (native(EffectiveCaps=["CAP_CHOWN"]), "CapDrop"),
        (lambda document: document.pop("Libpod"), "CapDrop"),
        (lambda document: document["Libpod"].pop("BoundingCaps"), "CapDrop"),
        (native(HostConfig={"LogConfig": {"Size": ""}}), "LogConfig"),
        (host(LogConfig={"Type": "journald"}), "LogConfig"),
        (host(SecurityOpt=["no-new-privileges"]), "narrowed seccomp"),
        (host(SecurityOpt=["no-new-privileges", "seccomp=/etc/other.json"]), "narrowed seccomp"),
        (host(SecurityOpt=["seccomp=/tmp/sagebroker-seccomp-x.json"]), "no-new-privileges"),
        (host(SecurityOpt=["no-new-privileges", "seccomp=unconfined"]), "unconfined"),
        (host(PidMode="host"), "PidMode"),
        (host(UTSMode="host"), "UTSMode"),
        (host(IpcMode="host"), "IpcMode"),
        (host(NetworkMode="slirp4netns"), "NetworkMode"),
        (host(ReadonlyRootfs=False), "ReadonlyRootfs"),
        (host(Memory=0), "Memory"),
        (host(PidsLimit=0), "PidsLimit"),
        (host(Ulimits=[]), "Ulimits"),
        (host(Tmpfs={"/tmp": "rw,rprivate,tmpcopyup"}), "Tmpfs"),
        (host(MaskedPaths=[]), "MaskedPaths"),
        (host(Binds=["/:/host:rw"]), "Binds"),
        (lambda document: document["Config"].update(Image="quay.io/a/b:1"), "Image"),
        (lambda document: document["Config"].update(StopSignal="9"), "StopSignal"),
        (lambda document: document["Config"]["Healthcheck"].update(Test=["CMD", "x"]), "Healthch"),
        (lambda document: document["Mounts"][0].update(RW=True), "/run/kernel"),
        (lambda document: document["Mounts"][0].update(Source="/etc"), "Binds"),
    ],
)
def test_each_deviation_is_found_and_named(spec: ContainerSpec, change: Change, named: str) -> None:
    document = inspected(spec)
    change(document)
    assert named in "; ".join(violations(document, spec, PODMAN))


def test_the_hosts_cgroup_namespace_is_accepted_only_where_podman_has_no_other(
    spec: ContainerSpec,
) -> None:
    modern = replace(PODMAN, cgroup_version="2")
    document = inspected(spec)
    assert "CgroupnsMode is 'host'" in "; ".join(violations(document, spec, modern))
    document["Libpod"]["HostConfig"]["CgroupMode"] = "private"
    assert violations(document, spec, modern) == []


def test_a_writable_tmpfs_that_was_not_asked_for_is_asked_for_read_only(
    spec: ContainerSpec,
) -> None:
    places = create_config(spec, PODMAN)["HostConfig"]["Tmpfs"]
    assert set(places) == {"/tmp", "/home/sage", "/run", "/var/tmp"}
    assert places["/run"].startswith("ro,")
    assert places["/var/tmp"].startswith("ro,")


def test_a_tmpfs_is_bounded_without_the_options_that_podman_refuses(spec: ContainerSpec) -> None:
    options = create_config(spec, PODMAN)["HostConfig"]["Tmpfs"]["/home/sage"]
    assert options == "rw,exec,nosuid,nodev,size=8388608,mode=1777"


# The seccomp profile.


def rule(*names: str, action: str = "SCMP_ACT_ALLOW") -> dict[str, Any]:
    return {"names": list(names), "action": action}


def test_denied_calls_are_taken_out_of_what_is_allowed_only() -> None:
    refusal = rule("keyctl", "bpf", action="SCMP_ACT_ERRNO")
    made = narrowed(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [rule("read", "unshare", "clone"), rule("setns"), refusal],
        }
    )
    assert [r["names"] for r in made["syscalls"]] == [["read"], [], ["keyctl", "bpf"], ["clone"]]
    assert made["syscalls"][2] is refusal


def test_clone_stays_for_threads_and_processes_without_namespaces() -> None:
    made = narrowed({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [rule(*DENIED)]})
    (flags,) = made["syscalls"][-1]["args"]
    assert (flags["value"], flags["valueTwo"]) == (NAMESPACE_FLAGS, 0)
    assert flags["op"] == "SCMP_CMP_MASKED_EQ"


@pytest.mark.parametrize(
    "profile",
    [{}, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}, {"defaultAction": "SCMP_ACT_ERRNO"}],
)
def test_a_profile_that_does_not_refuse_by_default_is_none(profile: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="refuse"):
        narrowed(profile)
