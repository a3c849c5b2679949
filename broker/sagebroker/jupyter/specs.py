"""Kernelspecs where Jupyter looks: ours are installed, found again and removed."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jupyter_client.kernelspec import KernelSpecManager

from sagebroker.errors import ConfigError
from sagebroker.kernel.kernelspec import KernelSpec, kernelspecs_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sagebroker.config import BrokerConfig

PROVISIONER: Final = "sagebroker-provisioner"
"""The name under which `provisioner.SessionProvisioner` is registered."""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A kernelspec of ours that Jupyter finds."""

    name: str
    display_name: str
    session: str
    """That its kernels join; empty where each has one of its own."""
    folder: Path


def install(
    config: BrokerConfig, *, session: str = "", user: bool = False, prefix: str = ""
) -> Installed:
    """Put the configured kernelspec where Jupyter looks, in place of an earlier one of that name. Blocks.

    Args:
        config: Names the kernelspec, and the folders of this installation.
        session: The session that its kernels join; empty for a new one each time.
        user: Install for this user, for any Jupyter that he runs.
        prefix: Install below this folder, in ``share/jupyter/kernels``.

    Raises:
        ConfigError: There is no such kernelspec, or it cannot be written there.
    """
    spec = KernelSpec.load(config.kernel.kernelspec)
    source = kernelspecs_folder() / spec.name
    if "/" in config.kernel.kernelspec:
        source = Path(config.kernel.kernelspec)
    name = f"{spec.name}-{session}".lower() if session else spec.name.lower()
    values: dict[str, Any] = json.loads((source / "kernel.json").read_text(encoding="utf-8"))
    if session:
        values["display_name"] = f"SageMath: {session}"
    values["metadata"]["kernel_provisioner"] = {
        "provisioner_name": PROVISIONER,
        "config": {"session": session} | _places(config) if session else _places(config),
    }
    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft) / name
        try:
            shutil.copytree(source, folder)
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            (folder / "kernel.json").write_text(text, encoding="utf-8")
            place = KernelSpecManager().install_kernel_spec(
                str(folder), name, user=user, prefix=prefix or None
            )
        except OSError as error:
            raise ConfigError(
                f"The kernelspec {name!r} cannot be installed: {error}.",
                hint="Choose another place: --user, or --prefix with a folder that you may write.",
            ) from error
    return Installed(
        name=name, display_name=values["display_name"], session=session, folder=Path(place)
    )


def installed() -> list[Installed]:
    """Every kernelspec of ours that Jupyter finds. Blocks."""
    found = KernelSpecManager().get_all_specs()
    return [one for name in sorted(found) if (one := _ours(name, found[name])) is not None]


def remove(name: str) -> Installed:
    """Remove a kernelspec; sessions are left as they are. Blocks.

    Raises:
        ConfigError: There is none of that name, it is not one of ours, or it cannot be removed.
    """
    ours = {one.name: one for one in installed()}
    if name not in ours:
        raise ConfigError(
            f"Jupyter finds no kernelspec {name!r} of sagebroker.",
            hint=f"There are: {', '.join(ours) or 'none'}.",
        )
    try:
        KernelSpecManager().remove_kernel_spec(name)
    except OSError as error:
        raise ConfigError(f"The kernelspec {name!r} cannot be removed: {error}.") from error
    return ours[name]


def _places(config: BrokerConfig) -> dict[str, str]:
    """The folders, where they are not the usual ones: Jupyter's processes may have another environment."""
    return {
        name: str(getattr(config, name).absolute())
        for name in ("state_dir", "runtime_dir")
        if name in config.model_fields_set
    }


def _ours(name: str, found: Mapping[str, Any]) -> Installed | None:
    provisioner = found["spec"]["metadata"].get("kernel_provisioner", {})
    if provisioner.get("provisioner_name") != PROVISIONER:
        return None
    return Installed(
        name=name,
        display_name=found["spec"]["display_name"],
        session=provisioner.get("config", {}).get("session", ""),
        folder=Path(found["resource_dir"]),
    )
