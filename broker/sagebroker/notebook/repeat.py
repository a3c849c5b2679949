"""`judge`: which cells of a notebook a fresh kernel cannot repeat, and why.

A replay runs the cells from the first to the last in one new kernel. `judge` says of each cell that is
not to be run, or whose output is not to be compared, the reason; what depends on such a cell is
followed by names. It reads code and runs none, so it may name a cell that would repeat after all, and
cannot know what is hidden from it (a random choice in an imported module).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from sagebroker.notebook.source import COMPUTED, FOREIGN, Statement, statements

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nbformat import NotebookNode

Mode = Literal["differs", "skip"]
"""``differs``: run it, and do not compare its output. ``skip``: do not run it."""

_TAGS: Final = {
    "differs": ("nbval-ignore-output",),
    "skip": ("skip-execution", "nbval-skip"),
}
"""What nbclient and nbval call it."""

RAISES_TAG: Final = "raises-exception"

MAX_REASONS: Final = 5
"""Of one cell; a person needs the first."""

_RANDOM: Final = re.compile(
    r"(?:^|\.)(?:random\w*|Random\w*|randint|randrange|rand|randn|shuffle|sample|choices?|getrandbits|"
    r"gauss|normalvariate|uniform|urandom|token_\w+|uuid[14]|default_rng)$"
)
_CHANCE_MODULE: Final = re.compile(r"(?:^|\.)(?:random|secrets|uuid)$")
_CLOCK: Final = re.compile(
    r"(?:^|\.)(?:time|time_ns|walltime|cputime|perf_counter\w*|process_time\w*|monotonic\w*|now|utcnow|"
    r"today|ctime|localtime|gmtime|strftime|timeit)$"
)
_PLACE: Final = re.compile(
    r"(?:^|\.)(?:getpid|mkdtemp|mkstemp|NamedTemporaryFile|TemporaryDirectory|tmp_filename|tmp_dir|gethostname"
    r"|get_memory_usage)$|^id$"
)
_ASKING: Final = frozenset({"input", "raw_input", "getpass", "getpass.getpass"})
_NUMBERED: Final = re.compile(r"^(?:_\d+|_i\d*|Out|In|_[io]h)$")
_ADDRESS: Final = re.compile(r"\bat 0x[0-9a-f]{4,}")

_STOPPED: Final = {
    "queued": "was not run",
    "running": "had not ended",
    "awaiting_input": "had not ended",
    "interrupted": "was interrupted",
    "died": "ended with its kernel",
}


def mark(cell: NotebookNode, mode: Mode, reason: str) -> None:
    """Have a cell say that it is not repeated, for one more reason; the stronger mode counts."""
    ours = cell.metadata.sagebroker
    found: dict[str, Any] = ours.setdefault("replay", {"mode": mode, "reasons": []})
    if mode == "skip":
        found["mode"] = mode
    if reason not in found["reasons"] and len(found["reasons"]) < MAX_REASONS:
        found["reasons"].append(reason)
    others = [tag for tag in cell.metadata.get("tags", ()) if tag not in sum(_TAGS.values(), ())]
    cell.metadata.tags = [*others, *_TAGS[found["mode"]]]


def judge(cells: Sequence[NotebookNode]) -> None:
    """Mark the cells that a replay cannot repeat; see the module.

    Args:
        cells: All of a notebook as `notebook_cell` makes them, in order.
    """
    past = _Past()
    for cell in cells:
        _Judgement(cell, past).give()


@dataclass
class _Past:
    """What the cells so far have left, for the ones to come."""

    unsure: dict[str, tuple[Mode, str]] = field(default_factory=dict)
    """Names whose value a replay has not, or has another of, and where that comes from."""
    bound: set[str] = field(default_factory=set)
    sources: dict[str, str] = field(default_factory=dict)
    seeded: set[str] = field(default_factory=set)
    """Sources of chance with a known state: empty for Sage's, ``random``, ``np.random``."""
    written: set[str] = field(default_factory=set)
    count: int = 0
    """The newest prompt number."""
    is_shifted: bool = False
    """Prompt numbers are others in a replay."""
    is_new_kernel: bool = False


