"""The manual made of sources, and which of its definitions words find."""

from __future__ import annotations

import json
import sys
import types
import zlib
from pathlib import Path

import pytest

from sagebroker.inside import manual
from sagebroker.inside.looking import ProblemError
from sagebroker.inside.manual import Entry, entries
from sagebroker.inside.ranking import query_stems, ranked

SOURCE = '''r"""
A module.

def prose(of, it):
"""

cdef class Curve(Base):
    """A curve in the plane."""

    cpdef int rank(self, bint proof=True, options=(1, 2)) except -1:  # of a group
        r"""
        Return the :meth:`rank <x>` of this
        ``curve``.

        class of (curves): this is prose.

        EXAMPLES::

            sage: C = Curve(); set_rank(C)
            sage: C.rank()                  # long time
            1
        """
        def helper(a):
            """An inner function."""

    def _private(self):
        """Is not told."""

    def silent(self):
        return 1

class _Hidden:
    """Neither is this."""
    def shown(self):
        """Nor this."""

def after(
    a,  # a comment, with (one parenthesis
    b=")",
) -> dict[str, int]:
    # A comment.
    """
    Return both.
    """
'''


def row(
    module: str, name: str, summary: str, kind: str = "function"
) -> tuple[str, str, str, str, str, str]:
    return module, name, kind, "()", summary, ""


def best(words: str, *rows: tuple[str, ...], names: tuple[str, ...] = ()) -> list[str]:
    return [one[1] for one in ranked(query_stems(words), rows, dict.fromkeys(names))]


def test_definitions_with_a_docstring_are_read_and_prose_is_not() -> None:
    found = list(entries(SOURCE, "a.b"))
    assert [(entry.name, entry.kind) for entry in found] == [
        ("Curve", "class"),
        ("Curve.rank", "method"),
        ("after", "function"),
    ]
    assert found[0].summary == "A curve in the plane."
    assert found[1] == Entry(
        module="a.b",
        name="Curve.rank",
        kind="method",
        signature="(bint proof=True, options=(1, 2))",
        summary="Return the x of this curve.",
        example="sage: C.rank()",
    )


@pytest.mark.parametrize(
    "text", ["", '"""', "def f(", "def f(a:\n", 'def f():\n    """', "class A"]
)
def test_a_broken_source_is_no_trouble(text: str) -> None:
    assert len(list(entries(text, "m"))) <= 1


def test_long_texts_are_cut() -> None:
    arguments, prose = "a, " * 200, "long " * 200
    text = f'def f({arguments}):\n    """{prose}\n\n    >>> f({arguments})\n    """\n'
    [entry] = entries(text, "m")
    assert len(entry.signature) <= manual.SIGNATURE_CHARACTERS + 2
    assert len(entry.summary) == manual.SUMMARY_CHARACTERS
    assert len(entry.example) == manual.EXAMPLE_CHARACTERS


def test_a_manual_is_built_of_the_package_named_sage_and_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "curves").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "curves" / "plane.pyx").write_text(SOURCE)
    (tmp_path / "tests" / "more.py").write_text('def tested():\n    """Test a curve."""\n')
    (tmp_path / "data.txt").write_text(SOURCE)
    sage = types.ModuleType("sage")
    sage.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "sage", sage)
    index = manual.build()
    assert zlib.decompress(index).count(b"\n") == 2
    title, text = manual.search("ranks of curves", index, {})
    assert title == "1 of 1 definitions that fit 'ranks of curves'"
    assert text.startswith(
        "sage.curves.plane.Curve.rank(bint proof=True, options=(1, 2)) [method]\n"
        "    Return the x of this curve.\n"
        "    sage: C.rank()"
    )
    for words in ("unheard", "", "???"):
        with pytest.raises(ProblemError):
            manual.search(words, index, {})


def test_a_bare_name_is_told_only_where_it_means_the_definition() -> None:
    index = zlib.compress("\t".join(row("json", "dumps", "Write an object.")).encode())
    assert manual.search("dumps", index, {"dumps": json.dumps})[1].startswith("dumps()")
    assert manual.search("dumps", index, {"dumps": 5})[1].startswith("json.dumps()")


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("integrate numerically", "numerical integration"),
        ("elliptic curves", "an elliptic curve"),
        ("Gröbner bases", "groebner base"),
        ("chromaticNumber", "chromatic_number"),
    ],
)
def test_inflections_of_a_word_are_one_word(words: str, others: str) -> None:
    assert set(query_stems(words)) == set(query_stems(others))


def test_words_that_say_nothing_count_only_where_there_are_no_others() -> None:
    assert query_stems("how to compute the rank of a curve") == query_stems("rank curve")
    assert query_stems("the") == ["the"]


def test_names_count_more_than_summaries_and_all_words_more_than_one() -> None:
    assert best(
        "chromatic number",
        row("m", "number", "Return a number."),
        row("m", "colour", "Return the chromatic number."),
        row("m", "chromatic_number", "Return it."),
        row("m", "unrelated", "Return it."),
    ) == ["chromatic_number", "colour"]


def test_what_can_be_called_at_once_comes_first_and_wrappers_come_last() -> None:
    rows = [
        row("sage.libs.x", "factor", "Factor."),
        row("sage.arith", "factor_it", "Factor."),
        row("sage.rings", "factor_it", "Factor."),
    ]
    found = ranked(query_stems("factor"), rows, {})
    assert [one[0] for one in found] == ["sage.arith", "sage.rings", "sage.libs.x"]
    assert best(
        "list", row("m", "Ring.lists", "s", "method"), row("m", "lists", "s"), names=("lists",)
    ) == [
        "lists",
        "Ring.lists",
    ]


def test_abbreviations_are_found_by_their_long_names() -> None:
    assert best("differential equation", row("m", "desolve", "Solve an ODE.")) == ["desolve"]
