"""SVG as PNG, drawn by a process of its own that can be ended."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import anyio

MAX_SVG_BYTES: Final = 10_000_000
"""A larger drawing is not begun; a plot of 10,000 points has 1 MB."""
DRAW_LIMIT_S: Final = 10.0
"""For one drawing, waiting for those before it and the start of its process (0.05 s) included."""

_drawers: Final = anyio.CapacityLimiter(1)
"""One at a time: each may take a whole processor, and memory."""


class DrawingError(ValueError):
    """The SVG cannot be drawn; the text says why."""


async def draw(svg: str) -> bytes:
    """The SVG as PNG; see `svg_worker` for what is left out.

    Raises:
        DrawingError: It is too large, not SVG, or takes too much time or memory.
    """
    data = svg.encode("utf-8", "replace")
    if len(data) > MAX_SVG_BYTES:
        raise DrawingError(f"an SVG of {len(data)} bytes is too large to be drawn")
    command = [sys.executable, "-I", "-m", "sagebroker.server.svg_worker"]
    try:
        with anyio.fail_after(DRAW_LIMIT_S):
            async with _drawers:
                done = await anyio.run_process(
                    command, input=data, check=False, stderr=subprocess.DEVNULL
                )
    except TimeoutError as error:
        raise DrawingError(f"an SVG that was not drawn within {DRAW_LIMIT_S:g} s") from error
    except OSError as error:  # no process, or one that ended before it had read all
        raise DrawingError("an SVG that cannot be drawn now") from error
    if done.returncode != 0:
        raise DrawingError("an SVG that is damaged, or needs too much time or memory")
    return done.stdout