class _Judgement:
    """One cell's: `give` marks it, and adds to ``past`` what it leaves."""

    def __init__(self, cell: NotebookNode, past: _Past) -> None:
        self._cell = cell
        self._past = past
        self._ours = cell.metadata.sagebroker
        self._number: int = self._ours.number

    def give(self) -> None:
        self._heed_new_kernel()
        status = self._ours.status
        if self._ours.started is None:
            mark(self._cell, "skip", _STOPPED["queued"])
            self._past.is_shifted = True
            return
        found = statements(self._cell.source)
        if status in _STOPPED:
            mark(self._cell, "skip", _STOPPED[status])
        for statement in found:
            self._look(statement)
        if self._is_skipped:
            self._skip(found)
        else:
            self._look_at_outputs()

    @property
    def _is_skipped(self) -> bool:
        return bool(self._ours.get("replay", {}).get("mode") == "skip")

    def _heed_new_kernel(self) -> None:
        count = self._cell.execution_count
        if count is None:
            return
        if count <= self._past.count:
            self._past.is_new_kernel = self._past.is_shifted = True
            self._past.seeded.clear()
        self._past.count = count

    def _look(self, statement: Statement) -> None:
        """Judge a statement, then take over what it leaves."""
        reasons = [*self._depends(statement), *self._chance(statement), *self._files(statement)]
        if asked := statement.calls & (_ASKING - self._past.bound):
            reasons.append(("skip", f"asks for input: {min(asked)}()"))
        for mode, reason in reasons:
            self._mark(mode, reason)
        if statement.tells_times:
            self._mark("differs", "tells how long it took")
        worst: Mode = "skip" if any(mode == "skip" for mode, _ in reasons) else "differs"
        past = self._past
        if reasons:
            self._doubt(statement.binds | statement.changes, worst)
        else:
            for name in statement.binds:
                past.unsure.pop(name, None)
        past.bound |= statement.binds | statement.changes
        for name in statement.binds:
            past.sources.pop(name, None)
        past.sources |= statement.sources
        if worst == "differs":
            past.written |= statement.files_written
            if statement.runs_shell:
                past.written.add(COMPUTED)
            past.seeded |= {_family(seed, past.sources) for seed in statement.seeds}

    def _doubt(self, names: set[str], mode: Mode) -> None:
        """A replay has other values of what this cell binds, or none."""
        what = "is not run again" if mode == "skip" else "may have another value"
        self._past.unsure |= dict.fromkeys(names, (mode, f"of cell {self._number}, which {what}"))

    def _mark(self, mode: Mode, reason: str) -> None:
        if mode == "skip" or self._cell.outputs:
            # Where nothing is shown nothing can differ.
            mark(self._cell, mode, reason)

    def _depends(self, statement: Statement) -> Iterable[tuple[Mode, str]]:
        for name in sorted(statement.reads & self._past.unsure.keys()):
            mode, origin = self._past.unsure[name]
            yield mode, f"uses {name} {origin}"
        numbered = sorted(name for name in statement.reads if _NUMBERED.match(name))
        if numbered and self._past.is_shifted:
            yield "differs", f"uses {numbered[0]}: prompt numbers are others in a replay"

    def _chance(self, statement: Statement) -> Iterable[tuple[Mode, str]]:
        past = self._past
        for word in sorted(statement.words):
            own = word.partition(".")[0] in past.bound and word not in past.sources
            is_bare = "." not in word
            if is_bare and own:
                continue
            if _RANDOM.search(word) and word not in statement.seeds:
                is_module = _CHANCE_MODULE.search(word) and word not in statement.calls
                if not is_module and _family(word, past.sources) not in past.seeded:
                    yield "differs", f"depends on chance: {word}"
            elif word in statement.calls and _CLOCK.search(word):
                yield "differs", f"depends on the time: {word}"
            elif word in statement.calls and _PLACE.search(word):
                yield "differs", f"depends on the process: {word}"

    def _files(self, statement: Statement) -> Iterable[tuple[Mode, str]]:
        written = self._past.written | statement.files_written
        for name in sorted(statement.files_read - written - {FOREIGN}):
            if COMPUTED in written:
                continue
            told = f"reads the file {name}" if name else "reads a file whose name is computed"
            yield "skip", f"{told}, which no earlier cell writes"
        if statement.looks_at_files:
            yield "differs", "looks at which files there are"
        if statement.runs_shell:
            yield "differs", "runs a shell command, which is not looked into"

    def _skip(self, found: list[Statement]) -> None:
        """What is not run again leaves nothing."""
        past = self._past
        past.is_shifted = True
        # Part of what was drawn is not drawn again.
        past.seeded.clear()
        if self._ours.get("variables_kept", True):
            names = set[str]().union(*(s.binds | s.changes for s in found))
            self._doubt(names | {"_"}, "skip")
            return
        # What the next kernel had came from a checkpoint: some values may have been older, or missing.
        past.is_new_kernel = True
        origin = f"as the new kernel after cell {self._number} had it, perhaps an older value"
        for name in past.bound:
            past.unsure.setdefault(name, ("differs", origin))

    def _look_at_outputs(self) -> None:
        cell, ours = self._cell, self._ours
        is_unsure = "replay" in ours
        if any(output.output_type == "execute_result" for output in cell.outputs):
            if is_unsure:
                self._doubt({"_"}, "differs")
            else:
                self._past.unsure.pop("_", None)
        if ours.get("is_incomplete"):
            mark(cell, "differs", "part of its output was not kept")
        if any(_ADDRESS.search(text) for text in _texts(cell)):
            mark(cell, "differs", "shows an address in memory")
        names = [output.ename for output in cell.outputs if output.output_type == "error"]
        if names:
            cell.metadata.tags = [*cell.metadata.get("tags", ()), RAISES_TAG]
        if "NameError" in names and self._past.is_new_kernel:
            mark(cell, "differs", "lacked a name, since its kernel was a new one")


def _family(word: str, sources: dict[str, str]) -> str:
    """Which source of chance a word draws from; empty for Sage's own."""
    if "." not in word:
        module = sources.get(word, "")
        return module if _CHANCE_MODULE.search(module) else ""
    base = word.rpartition(".")[0]
    return base if _CHANCE_MODULE.search(base) else ""


def _texts(cell: NotebookNode) -> Iterable[str]:
    """The texts that a replay compares."""
    for output in cell.outputs:
        match output.output_type:
            case "stream":
                yield output.text
            case "error":
                yield output.evalue
            case _:
                yield output.data.get("text/plain", "")
