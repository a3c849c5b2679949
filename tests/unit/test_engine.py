"""Where an engine is looked for, what is said when there is none, and its words made ours."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import requests
import urllib3
from docker import errors

from sagebroker.container.docker_errors import mapped, reason
from sagebroker.container.engine import (
    Candidate,
    advice,
    candidates,
    check_url,
    container_user,
    find_engine,
    machine_problem,
    socket_problem,
)
from sagebroker.container.replies import (
    engine_info,
    seconds_from_stamp,
    stats_from_json,
    status_from_inspect,
    status_from_summary,
)
from sagebroker.container.runtime import EngineInfo
from sagebroker.errors import (
    ConfigError,
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    ImageNotFoundError,
    RuntimeUnavailableError,
)

# Finding.


def urls(explicit: str, **environment: str) -> list[str]:
    return [candidate.url for candidate in candidates(explicit, environment)]


def test_an_engine_that_is_named_is_the_only_one_tried() -> None:
    assert urls("unix:///a.sock", DOCKER_HOST="unix:///b.sock") == ["unix:///a.sock"]
    assert urls("", DOCKER_HOST="unix:///b.sock", XDG_RUNTIME_DIR="/run/user/1") == [
        "unix:///b.sock"
    ]


def test_the_usual_sockets_are_tried_in_order() -> None:
    assert urls("", XDG_RUNTIME_DIR="/run/user/1") == [
        "unix:///var/run/docker.sock",
        "unix:///run/user/1/docker.sock",
        "unix:///run/podman/podman.sock",
        "unix:///run/user/1/podman/podman.sock",
    ]
    assert urls("") == ["unix:///var/run/docker.sock", "unix:///run/podman/podman.sock"]


@pytest.mark.parametrize(
    "url", ["tcp://192.0.2.1:2375", "ssh://me@there", "https://localhost", "docker.sock", "unix://"]
)
def test_an_engine_elsewhere_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="DOCKER_HOST"):
        check_url(Candidate(url=url, named_by="DOCKER_HOST"))


@pytest.mark.parametrize("url", ["unix:///x.sock", "tcp://127.0.0.1:2375", "http://localhost:1"])
def test_an_engine_of_this_machine_is_accepted(url: str) -> None:
    check_url(Candidate(url=url, named_by="engine_url"))


def test_what_the_file_system_tells_of_a_socket(short_dir: Path) -> None:
    plain = short_dir / "plain"
    plain.write_text("")
    assert socket_problem(f"unix://{short_dir}/none") == "absent"
    assert socket_problem(f"unix://{plain}") == "no socket"
    assert socket_problem(f"unix://{plain}/below") == "not a directory"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "s"))
        assert socket_problem(f"unix://{short_dir}/s") is None
        if os.geteuid() != 0:
            (short_dir / "s").chmod(0)
            assert socket_problem(f"unix://{short_dir}/s") == "permission denied"


async def test_without_an_engine_the_text_lists_what_was_tried_and_what_to_do(
    short_dir: Path,
) -> None:
    with pytest.raises(RuntimeUnavailableError) as caught:
        await find_engine(f"unix://{short_dir}/none.sock", {})
    text = str(caught.value)
    assert f"unix://{short_dir}/none.sock (engine_url): absent" in text
    assert "apt install docker.io" in text


async def test_a_socket_nobody_listens_at_is_told(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_dir / "d.sock"))
    with pytest.raises(RuntimeUnavailableError, match="connection refused") as caught:
        await find_engine("", {"DOCKER_HOST": f"unix://{short_dir}/d.sock"})
    assert "restart" in str(caught.value)


def test_docker_desktop_is_refused_with_what_to_do() -> None:
    problem = machine_problem(replace(info(), operating_system="Docker Desktop"))
    assert problem is not None
    assert "virtual machine" in problem
    assert "natively on Linux" in advice(["absent", problem])
    assert machine_problem(replace(info(), operating_system="Debian GNU/Linux 12")) is None


def test_advice_fits_the_problem() -> None:
    assert "usermod -aG docker" in advice(["absent", "permission denied"])
    assert "Install" in advice(["absent", "absent"])
    assert "Start or restart" in advice(["absent", "connection refused"])


# Users.


def info(name: str = "docker", *, rootless: bool = False) -> EngineInfo:
    return EngineInfo(
        name=name, version="1", api_version="1.41", rootless=rootless, cgroup_version="2"
    )


def test_a_rootful_engine_runs_containers_as_the_uid_asked_for() -> None:
    user = container_user(info(), uid=200_001, gid=200_002)
    assert (user.uid, user.gid, user.userns_mode, user.rootless) == (200_001, 200_002, "", False)


def test_rootless_docker_maps_its_own_user_to_uid_0() -> None:
    user = container_user(info(rootless=True), uid=1000, gid=1000)
    assert (user.uid, user.gid, user.userns_mode, user.rootless) == (0, 0, "", True)


def test_rootless_podman_keeps_the_uid() -> None:
    user = container_user(info("podman", rootless=True), uid=1000, gid=1000)
    assert (user.uid, user.userns_mode, user.rootless) == (1000, "keep-id", False)


# The engine's documents.


def test_docker_and_podman_are_told_apart() -> None:
    docker = engine_info({"Components": [{"Name": "Engine"}], "Version": "20.10"}, {})
    podman = engine_info(
        {"Components": [{"Name": "Podman Engine"}]}, {"SecurityOptions": ["name=rootless"]}
    )
    assert (docker.name, docker.version, docker.rootless) == ("docker", "20.10", False)
    assert (podman.name, podman.rootless) == ("podman", True)


def test_limits_an_engine_cannot_enforce_are_warnings() -> None:
    found = engine_info({}, {"SwapLimit": False, "PidsLimit": True, "Warnings": ["WARNING: x"]})
    text = " ".join(found.warnings)
    assert "SwapLimit" in text
    assert "seccomp" in text
    assert "WARNING: x" in text
    assert "PidsLimit" not in text


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05.123456789Z", 1767323045.123456),
        ("2026-01-02T03:04:05.1Z", 1767323045.1),
        ("2026-01-02T03:04:05.123456789+01:00", 1767319445.123456),
        ("", 0.0),
    ],
)
def test_the_engines_stamps_are_read(stamp: str, seconds: float) -> None:
    assert seconds_from_stamp(stamp) == pytest.approx(seconds, abs=1e-6)


def test_a_container_that_could_not_start_has_an_exit_code_and_a_reason() -> None:
    state = {"Status": "created", "ExitCode": 127, "Error": "no such file"}
    status = status_from_inspect({"Id": "i", "Name": "/n", "State": state})
    assert (status.name, status.exit_code, status.error) == ("n", 127, "no such file")


@pytest.mark.parametrize("document", [{}, {"Id": "x"}, {"Id": "x", "Name": "/n", "State": None}])
def test_an_unreadable_description_is_an_error_and_no_absence(document: dict[str, object]) -> None:
    with pytest.raises(ContainerError) as caught:
        status_from_inspect(document)
    assert not isinstance(caught.value, ContainerNotFoundError)
    with pytest.raises(ContainerError):
        status_from_summary(document)


def test_podmans_states_are_told_in_dockers_words() -> None:
    state = {"Status": "stopped", "ExitCode": 5, "Error": ""}
    status = status_from_inspect({"Id": "i", "Name": "/n", "State": state})
    assert (status.state, status.exit_code) == ("exited", 5)
    entry = {"Id": "i", "Names": ["/n"], "State": "configured", "Status": "Created"}
    assert status_from_summary(entry).state == "created"


def test_limits_of_rootless_engines_need_cgroup_v2() -> None:
    options = {"SecurityOptions": ["name=rootless", "name=seccomp"]}
    assert "rootless" in " ".join(engine_info({}, {**options, "CgroupVersion": "1"}).warnings)
    assert engine_info({}, {**options, "CgroupVersion": "2"}).warnings == ()


def test_an_exit_code_is_read_from_the_list() -> None:
    entry = {"Id": "i", "Names": ["/n"], "State": "exited", "Status": "Exited (137) 3 seconds ago"}
    assert status_from_summary(entry).exit_code == 137
    assert status_from_summary({**entry, "State": "running", "Status": "Up 2 s"}).exit_code is None


@pytest.mark.parametrize("cache", ["total_inactive_file", "inactive_file"])
def test_file_cache_is_no_use_of_memory(cache: str) -> None:
    document = {
        "memory_stats": {"usage": 100, "stats": {cache: 30}},
        "pids_stats": {"current": 4},
        "cpu_stats": {"cpu_usage": {"total_usage": 1_500_000_000}},
    }
    stats = stats_from_json(document)
    assert (stats.memory_bytes, stats.pids, stats.cpu_seconds) == (70, 4, 1.5)


# Foreign errors.


def api_error(status: int, text: str) -> errors.APIError:
    response = requests.Response()
    response.status_code = status
    kind = errors.NotFound if status == 404 else errors.APIError
    return kind("failed", response=response, explanation=text)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (404, "No such container: x", ContainerNotFoundError),
        (404, "OCI runtime create failed: executable file not found", ContainerError),
        (409, "Conflict. The container name is already in use", ContainerConflictError),
        (500, "Container x is not running", ContainerConflictError),
        (500, "You have to remove it: that name is already in use", ContainerConflictError),
        (500, "x is in state created: container state improper", ContainerConflictError),
        (500, "device or resource busy", ContainerError),
        (400, "invalid mount config", ContainerError),
        (502, "bad gateway", RuntimeUnavailableError),
        (503, "unavailable", RuntimeUnavailableError),
        (504, "timeout", RuntimeUnavailableError),
    ],
)
def test_each_answer_of_the_engine_has_its_error(
    status: int, text: str, kind: type[ContainerError]
) -> None:
    assert type(mapped(api_error(status, text), "start", "x")) is kind


def test_a_server_error_is_never_read_as_gone() -> None:
    error = mapped(api_error(500, "No such container: x"), "inspect", "x")
    assert not isinstance(error, ContainerNotFoundError)


def test_a_missing_image_is_told_with_the_command_that_makes_it() -> None:
    response = requests.Response()
    response.status_code = 404
    foreign = errors.ImageNotFound("x", response=response, explanation="No such image: x")
    error = mapped(foreign, "create", "x")
    assert isinstance(error, ImageNotFoundError)
    assert "sagebroker image build" in str(error)


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (requests.ReadTimeout("x"), "took too long"),
        (
            requests.ConnectionError("x", ConnectionRefusedError(111, "Connection refused")),
            "refused",
        ),
        (
            requests.ConnectionError(
                urllib3.exceptions.ProtocolError("aborted", FileNotFoundError(2, "No such file"))
            ),
            "no such file",
        ),
        (ValueError("no JSON"), "no JSON"),
    ],
)
def test_silence_is_told_with_its_reason(foreign: Exception, words: str) -> None:
    error = mapped(foreign, "inspect", "x")
    assert isinstance(error, RuntimeUnavailableError)
    assert words in str(error)
    assert error.retryable


def test_a_forbidden_socket_is_told_with_what_to_do() -> None:
    error = mapped(PermissionError(13, "Permission denied"), "ping", "x")
    assert "usermod -aG docker" in str(error)


def test_an_engine_that_is_too_old_is_no_silence() -> None:
    error = mapped(errors.InvalidVersion("API versions below 1.24"), "ping", "x")
    assert not isinstance(error, RuntimeUnavailableError)
    assert "too old" in str(error)


def test_texts_of_the_engine_are_cut() -> None:
    assert len(str(mapped(api_error(500, "x" * 10_000), "start", "c"))) < 700


def test_errors_that_name_each_other_have_a_reason_too() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__context__, second.__context__ = second, first
    assert reason(first)
