"""``sage_inspect`` on real Sage: documentation, source, completions and what words find."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from mcp import Client
from tests.interaction.calling import call, run
from tests.interaction.conftest import open_in_memory
from tests.interaction.reading import is_error, parts, result_text, text_of

from sagebroker.broker import Broker

pytestmark = [pytest.mark.sage, pytest.mark.docker]

SETUP = """
E = EllipticCurve("37a")
R.<x,y> = QQ[]
I = R.ideal(x^2 - y, x*y - 1)
G = graphs.PetersenGraph()
set_random_seed(3)
5
"""


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[Client]:
    async with open_in_memory(broker, "auto") as opened:
        await run(opened, SETUP)
        yield opened


async def said(client: Client, name: str, detail: str = "doc") -> str:
    found = await call(client, "sage_inspect", name=name, detail=detail, max_chars=20_000)
    assert not is_error(found), text_of(found)
    return text_of(found)


async def test_documentation_is_plain_and_has_signature_and_examples(client: Client) -> None:
    factor = await said(client, "factor")
    assert factor.startswith("factor: function of sage.arith.misc")
    assert "factor(n, proof=None, int_=False, algorithm=None, verbose=0, **kwds)" in factor
    assert "EXAMPLES:" in factor
    assert "sage: factor(500)" in factor
    assert ":class:" not in factor
    # Arguments that are given by name only have their own defaults.
    assert "chromatic_number(algorithm='DLX'" in await said(client, "G.chromatic_number")
    # A lazy import, a factory, a parent, an element, a cached method, a function in Cython.
    assert "Petersen Graph" in await said(client, "graphs.PetersenGraph")
    assert "Construct an elliptic curve." in await said(client, "EllipticCurve")
    assert "class IntegerRing_class of sage.rings.integer_ring" in await said(client, "ZZ")
    assert "class Expression of sage.symbolic.expression" in await said(client, "pi")
    assert "reduced Groebner basis" in await said(client, "I.groebner_basis")
    assert "doctests may not pass" not in await said(client, "numerical_integral")


@pytest.mark.parametrize(
    ("name", "file", "code"),
    [
        (
            "EllipticCurve",
            "sage/schemes/elliptic_curves/constructor.py:",
            "class EllipticCurveFactory(UniqueFactory):",
        ),
        ("E.rank", "sage/schemes/elliptic_curves/ell_rational_field.py:", "def rank(self"),
        ("E", "sage/schemes/elliptic_curves/ell_rational_field.py:", "class EllipticCurve_"),
        ("prime_range", "sage/rings/fast_arith.pyx:", "cpdef prime_range(start"),
        (
            "I.groebner_basis",
            "sage/rings/polynomial/multi_polynomial_ideal.py:",
            "def groebner_basis(self",
        ),
    ],
)
async def test_source_comes_with_its_file_also_of_compiled_code(
    client: Client, name: str, file: str, code: str
) -> None:
    source = await said(client, name, "source")
    assert file in source.split("\n", 1)[0]
    assert code in source


async def test_completions_know_dynamic_classes_and_lazy_imports(client: Client) -> None:
    assert {"E.rank", "E.rational_points"} <= set((await said(client, "E.ra", "complete")).split())
    assert "graphs.PetersenGraph" in await said(client, "graphs.Pet", "complete")
    assert "SymmetricGroup" in await said(client, "Sym", "complete")


@pytest.mark.parametrize(
    ("words", "name", "line"),
    [
        (
            "elliptic curve rank",
            "sage.schemes.elliptic_curves.ell_rational_field.EllipticCurve_rational_field.rank",
            "sage: EllipticCurve('11a').rank()",
        ),
        (
            "groebner basis",
            "sage.rings.polynomial.multi_polynomial_ideal.MPolynomialIdeal.groebner_basis",
            "sage: I.groebner_basis()",
        ),
        (
            "chromatic number",
            "sage.graphs.graph.Graph.chromatic_number",
            "sage: G.chromatic_number(",
        ),
        (
            "integrate numerically",
            "numerical_integral",
            "sage: numerical_integral(x^2, 0, 1, max_points=100)",
        ),
    ],
)
async def test_words_find_the_function_and_how_it_is_called(
    client: Client, words: str, name: str, line: str
) -> None:
    found = await call(client, "sage_inspect", name=words, detail="search")
    [results] = parts(found, "page")
    first = results.split("\n\n")[:5]
    assert any(one.startswith(f"{name}(") for one in first)
    assert any(line in one for one in first)
    # The name that was told leads to the documentation.
    assert "EXAMPLES:" in await said(client, name)


async def test_an_unknown_name_is_told_with_close_ones(client: Client) -> None:
    refused = await call(client, "sage_inspect", name="factr")
    assert is_error(refused)
    assert "Close matches: factor, factorial." in text_of(refused)


async def test_looking_changes_nothing(client: Client) -> None:
    draw = "[ZZ.random_element(10^9) for _ in range(3)]"
    await run(client, f"set_random_seed(7)\nexpected = {draw}\nset_random_seed(7)\n5")
    for name, detail in (
        ("E.rank", "doc"),
        ("graphs", "source"),
        ("maxima.", "complete"),
        ("groebner basis", "search"),
    ):
        await call(client, "sage_inspect", name=name, detail=detail)
    told = await run(client, f"(_, len(In), expected == {draw}, maxima('1+1'))")
    assert result_text(told) == "(5, 4, True, 2)"
