"""Which of a manual's definitions some words are about: no file, no object, no clock."""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MIN_STEM = 4
"""Fewest characters that a stem is cut down to."""

NAME_WEIGHT, CLASS_WEIGHT, SUMMARY_WEIGHT, MODULE_WEIGHT = 5.0, 3.0, 2.0, 1.0
"""What a word counts where it is found: most in the name itself."""

GLOBAL_FACTOR = 1.5
"""For what can be called without an import."""
REMOTE_FACTOR = 0.6
"""For what wraps other programs, whose use Sage's own objects hide."""

_ENDINGS = (
    "ations", "ation", "ators", "ator", "ating", "ates", "ate", "ings", "ing", "ally", "als",
    "al", "ies", "ied", "ics", "ic", "ed", "es", "s", "ly", "y", "e",
)  # fmt: skip
_STOP = re.compile(
    "an?|and|are|as|at|be|by|can|comput(?:e|ing)|do|find|for|from|get|given|how|i|in|is|its?|make|my"
    "|of|on|or|over|return|that|the|this|to|use|with"
)
_SAME = {"grobner": "groebner", "gröbner": "groebner", "numeric": "numerical", "colour": "color"}
_MEANS = {
    "crt": "chinese remainder theorem",
    "gcd": "greatest common divisor",
    "lcm": "least common multiple",
    "lp": "linear program",
    "milp": "mixed integer linear program",
    "ode": "ordinary differential equation",
    "ivp": "initial value problem",
    "svd": "singular value decomposition",
    "tsp": "traveling salesman problem",
}
"""What is more often looked for by its long name than written by it."""
_REMOTE = ("sage.libs.", "sage.interfaces.", "sage.rings.polynomial.pbori.")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|[0-9]+")


def query_stems(words: str) -> list[str]:
    """The stems of the words that say something, each once."""
    found = [stem for word in _WORD.findall(words) if (stem := _stem(word.lower()))]
    telling = [
        stem
        for word, stem in zip(_WORD.findall(words), found, strict=True)
        if not _STOP.fullmatch(word.lower())
    ]
    return list(dict.fromkeys(telling or found))


def ranked(
    stems: Sequence[str], rows: Iterable[Sequence[str]], namespace: Mapping[str, Any]
) -> list[Sequence[str]]:
    """The rows that the words are about, the best first.

    Args:
        stems: Of `query_stems`.
        rows: Module, name, kind, signature, summary and example of each definition.
        namespace: The names that can be called without an import.
    """
    places = []
    counts = dict.fromkeys(stems, 0)
    total = 1
    others = [
        short for short, long in {**_SAME, **_MEANS}.items() if _stems(long).intersection(stems)
    ]
    for row in rows:
        if len(row) != 6:
            continue
        total += 1
        text = f"{row[0]} {row[1]} {row[4]}".lower()
        # Cheap, and never wrong: a stem is the beginning of its words, or there is another word for it.
        if not any(part in text for part in (*stems, *others)):
            continue
        hits = _hits(stems, row)
        if any(hits):
            places.append((hits, row))
            for stem, hit in zip(stems, hits, strict=True):
                counts[stem] += hit > 0
    rarity = {stem: math.log(total / (1 + counts[stem])) + 1.0 for stem in stems}
    most = sum(rarity.values())
    scored = []
    for hits, row in places:
        covered = sum(rarity[s] for s, hit in zip(stems, hits, strict=True) if hit) / most
        weight = sum(rarity[s] * hit for s, hit in zip(stems, hits, strict=True))
        scored.append((weight * covered**3 * _fit(stems, row, namespace), row))
    best = max((score for score, _ in scored), default=0.0)
    kept = [(score, row) for score, row in scored if score > best / 10]
    return [row for _, row in sorted(kept, key=lambda one: (-one[0], len(one[1][1]), one[1]))]


def _hits(stems: Sequence[str], row: Sequence[str]) -> list[float]:
    """How much each word counts in a row: the best of the places it is in."""
    module, name, _, _, summary, _ = row
    *classes, last = name.split(".")
    places = (
        (NAME_WEIGHT, _stems(last)),
        (CLASS_WEIGHT, _stems(" ".join(classes))),
        (SUMMARY_WEIGHT, _stems(summary)),
        (MODULE_WEIGHT, _stems(module)),
    )
    return [max((weight for weight, found in places if s in found), default=0.0) for s in stems]


def _fit(stems: Sequence[str], row: Sequence[str], namespace: Mapping[str, Any]) -> float:
    """Prefers names that say nothing else, and what can be called at once."""
    last = row[1].rpartition(".")[2]
    own = _stems(last)
    precise = 0.5 + len(own.intersection(stems)) / (len(own) or 1)
    if row[0].startswith(_REMOTE):
        return precise * REMOTE_FACTOR
    is_global = row[2] != "method" and last in namespace
    return precise * (GLOBAL_FACTOR if is_global else 1.0)


@functools.lru_cache(maxsize=100_000)
def _stems(text: str) -> frozenset[str]:
    words = [word.lower() for word in _WORD.findall(text)]
    words += [long for word in words for long in _MEANS.get(word, "").split()]
    return frozenset(_stem(word) for word in words)


@functools.lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    word = _SAME.get(word, word)
    while True:
        for ending in _ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= MIN_STEM:
                word = word[: -len(ending)]
                break
        else:
            return word
