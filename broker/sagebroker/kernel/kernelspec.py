"""Kernelspecs: Jupyter's ``kernel.json`` with what the broker needs in ``metadata.sagebroker``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sagebroker.config import ContainerConfig
from sagebroker.errors import ConfigError

KEEPER_PATH = "/opt/sagebroker/keeper.py"
"""Where the keeper is mounted in every session's container."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerMetadata(_Strict):
    """``metadata.sagebroker`` of a kernelspec."""

    image: str
    kernel_class: str = "ipykernel.ipkernel.IPythonKernel"
    preload: tuple[str, ...] = ()
    warm_up: bool = False
    limits: dict[str, float] = Field(default_factory=dict)


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True)
    sagebroker: BrokerMetadata


class KernelSpec(BaseModel):
    """A ``kernel.json``, checked. Fields that Jupyter adds are ignored."""

    model_config = ConfigDict(frozen=True)

    name: str
    argv: tuple[str, ...] = Field(min_length=1)
    display_name: str
    language: str
    interrupt_mode: Literal["signal"]
    metadata: _Metadata

    @classmethod
    def load(cls, name: str) -> KernelSpec:
        """Read the kernelspec ``name``: one of ours, or a path to a folder.

        Raises:
            ConfigError: There is none, or it lacks something.
        """
        folder = Path(name) if "/" in name else kernelspecs_folder() / name
        path = folder / "kernel.json"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            known = sorted(p.parent.name for p in kernelspecs_folder().glob("*/kernel.json"))
            raise ConfigError(
                f"There is no kernelspec {name!r} ({path}: {error.strerror}).",
                hint=f"Known: {', '.join(known)}; a path to a folder with kernel.json works too.",
            ) from error
        try:
            parsed = _KernelJson.model_validate_json(text)
            spec = cls(name=folder.name, **parsed.model_dump())
            spec.container(ContainerConfig())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"The kernelspec {path} is wrong at {where!r}: {first['msg']}."
            ) from error
        return spec

    @property
    def broker(self) -> BrokerMetadata:
        """The part that is ours."""
        return self.metadata.sagebroker

    def command(self) -> tuple[str, ...]:
        """``argv`` with the keeper's place filled in."""
        return tuple(part.replace("{keeper}", KEEPER_PATH) for part in self.argv)

    def container(self, config: ContainerConfig) -> ContainerConfig:
        """``config`` with this spec's limits where the operator set none."""
        ours = {k: v for k, v in self.broker.limits.items() if k not in config.model_fields_set}
        return ContainerConfig.model_validate({**config.model_dump(), **ours})


class _KernelJson(BaseModel):
    argv: tuple[str, ...]
    display_name: str
    language: str
    interrupt_mode: str = "signal"
    metadata: _Metadata


def kernelspecs_folder() -> Path:
    """The folder with the kernelspecs: of the installed package, else of the source tree."""
    package = Path(str(files("sagebroker")))
    shipped = package / "share" / "kernelspecs"
    return shipped if shipped.is_dir() else package.parents[1] / "kernelspecs"
