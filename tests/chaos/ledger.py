"""What a client was told over all lives of its broker, and what must therefore be so at the end; no I/O."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
"""A line of the driver's."""

_RESTORED = re.compile(r"(\d+) variables as they were after", re.IGNORECASE)
_MISSING = re.compile(r"Missing: (.*?)\. The files", re.IGNORECASE)
_NOTHING_LEFT = ("variables are lost", "variables are gone", "has no variables")
_TOKEN = re.compile(r"print\('(\w+)', file=")


@dataclass(kw_only=True)
class Sent:
    """A cell."""

    variable: str
    value: int
    stdout: str
    number: int = 0
    """0 where the driver was killed before it heard it."""
    end: Event | None = None
    """What was told of its end."""
    is_unknown: bool = False
    """A later broker had no such cell: it was killed before the cell was stored."""


@dataclass(kw_only=True)
class Told:
    """One session, as its client knows it."""

    name: str
    cells: dict[str, Sent] = field(default_factory=dict)
    """By token, in the order in which they were sent."""
    kept: list[str] = field(default_factory=list)
    """Tokens of cells whose variables must be there, in the order in which these were set."""
    lost: set[str] = field(default_factory=set)
    """Tokens of those of whose loss was told."""
    is_closing: bool = False
    final: Event | None = None

    def take(self, sentence: str) -> None:
        """Draw the conclusion from a sentence.

        Variables are only ever added, so what a checkpoint has is the first so many of them.
        """
        restored = _RESTORED.search(sentence)
        if restored is not None:
            self._lose(self.kept[int(restored[1]) :])
        elif any(words in sentence for words in _NOTHING_LEFT):
            self._lose(self.kept)
        missing = _MISSING.search(sentence)
        if missing is not None:
            self._lose([t for t in self.kept if f"v_{t} (" in missing[1]])

    def _lose(self, tokens: list[str]) -> None:
        self.lost.update(tokens)
        self.kept = [token for token in self.kept if token not in self.lost]


