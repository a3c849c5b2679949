"""A manual made of sources: what is defined where, how it is called and what it is for.

Read from the installed files, so that nothing is imported and no built documentation is needed:
Sage's, or Python's own library in a kernel without Sage.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .looking import ProblemError
from .ranking import query_stems, ranked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RESULTS_LIMIT = 15
"""Most results of a search."""

FILE_LIMIT_BYTES = 4 * 2**20
"""Largest source read; Sage's largest has 1 MB."""
ENTRIES_LIMIT = 200_000
"""Most definitions; Sage has 50,000 with a docstring."""

SIGNATURE_CHARACTERS = 160
SUMMARY_CHARACTERS = 200
EXAMPLE_CHARACTERS = 120
"""Longest of each."""

SIGNATURE_SPAN = 1500
DOC_SPAN = 12_000
"""Characters looked at for a signature's end, and for an example."""

PROMPTS = ("sage: ", ">>> ")
"""With which lines of examples begin."""

SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "doctest", "ext_data", "site-packages", "__pycache__", "idlelib", "lib2to3"}
)

_HEAD = re.compile(
    r"^([ \t]*)(async def|def|cpdef|cdef class|class)[ \t]+(?:[^\n(:=#]*[ \t*])?(\w+)[ \t]*(?=[(:])",
    re.MULTILINE,
)
_DOC = re.compile(
    r"[^\n]*?:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*[ \t]*[rRuU]{0,2}(\"\"\"|''')"
)
_MODULE_DOC = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*[rRuU]{0,2}(\"\"\"|''')")
_COMMENT = re.compile(r"\s+# .*")
_ROLE = re.compile(r":[a-z:]+:`[~!]?(?:[^`<]*<)?([^`>]*)>?`")


@dataclass(frozen=True)
class Entry:
    """A definition.

    Attributes:
        module: In which it is.
        name: With the classes it is in.
        kind: ``function``, ``method`` or ``class``.
        signature: Its arguments in parentheses; empty: not known.
        summary: What its docstring begins with.
        example: How its docstring calls it.
    """

    module: str
    name: str
    kind: str
    signature: str
    summary: str
    example: str


def build() -> bytes:
    """Read the sources; the index, packed."""
    lines = []
    for place, package in _roots():
        for path, module in _sources(place, package):
            text = path.read_text(encoding="utf-8", errors="replace")
            lines += ["\t".join(vars(entry).values()) for entry in entries(text, module)]
            if len(lines) >= ENTRIES_LIMIT:
                break
    packed = "\n".join(lines[:ENTRIES_LIMIT]).encode("utf-8", "replace")
    return zlib.compress(packed, 1)


def search(words: str, index: bytes, namespace: Mapping[str, Any]) -> tuple[str, str]:
    """Title, and the definitions that words describe, the best first.

    Args:
        words: In any order and inflection.
        index: Of `build`.
        namespace: The user's; what has a name there can be called at once.

    Raises:
        ProblemError: There is nothing like it.
    """
    stems = query_stems(words)
    if not stems:
        raise ProblemError("nothing")
    lines = zlib.decompress(index).decode("utf-8").split("\n")
    found = ranked(stems, [line.split("\t") for line in lines], namespace)
    if not found:
        raise ProblemError("nothing")
    shown = [_shown(Entry(*row), namespace) for row in found[:RESULTS_LIMIT]]
    return f"{len(shown)} of {len(found)} definitions that fit {words!r}", "\n\n".join(shown)


