"""What a kernel says of a name: asked by a silent request, answered by `sagebroker.inside.inspecting`.

The user's code can forge the answers as well as the kernel, so all of it is hostile input. Nothing
in here raises for what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from sagebroker.kernel.checkpoints import ANSWER_LIMIT_CHARACTERS, INTEGER_LIMIT, call_expression
from sagebroker.kernel.foreign_files import parse_object

Detail = Literal["doc", "source", "complete", "search"]
"""What can be asked of a name."""

ProblemKind = Literal["call", "unknown", "raised", "slow", "nothing"]
"""Why there is no answer: no name but something to evaluate; no such name; an object of the user's
raised or took too long; there is no source, or nothing was found."""

_KINDS: Final[dict[str, ProblemKind]] = {kind: kind for kind in get_args(ProblemKind)}

TITLE_CHARACTERS: Final = 500
REASON_CHARACTERS: Final = 300
NAME_CHARACTERS: Final = 200
"""Longest of each; the kernel's own are shorter as a rule."""
CLOSE_LIMIT: Final = 6
"""Most similar names."""


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        name: Dotted; its beginning for ``complete``, words for ``search``.
        detail: What is asked of it.
        offset: First character of the answer wanted.
        limit: Most characters.
    """

    name: str
    detail: Detail = "doc"
    offset: int = 0
    limit: int = 8000


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What there is to say of a name.

    Attributes:
        title: One line: what it is.
        text: The part of the text that was asked for.
        total: Characters of the whole.
    """

    title: str
    text: str
    total: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why there is nothing to say.

    Attributes:
        kind: See `ProblemKind`.
        reason: In the words of what was raised; empty else.
        close: Names like the one that is not known.
    """

    kind: ProblemKind
    reason: str
    close: tuple[str, ...]


def inspect_expression(question: Question) -> str:
    """What the kernel shall evaluate, in a silent request, to say something of a name."""
    name, detail = ascii(str(question.name)), repr(str(question.detail))
    part = f"{int(question.offset)}, {int(question.limit)}"
    return call_expression("inspecting", "look", f"{name}, {detail}, {part}")


def parse_inspected(text: str, limit: int) -> Inspected | Problem | None:
    """What the kernel says to `inspect_expression`; None where it is nothing of the kind."""
    values = parse_object(text) if len(text) <= ANSWER_LIMIT_CHARACTERS else None
    if values is None:
        return None
    title, shown, total = values.get("title"), values.get("text"), values.get("total")
    if isinstance(title, str) and isinstance(shown, str) and type(total) is int:
        if not 0 <= total < INTEGER_LIMIT:
            return None
        return Inspected(title=_line(title, TITLE_CHARACTERS), text=shown[:limit], total=total)
    kind, reason, close = values.get("problem"), values.get("reason"), values.get("close")
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is None or not isinstance(close, list):
        return None
    names = (_line(one, NAME_CHARACTERS) for one in close[:CLOSE_LIMIT] if isinstance(one, str))
    return Problem(kind=known, reason=_line(str(reason), REASON_CHARACTERS), close=tuple(names))


def _line(text: str, limit: int) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:limit])
