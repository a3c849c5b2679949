"""A kernel of ours without a container: what the keeper's forked child becomes, in its own process.

Run by `sagebroker.testing.local_keeper`::

    python -I -B local_kernel.py CONFIGURATION_FILE GENERATION
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

_INSIDE = Path(__file__).resolve().parent.parent / "inside"


def main(configuration: Path, generation: int) -> None:
    """Serve until the kernel is shut down.

    Args:
        configuration: As the keeper's, with paths of this machine.
        generation: Which incarnation of the kernel this is.
    """
    package = _load_inside()
    config = importlib.import_module(package + ".settings").read_configuration(configuration)
    kernel_main = importlib.import_module(package + ".kernel_main")
    kernel_main.prepare()
    kernel_main.run(config, generation)


def _load_inside() -> str:
    """Load what runs in a container under the name that it has there."""
    # By its path, for an isolated interpreter does not find what only PYTHONPATH leads to.
    spec = importlib.util.spec_from_file_location("keeper", _INSIDE / "keeper.py")
    assert spec is not None
    assert spec.loader is not None
    keeper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keeper)
    keeper.load_package()
    return str(keeper.PACKAGE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
