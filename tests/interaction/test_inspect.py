"""What ``sage_inspect`` says of names, and that asking changes nothing."""

from __future__ import annotations

import json
import re

import pytest
from mcp import Client
from mcp_types import CallToolResult
from tests.interaction.calling import call, run, run_on
from tests.interaction.reading import is_error, parts, result_text, text_of

from sagebroker.broker import Broker

MEASURE = '''
import json, math, random
class Shape:
    """A shape."""
    def area(self, scale=1):
        """Return the area, scaled.

        EXAMPLES::

            sage: Shape().area(2)
        """
        return 7 * scale
    @property
    def loaded(self):
        """Whether it is loaded."""
        globals()["was_loaded"] = True
    _hidden = arena = areal = 1
shape = Shape()
'''

HOSTILE = """
class Hostile:
    def __getattr__(self, name):
        {body}
hostile = Hostile()
plain = 7
"""


async def inspect(client: Client, name: str, detail: str = "doc", **more: object) -> CallToolResult:
    return await call(client, "sage_inspect", name=name, detail=detail, **more)


async def test_documentation_has_kind_signature_docstring_and_examples(client: Client) -> None:
    await run(client, MEASURE)
    said = text_of(await inspect(client, "shape.area"))
    assert said.startswith("shape.area: method of __main__:\narea(scale=1)\n")
    assert "Return the area, scaled." in said
    assert "sage: Shape().area(2)" in said
    assert "json.dumps: function of json" in text_of(await inspect(client, "json.dumps?"))
    assert "shape: object of the class Shape of __main__" in text_of(await inspect(client, "shape"))


async def test_source_has_file_and_line_also_of_what_a_cell_defined(memory_client: Client) -> None:
    await run(memory_client, MEASURE)
    said = text_of(await inspect(memory_client, "json.dumps", "source"))
    assert re.match(r"json\.dumps: function of json; /\S+/json/__init__\.py:\d+:?", said)
    assert "def dumps(obj, *" in said
    assert "return 7 * scale" in text_of(await inspect(memory_client, "Shape.area", "source"))
    assert "class Shape:" in text_of(await inspect(memory_client, "shape", "source"))
    assert 'globals()["was_loaded"]' in text_of(
        await inspect(memory_client, "shape.loaded", "source")
    )


async def test_objects_are_called_and_documented_as_their_class_is(memory_client: Client) -> None:
    await run(
        memory_client,
        "class Ring:\n    'A ring.'\n    def __init__(self, made): pass\n"
        "    def __call__(self, element): pass\nR = Ring(1)",
    )
    said = text_of(await inspect(memory_client, "R"))
    assert "R: object of the class Ring of __main__:\nR(element)\n\nA ring." in said
    assert "Ring(made)" in text_of(await inspect(memory_client, "Ring"))
    said = text_of(await inspect(memory_client, "Ring.__init__"))
    assert "__init__(self, made)" in said


async def test_what_is_compiled_has_no_source_and_that_is_said(memory_client: Client) -> None:
    await run(memory_client, MEASURE)
    refused = await inspect(memory_client, "math.sin", "source")
    assert is_error(refused)
    assert "There is no source of 'math.sin'" in text_of(refused)
    assert 'detail="doc"' in text_of(refused)


async def test_names_are_completed(memory_client: Client) -> None:
    await run(memory_client, MEASURE)
    completed = await inspect(memory_client, "shape.are", "complete")
    assert parts(completed, "page") == ["shape.area\nshape.areal\nshape.arena"]
    assert "3 names begin with 'shape.are'" in text_of(completed)
    assert parts(await inspect(memory_client, "Shap", "complete"), "page") == ["Shape"]
    assert "shape._hidden" not in text_of(await inspect(memory_client, "shape.", "complete"))
    assert "shape._hidden" in text_of(await inspect(memory_client, "shape._h", "complete"))
    assert is_error(await inspect(memory_client, "shape.zzz", "complete"))


async def test_words_find_functions_with_the_line_that_calls_them(memory_client: Client) -> None:
    await run(memory_client, "1")
    for _ in range(2):  # the second time in the index that was kept
        said = text_of(await inspect(memory_client, "sorting a list stably? bisection", "search"))
        assert "bisect.bisect" in said
    said = text_of(await inspect(memory_client, "greatest common denominators", "search"))
    assert "definitions that fit" in said
    said = text_of(await inspect(memory_client, "arithmetic mean", "search"))
    assert "statistics.mean(data) [function]\n" in said
    assert "Return the sample arithmetic mean of data." in said
    assert ">>> mean([1, 2, 3, 4, 4])" in said
    refused = await inspect(memory_client, "qqqzzzxxx", "search")
    assert is_error(refused)
    assert "Nothing fits 'qqqzzzxxx'" in text_of(refused)
    # What was found can be asked for by the name that was told.
    said = text_of(await inspect(memory_client, "statistics.mean"))
    assert said.startswith("statistics.mean: function of statistics")


async def test_an_unknown_name_is_told_with_close_ones_and_the_search(
    memory_client: Client,
) -> None:
    await run(memory_client, MEASURE)
    for name, close in (("shap", "shape"), ("shape.aera", "shape.area"), ("sorte", "sorted")):
        refused = await inspect(memory_client, name)
        assert is_error(refused)
        assert f"There is no {name!r} here." in text_of(refused)
        assert re.search(rf"Close matches: .*\b{close}\b", text_of(refused))
        assert 'detail="search"' in text_of(refused)


