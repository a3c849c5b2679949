r"""Exceptions as a user of Sage wants them: name, message, and the frames of their own code.

IPython's traceback is a list of texts: a rule, a title, one text per frame beginning with
``Cell In[8], line 1`` or ``File path:line, in name``, and the message once more. A syntax error has
one text with its cell, line and a caret (measured with IPython 9 in Sage 10.8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sagebroker.model import CellFailure
from sagebroker.protocol.text import clean, strip_ansi

MAX_FRAMES: Final = 6
"""Frames of the user's code that are shown, half from each end; recursion has hundreds."""

_CELL: Final = re.compile(r"\s*Cell In\s?\[\d+\], line \d+")
_FILE: Final = re.compile(r"\s*File (?P<path>[^\n]+?):\d+")
_USER_FILES: Final = re.compile(r"/files/|(?![/~]|sage/)")
_NOT_USER: Final = re.compile(r"site-packages/|dist-packages/|lib/python\d|<frozen|\.pyx$|\.pxd$")
_SOURCE_NAME: Final = re.compile(r" \((?:<[^>]*>|\d+\.py), line (\d+)\)\Z")
_PREPARSED: Final = re.compile(r"\b(?:Integer\((0[xX][\da-fA-F]+|\d+)\)|RealNumber\('([^'\n]*)'\))")
_SYNTAX_ERRORS: Final = ("SyntaxError", "IndentationError", "TabError")
_NAME: Final = re.compile(r"name '(\w+)' is not defined")


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """An exception, ready to be shown."""

    title: str
    """``ZeroDivisionError: rational division by zero``."""
    frames: str
    """The user's frames; empty if none is."""
    omitted: int
    """Frames left out."""


def full_text(failure: CellFailure) -> str:
    """The whole traceback without colours; the title alone where the kernel sent none."""
    lines = [strip_ansi(clean(entry)).rstrip() for entry in failure.traceback]
    return "\n".join(lines) if lines else _title(failure)


def trim(failure: CellFailure) -> Trimmed:
    """Leave out what is not the user's: Sage's, Python's and IPython's own frames."""
    entries = [strip_ansi(clean(entry)).rstrip() for entry in failure.traceback]
    frames = [entry for entry in entries if _CELL.match(entry) or _FILE.match(entry)]
    kept = [frame for frame in frames if _is_users(frame)]
    is_syntax = failure.ename in _SYNTAX_ERRORS
    kept = [_without_message(f, failure) if is_syntax else _as_typed(f) for f in kept]
    if len(kept) > MAX_FRAMES:
        half = MAX_FRAMES // 2
        gap = f"… {len(kept) - 2 * half} frames …"
        shown = [*kept[:half], gap, *kept[-half:]]
    else:
        shown = kept
    return Trimmed(
        title=_title(failure),
        frames="\n".join(shown),
        omitted=len(frames) - min(len(kept), MAX_FRAMES),
    )


_NETWORK = frozenset(
    {"URLError", "gaierror", "ConnectionError", "MaxRetryError", "NewConnectionError"}
)
"""Exceptions of whoever tries to reach another machine."""


def hint(failure: CellFailure, code: str = "") -> str:
    """What to do about it, where the exception and the code alone tell."""
    if failure.ename == "SyntaxError" and code.lstrip().startswith("```"):
        return "The code begins with a Markdown fence; give the code alone, without ``` lines."
    if failure.ename == "FileNotFoundError":
        return 'sage_files(action="list") shows the files that are there; paths are relative to /files.'
    if failure.ename in _NETWORK:
        return "The session has no network: bring data in with sage_files."
    if failure.ename == "NameError":
        found = _NAME.search(failure.evalue)
        if found:
            name = found.group(1)
            return f"If {name} is meant as a symbolic variable, run var('{name}') first."
    if failure.ename == "ModuleNotFoundError":
        return "The session has no network; packages cannot be installed."
    if failure.ename == "MemoryError":
        return "The session's memory is limited; sage_sessions() tells the limit."
    return ""


def _title(failure: CellFailure) -> str:
    value = _SOURCE_NAME.sub(r" (line \1)", strip_ansi(clean(failure.evalue)))
    name = clean(failure.ename)
    return f"{name}: {value}" if value else name


def _is_users(frame: str) -> bool:
    if _CELL.match(frame):
        return True
    found = _FILE.match(frame)
    if found is None:
        return False
    path = found.group("path")
    return _USER_FILES.match(path) is not None and not _NOT_USER.search(path)


def _without_message(frame: str, failure: CellFailure) -> str:
    """A syntax error's only entry ends with the message, which the title says already."""
    lines = frame.split("\n")
    if len(lines) > 1 and lines[-1].startswith(f"{failure.ename}:"):
        lines.pop()
    return "\n".join(lines)


def _as_typed(frame: str) -> str:
    """Numbers as they were typed; a frame with a caret keeps the preparsed text it points into."""
    return _PREPARSED.sub(lambda found: found.group(1) or found.group(2), frame)
