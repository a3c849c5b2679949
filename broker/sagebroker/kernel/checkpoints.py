"""What a session's checkpoints hold, and what the kernel says of them and of its variables.

No checkpoint is unpickled here: only what it says of itself is read. The user's code can write the
files and forge the answers as well as the kernel, so all of it is hostile input; what is forged can
only mislead its own session. Nothing in here raises for what it reads.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sagebroker.kernel.foreign_files import FLAGS, parse_object, read_bounded

LABELLED_LIMIT: Final = 5
"""Most checkpoints of a session that have a label: so many are kept beside the newest ones."""

VERSION: Final = 1
"""Of the manifests that are understood."""

MANIFEST_LIMIT_BYTES: Final = 4 * 2**20
"""Largest manifest: 500 names and the reasons of 16,000 missing variables."""
LABELS_LIMIT_BYTES: Final = 65_536
MANIFESTS_LIMIT_BYTES: Final = 32 * 2**20
"""Read of all manifests together: parsing so much takes a second at the worst."""
CHECKPOINTS_LIMIT: Final = 1000
"""Most checkpoints looked at, the newest."""
ENTRIES_LIMIT: Final = 10_000
"""Most entries of the folder looked at."""

NAMES_LIMIT: Final = 500
"""Most variables told by name; the kernel names no more."""
MISSING_LIMIT: Final = 100
"""Most missing variables told by name."""

NAME_CHARACTERS: Final = 100
TYPE_CHARACTERS: Final = 80
REASON_CHARACTERS: Final = 300
VALUE_CHARACTERS: Final = 200
"""Longest of each; the kernel cuts its own at these or below."""

INTEGER_LIMIT: Final = 2**53
"""No honest number reaches it."""
TIME_LIMIT_S: Final = 253_402_300_800.0
"""The year 10000, with which dates end."""

ANSWER_LIMIT_CHARACTERS: Final = 4 * 2**20
"""Longest answer to an expression; 500 variables take 200 kB."""

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,11}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
# What repr() makes of a string, and nothing else: ast would take gigabytes for other expressions.
_ESCAPE: Final = r"\\(?:[\\'\"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})"
_STRING: Final = re.compile(
    rf"'(?:[^'\\\x00-\x1f]|{_ESCAPE})*+'|\"(?:[^\"\\\x00-\x1f]|{_ESCAPE})*+\""
)


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        number: They count up; the newest has the largest.
        saved_at: Wall time at which it was saved, in seconds.
        cell: The kernel's prompt number after which it was saved; 0: before any cell.
        generation: Which incarnation of the kernel has saved it.
        names: How many variables are in it.
        variables: Name and type of the first `NAMES_LIMIT` of them.
        missing: Name and reason of those that could not be saved, at most `MISSING_LIMIT`.
        missing_total: How many there are.
        bytes: Its size.
        label: Empty: it has none.
    """

    number: int
    saved_at: float
    cell: int
    generation: int
    names: int
    variables: tuple[tuple[str, str], ...]
    missing: tuple[tuple[str, str], ...]
    missing_total: int
    bytes: int
    label: str


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """How far a kernel's checkpoints are; see `sagebroker.inside.checkpoint.state`.

    Attributes:
        number: Of the last one; 0: this kernel has written none.
        error: Of the last attempt, or why what was asked is refused; empty: no trouble.
        settled: Whether nothing is left to be saved.
        pending: Whether one is being written or due: ask again.
        label: That the last attempt was to give; empty: none.
        unlabelled: Of the checkpoint that is kept no longer for it; empty: there is none.
    """

    number: int
    error: str
    settled: bool
    pending: bool
    label: str
    unlabelled: str


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One of a kernel's variables.

    Attributes:
        name: In the user's namespace.
        type: Name of its value's type.
        bytes: An estimate of its size; None where it could not be made.
        repr: How it shows itself, in one line; None where it does not let itself be shown.
    """

    name: str
    type: str
    bytes: int | None
    repr: str | None


@dataclass(frozen=True, kw_only=True)
class VariableList:
    """A kernel's variables.

    Attributes:
        variables: At most `NAMES_LIMIT` of them.
        total: How many there are of the pattern that was asked for.
    """

    variables: tuple[Variable, ...]
    total: int


def read_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """The checkpoints in ``folder``, the oldest first; those without a manifest are left out.

    Blocks: to be called in a thread.
    """
    try:
        opened = os.open(folder, FLAGS | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        labels = _read_labels(opened)
        found: list[CheckpointInfo] = []
        left_bytes = MANIFESTS_LIMIT_BYTES
        for number in _newest_numbers(opened):
            data = _read_manifest(opened, number, min(left_bytes, MANIFEST_LIMIT_BYTES))
            left_bytes -= len(data or b"")
            info = _info(number, parse_object(data), labels.get(number, ""))
            if info is not None:
                found.append(info)
        return found[::-1]
    finally:
        os.close(opened)


def _newest_numbers(folder: int) -> list[int]:
    """Numbers of the newest checkpoints, descending."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in itertools.islice(entries, ENTRIES_LIMIT)]
    except OSError:
        return []
    numbers = sorted((int(name) for name in names if _NUMBER.fullmatch(name)), reverse=True)
    return numbers[:CHECKPOINTS_LIMIT]


def _read_manifest(folder: int, number: int, limit_bytes: int) -> bytes | None:
    try:
        place = os.open(str(number), FLAGS | os.O_DIRECTORY, dir_fd=folder)
    except OSError:
        return None
    try:
        return read_bounded("manifest.json", limit_bytes, folder=place)
    finally:
        os.close(place)


