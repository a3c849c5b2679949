"""Kernelspecs: the shipped ones are whole, wrong ones are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sagebroker.config import ContainerConfig
from sagebroker.errors import ConfigError
from sagebroker.kernel.kernelspec import KEEPER_PATH, KernelSpec, kernelspecs_folder

GOOD = {
    "argv": ["python3", "{keeper}"],
    "display_name": "X",
    "language": "sage",
    "metadata": {"sagebroker": {"image": "x:1", "limits": {"memory_bytes": 2**30, "cpus": 1}}},
}


def write(folder: Path, **changes: object) -> str:
    folder.mkdir()
    (folder / "kernel.json").write_text(json.dumps({**GOOD, **changes}))
    return str(folder)


@pytest.mark.parametrize("path", sorted(kernelspecs_folder().glob("*/kernel.json")))
def test_every_shipped_kernelspec_loads(path: Path) -> None:
    spec = KernelSpec.load(path.parent.name)
    assert spec.interrupt_mode == "signal"
    assert KEEPER_PATH in spec.command()


def test_limits_of_the_spec_apply_where_the_operator_set_none(tmp_path: Path) -> None:
    spec = KernelSpec.load(write(tmp_path / "x"))
    limits = spec.container(ContainerConfig(cpus=4))
    assert (limits.memory_bytes, limits.cpus) == (2**30, 4)


def test_an_unknown_kernelspec_is_told_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Known: .*sagemath"):
        KernelSpec.load("nothing")


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": []},
        {"interrupt_mode": "message"},
        {"metadata": {}},
        {"metadata": {"sagebroker": {"image": "x:1", "colour": 1}}},
        {"metadata": {"sagebroker": {"image": "x:1", "limits": {"memory_bytes": 1}}}},
    ],
)
def test_a_wrong_kernelspec_is_told_with_its_path(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"kernel\.json is wrong"):
        KernelSpec.load(write(tmp_path / "x", **changes))
