"""What each engine says of a container that it made: the table of the hardening, in its own words."""

from __future__ import annotations

from typing import Any

import pytest
from docker import APIClient

from sagebroker.config import engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import FoundEngine, find_engine
from sagebroker.container.hardening import inspect_container, violations
from sagebroker.testing.containers import SMALL

pytestmark = pytest.mark.docker


@pytest.fixture(params=["docker", "podman"])
async def engine(request: pytest.FixtureRequest) -> FoundEngine:
    url = request.getfixturevalue("podman_url") if request.param == "podman" else ""
    return await find_engine(url, engine_environment())


async def test_a_real_container_is_what_the_table_says(
    runtime: DockerRuntime, engine: FoundEngine, make_spec: Any
) -> None:
    spec = make_spec()
    container = await runtime.create(spec)
    with_client = APIClient(engine.url, version="auto")
    try:
        document = inspect_container(with_client, container, engine.info)
    finally:
        with_client.close()
    assert violations(document, spec, engine.info) == []
    # Said once more in the engine's words, so that a mistake in the table itself shows.
    host = document["HostConfig"]
    if engine.info.name == "podman":
        _assert_podmans_words(document)
    else:
        _assert_dockers_words(host)
    assert not host["CapAdd"]
    assert host["ReadonlyRootfs"] is True
    assert host["NetworkMode"] == "none"
    assert host["Privileged"] is False
    assert host["Memory"] == host["MemorySwap"] == SMALL.memory_bytes
    assert host["NanoCpus"] == 10**9
    assert host["PidsLimit"] == SMALL.pids
    assert host["ShmSize"] == SMALL.shm_bytes
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["AutoRemove"] is False
    assert not host.get("Init")
    assert not host["Devices"]
    assert all("nosuid,nodev,size=" in options for options in host["Tmpfs"].values())
    assert document["Config"]["User"] == f"{spec.uid}:{spec.gid}"
    assert {(m["Destination"], m["RW"]) for m in document["Mounts"]} == {
        ("/run/kernel", False),
        ("/run/kernel/s", True),
        ("/files", True),
        ("/opt/sagebroker", False),
    }


def _assert_dockers_words(host: Any) -> None:
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["IpcMode"] == "private"
    assert host["PidMode"] == ""
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {
        "core": 0,
        "nofile": SMALL.open_files,
        "fsize": SMALL.file_bytes,
    }
    assert host["LogConfig"] == {
        "Type": "json-file",
        "Config": {"max-size": "1m", "max-file": "2"},
    }
    assert set(host["Tmpfs"]) == {"/tmp", "/home/sage"}


def _assert_podmans_words(document: Any) -> None:
    host, native = document["HostConfig"], document["Libpod"]
    assert not native["BoundingCaps"]
    assert not native["EffectiveCaps"]
    assert host["SecurityOpt"][0] == "no-new-privileges"
    assert [o.partition("-")[0] for o in host["SecurityOpt"][1:]] == ["seccomp=/tmp/sagebroker"]
    assert host["IpcMode"] in ("private", "shareable")
    assert host["PidMode"] == host["UTSMode"] == "private"
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": SMALL.open_files,
        "RLIMIT_FSIZE": SMALL.file_bytes,
        "RLIMIT_NPROC": 4096,
    }
    assert native["HostConfig"]["LogConfig"]["Size"] == "1MB"
    assert set(host["Tmpfs"]) == {"/tmp", "/home/sage", "/run", "/var/tmp"}
    for place in ("/run", "/var/tmp"):
        assert host["Tmpfs"][place].startswith("ro,noexec,")
