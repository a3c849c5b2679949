"""A container is made from validated fields only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagebroker.container.engine import ContainerUser
from sagebroker.container.spec import (
    LABEL_INSTANCE,
    ContainerSpec,
    Limits,
    Mount,
    Tmpfs,
    check_sources,
)
from sagebroker.errors import ConfigError
from sagebroker.testing.containers import SMALL, make_folders, session_spec

SOURCE = Path("/srv/sessions/one/files")


def spec(**changes: Any) -> ContainerSpec:
    fields: dict[str, Any] = {
        "name": "sb-s-abc",
        "image": "sagebroker/sagemath:10.8",
        "command": ("python3", "-I"),
        "uid": 1000,
        "gid": 1000,
        "limits": SMALL,
    }
    return ContainerSpec(**{**fields, **changes})


def refused(**changes: Any) -> None:
    with pytest.raises(ConfigError, match="A container cannot be made with"):
        spec(**changes)


def test_a_sessions_specification_is_accepted(tmp_path: Path) -> None:
    made = session_spec(
        image="sagebroker/fake:1",
        folders=make_folders(tmp_path),
        user=ContainerUser(uid=1000, gid=1000),
        instance="test",
    )
    check_sources(made)


@pytest.mark.parametrize("image", ["", "-rm", "a b", "x;y", "../x", "UPPER:1", "a" * 300, "a\n"])
def test_an_odd_image_is_refused(image: str) -> None:
    refused(image=image)


@pytest.mark.parametrize("image", ["debian", "r.example:5000/a/b:1.2", "sage@sha256:" + "a" * 64])
def test_usual_images_are_accepted(image: str) -> None:
    assert spec(image=image).image == image


@pytest.mark.parametrize("name", ["", "a", "-x", "a/b", "a b", "x" * 200, "ab\n"])
def test_an_odd_name_is_refused(name: str) -> None:
    refused(name=name)


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_root_is_refused_unless_the_engine_is_rootless(field: str) -> None:
    refused(**{field: 0})
    assert spec(uid=0, gid=0, rootless=True).uid == 0


@pytest.mark.parametrize("number", [-1, 2**31])
def test_an_impossible_uid_is_refused(number: int) -> None:
    refused(uid=number)


@pytest.mark.parametrize("command", [(), ("",), ("a\0b",), ("x" * 5000,)])
def test_an_odd_command_is_refused(command: tuple[str, ...]) -> None:
    refused(command=command)


@pytest.mark.parametrize("mode", ["host", "container:x", "private"])
def test_other_user_namespaces_are_refused(mode: str) -> None:
    refused(userns_mode=mode)


@pytest.mark.parametrize(
    "target",
    ["/", "/etc", "/files/", "/files/../etc", "//files", "/run/kernel/s/k", "files", "/proc", ""],
)
def test_a_mount_outside_the_places_is_refused(target: str) -> None:
    refused(mounts=(Mount(source=SOURCE, target=target, read_only=True),))


@pytest.mark.parametrize(
    "source",
    [
        "/",
        "/srv",
        "/etc/ssl",
        "/proc/self/root",
        "/sys/fs",
        "/dev/shm",
        "/var/lib/docker/volumes",
        "/var/run/docker.sock",
        "/run/containerd/x",
        "relative/folder",
        "/srv/x/../../etc",
        "/srv/a:b",
        "/srv/a,b",
        "/srv/a\nb",
    ],
)
def test_a_folder_of_the_machine_is_never_shown(source: str) -> None:
    refused(mounts=(Mount(source=Path(source), target="/files", read_only=True),))


def test_a_place_is_mounted_once(tmp_path: Path) -> None:
    mount = Mount(source=SOURCE, target="/files", read_only=True)
    refused(mounts=(mount, mount))
    refused(tmpfs=(Tmpfs(target="/tmp", size_bytes=1), Tmpfs(target="/tmp", size_bytes=2)))


@pytest.mark.parametrize("place", ["/", "/etc", "/files", "/var"])
def test_a_tmpfs_elsewhere_is_refused(place: str) -> None:
    refused(tmpfs=(Tmpfs(target=place, size_bytes=1),))


def test_an_unbounded_tmpfs_is_refused() -> None:
    refused(tmpfs=(Tmpfs(target="/tmp", size_bytes=0),))
    refused(tmpfs=(Tmpfs(target="/tmp", size_bytes=1, mode=0o4755),))


@pytest.mark.parametrize(
    "name", ["memory_bytes", "cpus", "pids", "open_files", "file_bytes", "shm_bytes"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_no_limit_can_be_switched_off(name: str, value: int) -> None:
    limits: dict[str, Any] = {name: value}
    refused(limits=replace(SMALL, **limits))


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY", "lower", "", "A B", "PATH=x", "HOME\n"],
)
def test_other_variables_are_refused(name: str) -> None:
    refused(environment={name: "x"})


@pytest.mark.parametrize("name", ["HOME", "SAGE_NUM_THREADS", "PYTHONHASHSEED", "OMP_NUM_THREADS"])
def test_variables_of_sage_and_python_are_accepted(name: str) -> None:
    refused(environment={name: "two\nlines"})
    assert spec(environment={name: "x"}).environment == {name: "x"}


def test_only_own_labels_are_accepted() -> None:
    refused(labels={"com.example.x": "1"})
    refused(labels={LABEL_INSTANCE: "a\0b"})
    assert spec(labels={LABEL_INSTANCE: "x"}).labels


@pytest.mark.parametrize("place", ["files", "/", "/a/../b", "/a//b", ""])
def test_an_odd_working_folder_is_refused(place: str) -> None:
    refused(working_dir=place)


@given(st.text(max_size=40))
def test_no_text_makes_a_mount_target_but_the_known_places(target: str) -> None:
    known = {"/run/kernel", "/run/kernel/s", "/files", "/opt/sagebroker", "/checkpoint"}
    if target not in known:
        refused(mounts=(Mount(source=SOURCE, target=target, read_only=True),))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    mount = Mount(source=tmp_path / "none" / "x", target="/files", read_only=True)
    with pytest.raises(ConfigError, match="does not exist"):
        check_sources(spec(mounts=(mount,)))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mount = Mount(source=tmp_path / "file", target="/files", read_only=True)
    with pytest.raises(ConfigError, match="does not exist"):
        check_sources(spec(mounts=(mount,)))


def test_a_link_to_a_folder_of_the_machine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    mount = Mount(source=tmp_path / "link", target="/files", read_only=True)
    with pytest.raises(ConfigError, match="'/etc'"):
        check_sources(spec(mounts=(mount,)))


def test_a_folder_with_an_engines_socket_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docker.sock").touch()
    mount = Mount(source=tmp_path, target="/files", read_only=True)
    with pytest.raises(ConfigError, match="socket"):
        check_sources(spec(mounts=(mount,)))


def test_the_error_of_a_long_value_is_short() -> None:
    with pytest.raises(ConfigError) as caught:
        spec(image="x" * 10_000)
    assert len(str(caught.value)) < 200


def test_limits_have_a_default_for_shared_memory() -> None:
    limits = Limits(memory_bytes=1, cpus=1, pids=1, open_files=1, file_bytes=1)
    assert limits.shm_bytes == 64 * 2**20
