"""A process that draws one SVG from its standard input as PNG to its standard output, and ends.

SVG is a program of the sender's: it can name files of this machine, nest without end and ask for
any size. What the library does then (it aborts the process when memory ends) happens here.
"""

from __future__ import annotations

import resource
import sys
from typing import Final
from xml.etree import ElementTree as ET

import resvg_py

EDGE_PX: Final = 1024
"""Longest edge of the drawing: plots and diagrams are legible, and cost a model 1,400 tokens at most."""
CSS_DPI: Final = 96.0
"""As CSS has it; with the library's default, 0, a size in points is none."""
MEMORY_BYTES: Final = 2**30
"""Address space; Python and an SVG of 10 MB take a third of it."""
CPU_S: Final = 5
"""Processor time; Sage's plots take 0.1 s."""

_EMBEDDED: Final = tuple(f"data:image/{kind};" for kind in ("png", "jpeg", "jpg", "gif", "webp"))


def main() -> None:
    """Draw, or end with another code than 0."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # pipes have no size
    drawn = resvg_py.svg_to_bytes(
        svg_string=self_contained(sys.stdin.buffer.read()),
        background="white",
        dpi=CSS_DPI,
        width=EDGE_PX,
        height=EDGE_PX,
    )
    sys.stdout.buffer.write(drawn)


def self_contained(data: bytes) -> str:
    """The SVG without entities, and without references to anything outside itself.

    The library opens any file that an ``href`` names; it has no network.

    Raises:
        ParseError: It is not XML.
    """
    root = ET.fromstring(data)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            inside = value.strip().lower().startswith(("#", *_EMBEDDED))
            if name.rpartition("}")[2].lower() == "href" and not inside:
                del element.attrib[name]
    return ET.tostring(root, encoding="unicode")


if __name__ == "__main__":
    main()
