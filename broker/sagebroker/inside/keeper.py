"""Start the keeper: ``python3 -I -B /opt/sagebroker/keeper.py`` as PID 1 of a session container.

Isolated mode leaves this folder out of ``sys.path``, and it must stay out: the kernel inherits the
keeper's interpreter, where the user's own ``streams.py`` must not meet ours. So the folder is
loaded as a package under a name of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGE = "sagebroker_inside"
"""Name of this folder's package within the container."""


def load_package() -> None:
    """Load this folder as `PACKAGE`."""
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no package in {folder}")
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    load_package()
    sys.exit(importlib.import_module(PACKAGE + ".supervisor").main())