def entries(text: str, module: str) -> Iterator[Entry]:
    """The public definitions in a source that have a docstring."""
    outer: list[tuple[int, str, str]] = []
    opening = _MODULE_DOC.match(text)
    skip = _doc_end(text, opening) if opening else 0
    for head in _HEAD.finditer(text):
        if head.start() < skip:
            continue  # prose that looks like a definition
        indent = len(head[1].expandtabs())
        while outer and outer[-1][0] >= indent:
            outer.pop()
        is_class = head[2].endswith("class")
        name = head[3]
        signature, after = _arguments(text, head.end())
        doc = _DOC.match(text, after)
        if doc is not None:
            skip = _doc_end(text, doc)
        is_inner = any(kind != "class" for _, kind, _ in outer)
        path = [*(one for _, _, one in outer), name]
        outer.append((indent, "class" if is_class else "function", name))
        if doc is None or is_inner or any(one.startswith("_") for one in path):
            continue
        kind = "class" if is_class else "method" if len(path) > 1 else "function"
        body = text[doc.end() : min(skip, doc.end() + DOC_SPAN)]
        yield Entry(
            module,
            ".".join(path),
            kind,
            "" if is_class else signature,
            _summary(body),
            _example(body, name),
        )


def _roots() -> list[tuple[Path, str]]:
    """Folders of sources, and the packages they are."""
    sage = sys.modules.get("sage") or find_spec("sage")
    places = getattr(sage, "__path__", None) or getattr(sage, "submodule_search_locations", None)
    if places:
        return [(Path(place), "sage") for place in places]
    return [(Path(os.__file__).parent, "")]


def _sources(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    """The source files below a folder, with the names of their modules."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(one for one in folders if one not in SKIPPED_FOLDERS)
        inner = Path(folder).relative_to(root).parts
        for file in sorted(files):
            stem, dot, end = file.rpartition(".")
            if end not in ("py", "pyx") or not dot or stem.endswith("_test"):
                continue
            path = Path(folder, file)
            if path.stat().st_size <= FILE_LIMIT_BYTES:
                own = () if stem == "__init__" else (stem,)
                yield path, ".".join(part for part in (package, *inner, *own) if part)


def _arguments(text: str, start: int) -> tuple[str, int]:
    """A definition's arguments in parentheses, and where they end."""
    if text[start : start + 1] != "(":
        return "", start
    depth = 0
    for at in range(start, min(len(text), start + SIGNATURE_SPAN)):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
            if depth == 0:
                inside = re.sub(r"#[^\n]*", "", text[start + 1 : at])
                inside = re.sub(r"^(?:self|cls)\b\s*,?\s*", "", " ".join(inside.split()))
                return f"({_cut(inside, SIGNATURE_CHARACTERS)})", at + 1
    return "", start


def _doc_end(text: str, opening: re.Match[str]) -> int:
    end = text.find(opening[1], opening.end())
    return len(text) if end < 0 else end


def _summary(body: str) -> str:
    first = re.split(r"\n[ \t]*\n", body.strip(), maxsplit=1)[0]
    plain = _ROLE.sub(r"\1", first).replace("`", "").removesuffix("::")
    return _cut(" ".join(plain.split()), SUMMARY_CHARACTERS)


def _example(body: str, name: str) -> str:
    """The first line of the examples that calls it."""
    call = f"{name}("
    at = body.find(call)
    while at >= 0:
        start = body.rfind("\n", 0, at) + 1
        line = body[start:].partition("\n")[0].strip()
        if line.startswith(PROMPTS) and not (body[at - 1].isalnum() or body[at - 1] == "_"):
            return _cut(_COMMENT.sub("", line), EXAMPLE_CHARACTERS)
        at = body.find(call, at + 1)
    return ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _shown(entry: Entry, namespace: Mapping[str, Any]) -> str:
    name = entry.name if _is_global(entry, namespace) else f"{entry.module}.{entry.name}"
    lines = [f"{name}{entry.signature} [{entry.kind}]", entry.summary, entry.example]
    return "\n    ".join(line for line in lines if line)


def _is_global(entry: Entry, namespace: Mapping[str, Any]) -> bool:
    """Whether its name alone means it, rather than a namesake."""
    try:
        return bool(getattr(namespace.get(entry.name), "__module__", None) == entry.module)
    except Exception:  # noqa: BLE001 - of the user's objects anything may come
        return False
