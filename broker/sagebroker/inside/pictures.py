"""Pictures beside what Sage sends as a page only: its interactive 3D plots and its animations."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from .glimpse import child, pieces, write_all

if TYPE_CHECKING:
    from .alarm import Alarm

DRAW_LIMIT_S = 3.0
"""For one picture: common plots take 0.05 s to 0.25 s, one of 90,000 points 0.7 s."""

CHILD_MEMORY_BYTES = 512 * 2**20
"""What drawing may take beyond what it shares with the kernel; that plot of 90,000 points takes 100 MiB."""

PICTURE_LIMIT_BYTES = 2**20
"""Most bytes of a picture; Tachyon's have 500 x 500 pixels, of which all are noise at most so many."""

BACKEND = "sage.repl.rich_output.backend_ipython"
PICTURE = "_sagebroker_picture"
"""Attribute of a scene on its way from the object to what is sent."""


def install() -> None:
    """Have Sage draw each interactive 3D plot and send a GIF as one; nothing where the kernel is not Sage's.

    Sage's display manager knows the object, its backend makes the message of it. The plots'
    own class is compiled and takes no change.
    """
    if BACKEND not in sys.modules:
        return
    from sage.repl.rich_output.backend_ipython import BackendIPythonNotebook
    from sage.repl.rich_output.display_manager import DisplayManager
    from sage.repl.rich_output.output_graphics import OutputImageGif
    from sage.repl.rich_output.output_graphics3d import OutputSceneThreejs

    choose = DisplayManager._rich_output_formatter  # noqa: SLF001 - no public way
    tell = BackendIPythonNotebook.displayhook

    @wraps(choose)
    def choose_and_draw(manager: Any, plot: Any, options: dict[str, Any]) -> Any:
        plain, rich = choose(manager, plot, options)
        if isinstance(rich, OutputSceneThreejs):
            setattr(rich, PICTURE, picture(manager, plot, options))
        return plain, rich

    @wraps(tell)
    def tell_with_picture(backend: Any, plain: Any, rich: Any) -> Any:
        data, metadata = tell(backend, plain, rich)
        if drawn := getattr(rich, PICTURE, b""):
            data["image/png"] = drawn
        if isinstance(rich, OutputImageGif):
            data["image/gif"] = rich.gif.get()
        return data, metadata

    DisplayManager._rich_output_formatter = choose_and_draw  # noqa: SLF001
    BackendIPythonNotebook.displayhook = tell_with_picture


def picture(manager: Any, plot: Any, options: dict[str, Any]) -> bytes:
    """A plot as PNG; empty if that fails or takes too long.

    Drawn in a forked child, which can be ended at any time: the plot was shown already, and a
    picture that fails must not cost it.

    Args:
        manager: Sage's display manager.
        plot: A 3D plot.
        options: Those of its ``show``.
    """
    drawn = bytearray()
    deadline = time.monotonic() + DRAW_LIMIT_S
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Python warns of threads that a child does not have; it needs none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            draw = partial(_draw, manager, plot, options, folder)
            with child(draw, CHILD_MEMORY_BYTES) as pipe:
                for data in pieces(pipe, DRAW_LIMIT_S, deadline):
                    drawn += data
                    if len(drawn) > PICTURE_LIMIT_BYTES:
                        return b""
    except OSError:  # no process, no room for files
        return b""
    # A child that was stopped while it wrote has left no end.
    return bytes(drawn) if drawn.endswith(b"IEND\xaeB`\x82") else b""


def _draw(
    manager: Any, plot: Any, options: dict[str, Any], folder: str, told: int, alarm: Alarm
) -> None:
    """Write the picture into the descriptor; done in the child."""
    del alarm
    from sage.misc import temporary_file

    # Files that outlive a child which was ended would fill the container's memory. The object stays:
    # its end would remove the kernel's own folder.
    temporary_file.TMP_DIR_FILENAME_BASE.name = folder
    for standard in range(3):  # Tachyon must not get one of these for a file of its own
        os.set_inheritable(standard, True)  # noqa: FBT003 - no name
    os.chdir(folder)
    found = plot._rich_repr_(manager, **{**options, "viewer": "tachyon"})
    write_all(told, found.png.get())
