from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from sagebroker.errors import ConfigError
from sagebroker.kernel.connection import MAX_FILE_BYTES, ConnectionInfo


def test_a_written_file_is_loaded_again(tmp_path: Path) -> None:
    connection = ConnectionInfo.new("/run/kernel/s/k", kernel_name="sagemath")
    path = tmp_path / "connection.json"
    connection.write(path, os.geteuid(), os.getegid())
    assert ConnectionInfo.load(path) == connection
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_what_jupyter_expects() -> None:
    values = json.loads(ConnectionInfo.new("/run/kernel/s/k", kernel_name="sagemath").to_json())
    assert len(values.pop("key")) == 64
    assert values == {
        "transport": "ipc",
        "ip": "/run/kernel/s/k",
        "shell_port": 1,
        "iopub_port": 2,
        "stdin_port": 3,
        "control_port": 4,
        "hb_port": 5,
        "signature_scheme": "hmac-sha256",
        "kernel_name": "sagemath",
    }


def test_every_connection_has_a_key_of_its_own() -> None:
    assert ConnectionInfo.new("/k").key != ConnectionInfo.new("/k").key


def test_the_key_is_in_no_repr() -> None:
    connection = ConnectionInfo.new("/k")
    assert connection.key.decode() not in repr(connection)


def test_the_same_connection_is_seen_from_the_host() -> None:
    inside = ConnectionInfo.new("/run/kernel/s/k")
    outside = inside.with_prefix("/run/sagebroker/abc/s/k")
    assert outside.key == inside.key
    assert outside.socket_path("iopub") == "/run/sagebroker/abc/s/k-2"


def test_a_path_of_107_bytes_is_allowed_and_108_are_not() -> None:
    assert len(ConnectionInfo.new("/" + "k" * 104).socket_path("hb")) == 107
    with pytest.raises(ConfigError, match="107"):
        ConnectionInfo.new("/" + "k" * 105)
    with pytest.raises(ConfigError, match="107"):
        ConnectionInfo.new("/" + "é" * 53)


def test_a_symlink_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(ConnectionInfo.new("/k").to_json())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="cannot be used"):
        ConnectionInfo.load(tmp_path / "link")


def test_a_fifo_is_not_loaded(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="regular file"):
        ConnectionInfo.load(tmp_path / "fifo")


def test_a_huge_file_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "huge").write_text(ConnectionInfo.new("/k").to_json() + " " * MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match="larger"):
        ConnectionInfo.load(tmp_path / "huge")


@pytest.mark.parametrize(
    "change",
    [
        {"transport": "tcp"},
        {"ip": "relative"},
        {"ip": None},
        {"key": ""},
        {"key": 3},
        {"key": "é"},
        {"signature_scheme": "hmac-md5"},
        {"shell_port": "1"},
        {"shell_port": True},
        {"shell_port": 0},
        {"shell_port": 2},
        {"hb_port": 70_000},
    ],
)
def test_a_wrong_value_is_not_loaded(tmp_path: Path, change: dict[str, Any]) -> None:
    values = {**json.loads(ConnectionInfo.new("/k").to_json()), **change}
    (tmp_path / "file").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="cannot be used"):
        ConnectionInfo.load(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 10_000])
def test_what_is_no_connection_file_is_not_loaded(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ConfigError, match="cannot be used"):
        ConnectionInfo.load(tmp_path / "file")


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        ConnectionInfo.new("/k").write(tmp_path / "no" / "file", os.geteuid(), os.getegid())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")
def test_root_gives_the_file_to_the_sessions_user(tmp_path: Path) -> None:
    ConnectionInfo.new("/k").write(tmp_path / "file", 200_001, 200_001)
    assert (tmp_path / "file").stat().st_uid == 200_001