@pytest.mark.parametrize("name", ["shape.area(2)", "f(x).g", "a[0]", "2+2", "__import__('os')", ""])
async def test_nothing_but_names_is_looked_at(memory_client: Client, name: str) -> None:
    await run(memory_client, MEASURE)
    refused = await inspect(memory_client, name)
    assert is_error(refused)
    assert "variable with sage_run" in text_of(refused) or not name


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("while True: pass", "took too long"),
        (
            "import time\n        while True:\n            try: time.sleep(99)\n"
            "            except BaseException: pass",
            "took too long",
        ),
        ("raise ValueError('not today')", "failed: ValueError: not today"),
        ("import os; os._exit(1)", "failed: it ended the process"),
    ],
)
async def test_an_object_that_does_not_let_itself_be_looked_at_harms_nothing(
    memory_client: Client, body: str, why: str
) -> None:
    await run(memory_client, HOSTILE.format(body=body))
    refused = await inspect(memory_client, "hostile.anything")
    assert is_error(refused)
    assert why in text_of(refused)
    assert result_text(await run(memory_client, "plain")) == "7"


async def test_looking_leaves_no_trace(client: Client) -> None:
    await run(client, MEASURE)
    await run(client, "random.seed(5); before = random.getstate(); names = set(globals())\n5")
    for name, detail in (
        ("shape.loaded", "doc"),
        ("shape.area", "source"),
        ("shape.", "complete"),
        ("xml.dom.minidom", "doc"),
        ("arithmetic mean", "search"),
        ("no_such_name", "doc"),
    ):
        await inspect(client, name, detail)
    told = await run(
        client,
        "import sys\n(_, len(In), random.getstate() == before, 'was_loaded' in globals(),"
        " 'xml.dom.minidom' in sys.modules, {n for n in globals() if n[0] != '_'} - names)",
    )
    assert result_text(told) == "(5, 4, True, False, False, {'names', 'sys'})"
    assert text_of(told).startswith("[default #3 ok ")


async def test_while_a_cell_runs_names_are_not_looked_up_and_that_is_said(
    memory_client: Client,
) -> None:
    await run_on(memory_client, "import time\ntime.sleep(60)")
    refused = await inspect(memory_client, "sorted")
    assert is_error(refused)
    assert "Cell 1 runs in session 'default'; names can be looked up when it has ended." in text_of(
        refused
    )
    for way in ("sage_wait", "sage_interrupt", "sage_open"):
        assert way in text_of(refused)
    await call(memory_client, "sage_interrupt", session="default")


async def test_pages_name_the_next_call_and_join_to_the_whole(memory_client: Client) -> None:
    await run(memory_client, "import json")
    whole = parts(await inspect(memory_client, "json", max_chars=100_000), "page")[0]
    arguments: dict[str, object] = {"name": "json", "max_chars": 900}
    read = ""
    while arguments:
        found = await call(memory_client, "sage_inspect", **arguments)
        read += parts(found, "page")[0]
        following = parts(found, "next")
        arguments = _arguments(following[0]) if following else {}
    assert read == whole
    assert len(whole) > 1800
    behind = await inspect(memory_client, "json", offset=len(whole))
    assert is_error(behind)
    assert "behind the end" in text_of(behind)


async def test_an_answer_as_large_as_can_be_comes_whole(memory_client: Client) -> None:
    await run(memory_client, "def f(): pass\nf.__doc__ = '\\U0001f600\\'\\\\' * 100_000")
    said = await inspect(memory_client, "f", max_chars=100_000)
    assert "\U0001f600'\\" * 33_000 in parts(said, "page")[0]
    assert "characters 0 to 100000 of 300005" in text_of(said)


def _arguments(following: str) -> dict[str, object]:
    assert following.startswith("Next: sage_inspect(")
    inner = following.removeprefix("Next: sage_inspect(").removesuffix(")")
    return {name: json.loads(value) for name, value in re.findall(r'(\w+)=("[^"]*"|\d+)', inner)}


async def test_a_session_that_sleeps_is_woken(broker: Broker, memory_client: Client) -> None:
    await run(memory_client, "def f(n):\n    'Return n.'\n    return n")
    await broker.session("default").hibernate()
    said = text_of(await inspect(memory_client, "f"))
    assert "was asleep and is awake again" in said
    assert "Return n." in said


async def test_text_that_no_encoder_takes_is_made_harmless(memory_client: Client) -> None:
    await run(memory_client, "def f(): pass\nf.__doc__ = 'odd \\udc80 text'")
    await run(memory_client, "f.__doc__ += ' \\x1b[31mred\\x1b[0m'")
    assert "odd \\udc80 text red" in text_of(await inspect(memory_client, "f"))
    assert is_error(await inspect(memory_client, "f\ud800g"))


async def test_a_kernel_that_answers_nonsense_is_told(memory_client: Client) -> None:
    await run(
        memory_client,
        "import sagebroker_inside.inspecting as i\ni.look = lambda *a: 'nonsense'",
    )
    refused = await inspect(memory_client, "sorted")
    assert is_error(refused)
    assert "could not do this (kernel)" in text_of(refused)
