"""What an agent can do with the text of an answer alone: find the action that it names, and do it.

Nothing here knows of any error in particular. An answer helps if it names a call, or says what an argument
must be, which names there are, what to run first, or when to come again.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

Arguments = dict[str, Any]

_CALL = re.compile(r"\b(sage_\w+)\(((?:[^()]|\([^()]*\))*)\)")
_RANGE = re.compile(
    r"(\w+) must (?:be|have) (?:between |above )?([\d.]+)(?: s)? (?:and|to|s and at most) (?:at most )?([\d.]+)"
)
_MEANT = re.compile(r"Did you mean '(\w+)'(?: for '(\w+)')?")
_INSTEAD = re.compile(
    r"(\w+) must be [^;]*?(?:one of|for instance) (\"[^\"]*\"|\d+(?:\.\d+)?|true|false)"
)
_KIND = re.compile(
    r"(\w+) (?:is missing; it )?must be (text|a number|a whole number|true or false)"
)
_RUN_FIRST = re.compile(r"run (var\('\w+'\)) first")
_LATER = re.compile(r"retry_after: (\d+) s")
_EXAMPLE = re.compile(r"(?:for instance|with|end: .*|\.) (\w+)=(\"[^\"]*\"|\d+)")
_NEAR = re.compile(r"Close matches: (\w+)")
_LISTED = re.compile(r"(?:open sessions|There are|cells|known): ?(?:'([\w.-]+)'|(\d+))")
_CELLS = re.compile(r"cells (\d+) to (\d+) are known")
_OTHER = re.compile(r"use another (\w+)")
_BASIC: Arguments = {"text": "1 + 1", "a number": 5, "a whole number": 1, "true or false": True}


@dataclass
class Step:
    """What to do next: wait, then a call."""

    tool: str
    arguments: Arguments
    wait_s: float = 0.0
    then_again: bool = False
    """The first call is to be made once more afterwards."""


def next_step(text: str, tool: str, arguments: Arguments) -> Step | None:
    """The action that an answer to ``tool(arguments)`` names; None where it names none."""
    for find in (_later, _renamed, _ran_first, _corrected, _called, _chosen):
        step = find(text, tool, arguments)
        if step is not None:
            return step
    return None


def _later(text: str, tool: str, arguments: Arguments) -> Step | None:
    found = _LATER.search(text)
    if found is None:
        return None
    return Step(tool, arguments, wait_s=float(found[1]))


def _renamed(text: str, tool: str, arguments: Arguments) -> Step | None:
    changed, renamed = dict(arguments), False
    for meant, given in _MEANT.findall(text):
        if not given:
            return Step(meant, arguments)
        changed[meant] = changed.pop(given)
        renamed = True
    if "has no argument" in text:
        known = re.search(r"It has: ([\w, ]+)\.", text)
        assert known is not None
        changed = {k: v for k, v in changed.items() if k in known[1].split(", ")}
        renamed = True
    return Step(tool, changed) if renamed else None


def _corrected(text: str, tool: str, arguments: Arguments) -> Step | None:
    changed = dict(arguments)
    for name, low, high in _RANGE.findall(text):
        middle = (float(low) + float(high.rstrip("."))) / 2
        changed[name] = min(int(middle) or 1, 1000)
    for name, value in _INSTEAD.findall(text):
        changed[name] = json.loads(value)
    for name, kind in _KIND.findall(text):
        if changed.get(name) == arguments.get(name):
            # Of any text that fits the one that fits most: it is code, and an agent knows its session.
            changed[name] = "default" if name == "session" else _BASIC[kind]
    for name, value in _EXAMPLE.findall(text):
        changed[name] = json.loads(value)
    if found := _NEAR.search(text):
        return Step(tool, {**changed, "name": found[1]})
    for name in _OTHER.findall(text):
        changed[name] = f"{arguments[name]}-2"
    return Step(tool, changed) if changed != arguments else None


def _ran_first(text: str, tool: str, arguments: Arguments) -> Step | None:
    found = _RUN_FIRST.search(text)
    if found is None:
        return None
    session = arguments.get("session", "default")
    return Step("sage_run", {"code": found[1], "session": session}, then_again=True)


def _called(text: str, tool: str, arguments: Arguments) -> Step | None:
    for name, inner in _CALL.findall(text):
        try:
            call = ast.parse(f"f({inner})", mode="eval").body
        except SyntaxError:
            continue
        assert isinstance(call, ast.Call)
        given = {}
        for keyword in call.keywords:
            if isinstance(keyword.value, ast.Constant):
                given[str(keyword.arg)] = _filled(str(keyword.arg), keyword.value.value, arguments)
            elif isinstance(keyword.value, ast.Name):
                given[str(keyword.arg)] = keyword.value.id == "true"
        opens = name == "sage_open"
        return Step(name, given, then_again=opens)
    return None


def _chosen(text: str, tool: str, arguments: Arguments) -> Step | None:
    """One of the alternatives that are listed; not for what cannot be taken back."""
    if tool == "sage_close" or (tool == "sage_restart" and "restore" not in arguments):
        return None
    if found := _CELLS.search(text):
        return Step(tool, {**arguments, "cell": int(found[2])})
    if found := _LISTED.search(text):
        key = "restore" if tool == "sage_restart" else "session"
        value: Any = found[1] if found[1] else int(found[2])
        return Step(tool, {**arguments, key: value})
    return None


def _filled(name: str, value: Any, arguments: Arguments) -> Any:
    """A placeholder's value."""
    if name == "answer":
        return "7"
    return arguments.get(name, "1 + 1") if value in ("…", Ellipsis) else value
