"""Documentation, source, completions and searches, for whoever asks while nothing runs.

A forked child looks, so that nothing of the kernel changes: no variable, random state, history or
prompt number, whatever the looked-at objects do. The broker has a silent request evaluate
``__import__("sagebroker_inside.inspecting", fromlist=["look"]).look(name, detail, offset, limit)``.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from . import manual, reviving
from .glimpse import child, pieces, write_all
from .looking import ProblemError, completions, documentation, source
from .wording import TooSlowError, reason_of

if TYPE_CHECKING:
    from .alarm import Alarm

LOOK_LIMIT_S = 5.0
"""For one name: most take 0.1 s; Sage's first formatting of a text loads Sphinx, 1 s."""

SEARCH_LIMIT_S = 30.0
"""For the first search of a kernel: reading 100 MB of sources takes 3 s when they are in the page cache."""

GRACE_S = 0.5
"""After which a child whose alarm has not ended it is ended."""

ENDED = "it ended the process that looked at it"
"""What is said of an object that did."""

CHILD_MEMORY_BYTES = 256 * 2**20
"""What a child may take beyond what it shares with the kernel."""

INDEX_LIMIT_BYTES = 16 * 2**20
"""Largest index kept; Sage's has 4 MiB."""

_index = b""
"""Of the manual, packed; made by the first search, kept for later ones."""


def look(name: str, detail: str, offset: int, limit: int) -> str:
    """What there is to say about a name.

    Args:
        name: What was asked for.
        detail: ``doc``, ``source``, ``complete`` or ``search``.
        offset: First character of the text wanted.
        limit: Most characters.

    Returns:
        JSON: ``title``, ``text`` (the part wanted) and ``total`` (characters there are); or
        ``problem`` with ``reason`` and ``close`` (similar names), as of `ProblemError`.
    """
    global _index  # the next search's child inherits it
    limit_s = SEARCH_LIMIT_S if detail == "search" else LOOK_LIMIT_S
    deadline = time.monotonic() + limit_s + GRACE_S
    said = bytearray()
    with child(partial(_tell, name, detail, (offset, limit), limit_s), CHILD_MEMORY_BYTES) as pipe:
        for data in pieces(pipe, limit_s + GRACE_S, deadline):
            said += data
            if len(said) > 2 * INDEX_LIMIT_BYTES:
                break
        else:
            answer, ended, made = said.partition(b"\n")
            if detail == "search" and 0 < len(made) <= INDEX_LIMIT_BYTES:
                _index = bytes(made)
            if ended:
                return answer.decode("ascii", "replace")
    if time.monotonic() < deadline:
        return json.dumps(ProblemError("raised", reason=ENDED).told())
    return json.dumps(ProblemError("slow").told())


def _tell(
    name: str, detail: str, part: tuple[int, int], limit_s: float, told: int, alarm: Alarm
) -> None:
    """Look, and write a line of JSON; after it the manual's index, if it was made. In the child."""
    made = b""
    try:
        with alarm.within(limit_s):
            if detail == "search":
                made = b"" if _index else manual.build()
                title, text = manual.search(name, _index or made, reviving.live_namespace())
            else:
                title, text = _LOOKS[detail](name, reviving.live_namespace())
        offset, limit = part
        said = {"title": title, "text": text[offset : offset + limit], "total": len(text)}
    except ProblemError as problem:
        said = problem.told()
    except TooSlowError:
        said = ProblemError("slow").told()
    except BaseException as error:  # noqa: BLE001 - of the user's objects anything may come
        said = _failure(error, alarm)
    write_all(told, json.dumps(said).encode("ascii") + b"\n" + made)


def _failure(error: BaseException, alarm: Alarm) -> dict[str, Any]:
    try:
        with alarm.within(GRACE_S / 2):
            return ProblemError("raised", reason=reason_of(error)).told()
    except TooSlowError:
        return ProblemError("slow").told()


_LOOKS = {"doc": documentation, "source": source, "complete": completions}