class Ledger:
    """Takes the events of all lives in order; afterwards it complains."""

    def __init__(self) -> None:
        self.sessions: dict[str, Told] = {}
        self.operations: Counter[str] = Counter()
        """Begun ones, by name."""
        self.killed_at: list[str] = []
        self.troubles: list[str] = []
        """What should not happen at all: hangs, refusals, sessions that vanish."""
        self.left: list[str] | None = None
        """What is left after everything was closed; None before."""
        self._current: dict[str, str] = {}

    def pending(self) -> dict[str, list[tuple[str, int]]]:
        """Cells whose end nobody was told, by session."""
        return {
            session: [
                (token, cell.number)
                for token, cell in told.cells.items()
                if cell.number and cell.end is None and not cell.is_unknown
            ]
            for session, told in self.sessions.items()
        }

    def take(self, event: Event) -> None:
        """One line of the driver's."""
        kind = event["event"]
        if kind == "killed":
            self.killed_at.append(event["point"])
        elif kind == "begins":
            self.operations[event["operation"]] += 1
        elif kind in ("refused", "hangs"):
            self.troubles.append(str(event))
        elif kind == "finished":
            self.left = event["left"]
        elif "session" in event:
            self._take_of_session(kind, event)

    def _take_of_session(self, kind: str, event: Event) -> None:
        if kind == "open":
            self._open(event)
        told = self.sessions[event["session"]]
        if kind == "closing":
            told.is_closing = True
        elif kind == "final":
            told.final = event
        elif kind == "sending":
            told.cells[event["token"]] = Sent(
                variable=event["variable"], value=event["value"], stdout=event["stdout"]
            )
        elif kind == "sent":
            told.cells[event["token"]].number = event["number"]
        elif kind == "unknown":
            told.cells[event["token"]].is_unknown = True
        elif kind == "ended":
            self._end(told, event)
        for sentence in (event.get("answer", ""), *event.get("notices", ())):
            told.take(sentence)

    def _open(self, event: Event) -> None:
        session, name = event["session"], event["name"]
        before = self.sessions.get(self._current.get(name, ""))
        if self._current.get(name) != session and before is not None and not before.is_closing:
            self.troubles.append(f"the session {name!r} is another one: {event}")
        self._current[name] = session
        # The same one again, although its closing had begun: then that has not changed anything.
        self.sessions.setdefault(session, Told(name=name)).is_closing = False

    def _end(self, told: Told, event: Event) -> None:
        token = event["token"]
        told.cells[token].end = event
        for sentence in event["cell_notices"]:
            if sentence.startswith("Before this cell ran"):
                told.take(sentence)
        if event["status"] == "ok":
            told.kept.append(token)
        for sentence in event["cell_notices"]:
            if not sentence.startswith("Before this cell ran"):
                told.take(sentence)

    def complaints_about_variables(self) -> list[str]:
        """Variables that are gone without a word, or have another value."""
        found = []
        for session, told in self._finals():
            there = told.final["variables"] if told.final else {}
            known = {cell.variable: cell.value for cell in told.cells.values()}
            found += [f"{session}: {n} = {v}" for n, v in there.items() if known.get(n) != v]
            found += [
                f"{session}: {told.cells[token].variable} is gone, of {len(told.kept)} kept: {told}"
                for token in told.kept
                if told.cells[token].variable not in there
            ]
        return found

    def complaints_about_files(self) -> list[str]:
        """Cells that ran twice or, by the file that each writes to, not as was told."""
        found = []
        for session, told in self._finals():
            log = told.final["log"] if told.final else []
            twice = [token for token, times in Counter(log).items() if times > 1]
            found += [f"{session}: {token} ran twice" for token in twice]
            found += [f"{session}: {token} was never sent" for token in set(log) - set(told.cells)]
            for token, cell in told.cells.items():
                if cell.end is None:
                    if cell.is_unknown and token in log:
                        found.append(f"{session}: {token} ran, and is not stored")
                    continue
                said = " ".join(cell.end["cell_notices"])
                if cell.end["status"] == "ok" and token not in log:
                    found.append(f"{session}: {token} was ok, and its line is not there")
                if "was not run" in said and token in log:
                    found.append(f"{session}: {token} ran although it was told {said!r}")
        return found

    def complaints_about_cells(self) -> list[str]:
        """Cells without an end, with another one than was told, stored twice, or run and not stored."""
        found = []
        for session, told in self._finals():
            assert told.final is not None
            stored: dict[str, Event] = {}
            for cell in told.final["cells"]:
                named = _TOKEN.search(cell["code"])
                if named is None or named[1] in stored or named[1] not in told.cells:
                    found.append(f"{session}: stored twice, or never sent: {cell}")
                else:
                    stored[named[1]] = cell
                if cell["status"] in ("queued", "running"):
                    found.append(f"{session}: no end: {cell}")
            for token, sent in told.cells.items():
                if sent.end is not None and (
                    token not in stored or _in_short(stored[token]) != _in_short(sent.end)
                ):
                    found.append(f"{session}: told {sent.end}, stored {stored.get(token)}")
                if token in told.final["log"] and token not in stored:
                    found.append(f"{session}: {token} ran, and is not stored")
            found += self._bad_outputs(session, told, stored)
        return found

    def _bad_outputs(self, session: str, told: Told, stored: dict[str, Event]) -> list[str]:
        """Outputs of cells that ended well which are not whole, in an answer or in the store."""
        found = []
        for token, sent in told.cells.items():
            for place, cell in (("told", sent.end), ("stored", stored.get(token))):
                if cell is None or cell["status"] != "ok" or cell["output_lost"]:
                    continue
                if cell["stdout"] != sent.stdout:
                    found.append(f"{session}: {place} {cell['stdout']!r}, sent {sent}")
        return found

    def _finals(self) -> list[tuple[str, Told]]:
        return [(s, told) for s, told in self.sessions.items() if told.final is not None]

    @property
    def kept(self) -> int:
        """Variables that must be there at the end."""
        return sum(len(told.kept) for _, told in self._finals())

    @property
    def names(self) -> set[str]:
        """Of the sessions that were looked at, at the end."""
        return {told.name for _, told in self._finals()}

    def summary(self) -> str:
        """How much has happened; for whoever wants to know whether a run was worth anything."""
        cells = [cell for told in self.sessions.values() for cell in told.cells.values()]
        ends = Counter(
            f"{cell.end['status']} {cell.end['error'] or ''}".strip() if cell.end else "untold"
            for cell in cells
        )
        lost = sum(len(told.lost) for _, told in self._finals())
        return (
            f"operations {dict(self.operations)}; cells {dict(ends)}; "
            f"{len(self.sessions)} sessions; variables kept {self.kept}, told lost {lost}"
        )


def _in_short(cell: Event) -> str:
    """How a cell ended.

    One that was interrupted may be stored as one that raised `KeyboardInterrupt`: where the broker is
    killed at this moment, the kernel's journal tells that and not who has interrupted it.
    """
    error = cell["error"] or ""
    if cell["status"] == "error" and error.startswith("KeyboardInterrupt"):
        return "interrupted"
    return f"error {error}" if cell["status"] == "error" else str(cell["status"])
