"""What the writing process of a checkpoint does: one record after the other, each within its time."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import reducers, reviving, surroundings
from .alarm import Alarm
from .changes import deleted_names, user_names
from .pickling import CountedFile, LimitError, RecordWriter, StorageError
from .shelf import BUFFERS, DATA, MANIFEST, checksum
from .wording import TAKES_TOO_LONG, TooSlowError, one_line, reason_of, type_name

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .settings import CheckpointConfig
    from .shared_note import SharedNote

VARIABLE_SHARE = 0.25
"""Of the time limit, for one variable."""

WRITING_SHARE = 0.8
"""Of the time limit, for the variables; the rest is for the end and for bringing it to the disk."""

RECURSION_LIMIT = 3000
"""Depth to which nested objects are followed; more would use up the 8 MiB of the stack."""

VARIABLE = "variable"
PART = "part"
"""Kinds of records."""

LISTED_NAMES = 500
"""Most variables that the manifest names: the broker reads a bounded part of it."""

NAME_CHARACTERS = 100
"""Most characters of such a name."""


@dataclass(frozen=True)
class Snapshot:
    """What a fork of the kernel holds still.

    Attributes:
        namespace: The user's global variables.
        baseline: Those at the kernel's start.
        environment: The process environment at the kernel's start.
        cell: The kernel's count of the last cell that has run.
        generation: Which incarnation of the kernel it is.
        config: Limits and place.
        python_random: State of `random` before the fork, which seeds it anew.
        context: That of the last cell; NumPy and decimal keep settings in it.
        harmful: Variables not to be tried again so soon, with the reason.
        label: That the checkpoint shall have; empty for none.
    """

    namespace: dict[str, Any]
    baseline: dict[str, Any]
    environment: dict[str, str]
    cell: int
    generation: int
    config: CheckpointConfig
    python_random: Any
    context: contextvars.Context
    harmful: dict[str, str]
    label: str = ""


class Item(NamedTuple):
    """Something to be recorded."""

    kind: str
    name: str
    read: Callable[[], Any]


def variable_limit_s(config: CheckpointConfig) -> float:
    """Seconds that one variable may take."""
    return config.time_limit_s * VARIABLE_SHARE


def record(
    snapshot: Snapshot, place: Path, skip: dict[int, str], note: SharedNote, deadline: float
) -> None:
    """Write the data files and the first half of the manifest.

    Args:
        snapshot: What is to be saved.
        place: An empty folder.
        skip: Positions of what is to be left out, with the reason.
        note: Is told of each position before it is tried.
        deadline: Monotonic time by which the whole checkpoint must be there.

    Raises:
        OSError, StorageError: The files cannot be written.
    """
    items = list(_items(snapshot))
    sys.setrecursionlimit(max(RECURSION_LIMIT, sys.getrecursionlimit()))
    config = snapshot.config
    end = deadline - config.time_limit_s * (1 - WRITING_SHARE)
    budget = [config.limit_bytes]
    saved: list[tuple[str, str]] = []
    missing = list(_running_interfaces())
    with (place / DATA).open("wb") as data, (place / BUFFERS).open("wb") as buffers:
        writer = RecordWriter(
            CountedFile(data, budget), CountedFile(buffers, budget), snapshot.namespace
        )
        alarm = Alarm()
        for position, item in enumerate(items, 1):
            note.position = position
            left = min(variable_limit_s(config), end - time.monotonic())
            known = snapshot.harmful.get(item.name, "") if item.kind == VARIABLE else ""
            reason = skip.get(position, known) or _try(item, writer, snapshot, alarm, left)
            if reason:
                missing.append({"name": item.name, "type": _type_name(item), "reason": reason})
            elif item.kind == VARIABLE:
                saved.append((item.name, _type_name(item)))
        note.position = len(items) + 1
        writer.write(PART, surroundings.SOURCES, surroundings.sources_of(writer.sources))
        for file in (data, buffers):
            file.flush()
            os.fsync(file.fileno())
    _write_manifest(place, saved, missing)


def _items(snapshot: Snapshot) -> Iterator[Item]:
    namespace, baseline = snapshot.namespace, snapshot.baseline
    for name, value in surroundings.first_parts(snapshot.environment):
        yield Item(PART, name, partial(reviving.same, value))
    for name in user_names(namespace, baseline):
        if not reducers.is_same_import(baseline.get(name), namespace[name]):
            yield Item(VARIABLE, name, partial(namespace.get, name))
    gone = deleted_names(namespace, baseline)
    yield Item(PART, surroundings.DELETED, partial(reviving.same, gone))
    for name, read in surroundings.last_parts(snapshot.python_random):
        yield Item(PART, name, read)


def _try(item: Item, writer: RecordWriter, snapshot: Snapshot, alarm: Alarm, limit_s: float) -> str:
    """Write one record; why that failed, or nothing."""
    if limit_s <= 0:
        return "there was no time left for it"
    done = False
    try:
        with alarm.within(limit_s):
            try:
                value = item.read()
                if item.kind == VARIABLE:
                    reducers.refuse_foreign_values(value, snapshot.namespace)
                writer.write(item.kind, item.name, value)
                done = True
            except (StorageError, TooSlowError):
                raise
            except LimitError:
                limit = snapshot.config.limit_bytes
                return f"with it the checkpoint would be larger than {limit / 1e6:g} MB"
            except BaseException as error:  # noqa: BLE001 - the user's objects raise anything
                return reason_of(error)
    except TooSlowError:
        return "" if done else TAKES_TOO_LONG
    return ""


def _type_name(item: Item) -> str:
    if item.kind != VARIABLE:
        return "setting"
    return type_name(item.read())


def _running_interfaces() -> Iterator[dict[str, str]]:
    """Sage's own interfaces to programs, as far as these run: they will start anew."""
    for name, interface in reducers.running_interfaces():
        reason = "what its running process holds; it will start anew"
        yield {"name": name, "type": type(interface).__name__, "reason": reason}


def _write_manifest(
    place: Path, saved: list[tuple[str, str]], missing: list[dict[str, str]]
) -> None:
    files = {}
    for name in (DATA, BUFFERS):
        length, code = checksum(place / name)
        files[name] = {"bytes": length, "crc32": code}
    content = {
        "bytes": sum(file["bytes"] for file in files.values()),
        "count": len(saved),
        "names": [one_line(name, NAME_CHARACTERS) for name, _ in saved[:LISTED_NAMES]],
        "types": [kind for _, kind in saved[:LISTED_NAMES]],
        "missing": missing,
        "files": files,
    }
    (place / MANIFEST).write_text(json.dumps(content), encoding="ascii")


def finish_manifest(place: Path, more: dict[str, Any]) -> dict[str, Any]:
    """Add to the manifest what the overseer knows, and bring it to the disk; what it says now.

    Raises:
        OSError: It cannot be written.
    """
    content: dict[str, Any] = json.loads((place / MANIFEST).read_text(encoding="ascii"))
    content = {**more, **content}
    with (place / MANIFEST).open("w", encoding="ascii") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    return content
