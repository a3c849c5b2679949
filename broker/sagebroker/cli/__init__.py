"""The ``sagebroker`` command.

Exit codes: 0 done; 1 the cell failed; 2 bad usage or configuration; 3 the engine or a kernel could
not serve; 130 interrupted.
"""

from sagebroker.cli.main import main

__all__ = ["main"]
