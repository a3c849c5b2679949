"""``python -m sagebroker``."""

from sagebroker.cli import main

main()