def _read_labels(folder: int) -> dict[int, str]:
    values = parse_object(read_bounded("labels.json", LABELS_LIMIT_BYTES, folder=folder)) or {}
    return {
        int(number): label
        for number, label in values.items()
        if _NUMBER.fullmatch(number) and isinstance(label, str) and _LABEL.fullmatch(label)
    }


def _info(number: int, values: dict[str, Any] | None, label: str) -> CheckpointInfo | None:
    try:
        if values is None or values["version"] != VERSION:
            return None
        names = [_line(name, NAME_CHARACTERS) for name in values["names"][:NAMES_LIMIT]]
        types = [_line(kind, TYPE_CHARACTERS) for kind in values.get("types", [])[:NAMES_LIMIT]]
        missing = [
            (_line(entry["name"], NAME_CHARACTERS), _line(entry["reason"], REASON_CHARACTERS))
            for entry in values["missing"][:MISSING_LIMIT]
        ]
        return CheckpointInfo(
            number=number,
            saved_at=_wall_time(values["saved_at"]),
            cell=_integer(values["cell"]),
            generation=_integer(values["generation"]),
            names=_integer(values.get("count", len(values["names"]))),
            # Manifests of before the types were in them have none.
            variables=tuple(itertools.zip_longest(names, types[: len(names)], fillvalue="")),
            missing=tuple(missing),
            missing_total=len(values["missing"]),
            bytes=_integer(values["bytes"]),
            label=label,
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def parse_state(text: str) -> CheckpointState | None:
    """What the kernel says to `state_expression`; None where it is nothing of the kind."""
    values = _parse_answer(text)
    try:
        if values is None:
            return None
        return CheckpointState(
            number=_integer(values["number"]),
            error=_line(values["error"], REASON_CHARACTERS),
            settled=_truth(values["settled"]),
            pending=_truth(values["pending"]),
            label=_line(values.get("label", ""), NAME_CHARACTERS),
            unlabelled=_line(values.get("unlabelled", ""), NAME_CHARACTERS),
        )
    except (ValueError, TypeError, LookupError):
        return None


def parse_variables(text: str) -> VariableList | None:
    """What the kernel says to `variables_expression`; None where it is nothing of the kind."""
    values = _parse_answer(text)
    try:
        if values is None:
            return None
        return VariableList(
            variables=tuple(_variable(entry) for entry in values["variables"][:NAMES_LIMIT]),
            total=_integer(values["total"]),
        )
    except (ValueError, TypeError, LookupError):
        return None


def _variable(entry: dict[str, Any]) -> Variable:
    size, shown = entry["bytes"], entry["repr"]
    return Variable(
        name=_line(entry["name"], NAME_CHARACTERS),
        type=_line(entry["type"], TYPE_CHARACTERS),
        bytes=None if size is None else _integer(size),
        repr=None if shown is None else _line(shown, VALUE_CHARACTERS),
    )


def is_label(text: str) -> bool:
    """Whether a checkpoint can have this label."""
    return _LABEL.fullmatch(text) is not None


def state_expression(*, write: bool = False, label: str = "") -> str:
    """What the kernel shall evaluate, in a silent request, to say how far its checkpoints are.

    Args:
        write: Whether it shall write one though nothing may have changed.
        label: That this one shall have; it is written in any case then.
    """
    given = [f"label={str(label)!r}"] if label else []
    arguments = ["write=True", *given] if write else given
    return call_expression("checkpoint", "state", ", ".join(arguments))


def variables_expression(pattern: str, limit: int) -> str:
    """What the kernel shall evaluate, in a silent request, to list its variables.

    Args:
        pattern: Of their names, as in a shell.
        limit: Most variables.
    """
    return call_expression("variables", "listing", f"{str(pattern)!r}, {int(limit)}")


def call_expression(module: str, function: str, arguments: str) -> str:
    """A call of a function of ours inside, given the source of its arguments."""
    # Through no name of the user's namespace.
    package = f'__import__("sagebroker_inside.{module}", fromlist=["{function}"])'
    return f"{package}.{function}({arguments})"


def expression_text(answer: object) -> str | None:
    """The string that an expression came to; None where it came to none.

    Args:
        answer: To this expression, of the reply's ``user_expressions``.
    """
    try:
        if not isinstance(answer, dict) or answer["status"] != "ok":
            return None
        literal = answer["data"]["text/plain"]
        if not isinstance(literal, str) or len(literal) > ANSWER_LIMIT_CHARACTERS:
            return None
        if not _STRING.fullmatch(literal):
            return None
        text = ast.literal_eval(literal)
    except (ValueError, TypeError, LookupError, SyntaxError, MemoryError, RecursionError):
        return None
    return text if isinstance(text, str) else None


def _parse_answer(text: str) -> dict[str, Any] | None:
    return parse_object(text) if len(text) <= ANSWER_LIMIT_CHARACTERS else None


def _line(value: object, limit: int) -> str:
    """A text of one printable line, cut to a limit."""
    if not isinstance(value, str):
        raise TypeError("no text")
    return "".join(c if c.isprintable() else " " for c in value[:limit])


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < INTEGER_LIMIT:
        raise ValueError("no integer that is meant")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("no truth value")
    return value


def _wall_time(value: object) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < TIME_LIMIT_S:
        raise ValueError("no time")
    return float(value)
