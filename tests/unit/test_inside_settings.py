from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sagebroker.inside
from sagebroker.inside.settings import (
    ConfigurationError,
    KeeperConfig,
    parse_configuration,
    read_configuration,
)

LAUNCHER = Path(sagebroker.inside.__file__).with_name("keeper.py")
EX_USAGE = 64


def test_given_entries_replace_the_defaults() -> None:
    config = parse_configuration(
        json.dumps({"preload": ["sage.all"], "lease_limit_s": 10, "warm_up": True, "newer": 1})
    )
    assert config == KeeperConfig(preload=("sage.all",), lease_limit_s=10.0, warm_up=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"preload": "sage.all"}',
        '{"preload": [1]}',
        '{"hard_life_s": "1"}',
        '{"hard_life_s": -1}',
        '{"hard_life_s": true}',
        '{"crash_limit": 1.5}',
        '{"warm_up": 1}',
        '{"cwd": null}',
    ],
)
def test_a_malformed_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_configuration(text)


def test_an_unreadable_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        read_configuration(tmp_path / "absent.json")


def test_the_keeper_refuses_to_run_outside_a_container() -> None:
    ended = subprocess.run(
        [sys.executable, "-I", "-B", str(LAUNCHER)],
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert ended.returncode == EX_USAGE
    assert b"PID 1" in ended.stderr
