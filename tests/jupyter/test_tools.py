"""Jupyter's tools with a session as their kernel: none of them knows that it is one."""

from __future__ import annotations

import re

import pytest
from tests.jupyter import example
from tests.jupyter.conftest import Jupyter

RIGHT = [
    [],
    [
        {"output_type": "stream", "name": "stdout", "text": "n is 5\n"},
        {"output_type": "execute_result", "data": {"text/plain": "15"}, "metadata": {}},
    ],
    [
        {
            "output_type": "display_data",
            "data": {
                "text/markdown": "*done*",
                "text/plain": "<IPython.core.display.Markdown object>",
            },
            "metadata": {},
        }
    ],
]


async def check_sockets(jupyter: Jupyter, name: str) -> None:
    """Whoever comes next can connect."""
    folder = (
        jupyter.folder / "run" / f"{(await jupyter.link.connection(name))['session_id']}.jupyter"
    )
    assert [(folder / f"k-{number}").is_socket() for number in range(1, 6)] == [True] * 5


async def test_nbclient_runs_a_notebook(jupyter: Jupyter) -> None:
    path = jupyter.folder / "it.ipynb"
    example.write(path, "sagemath", wrong="99")
    await jupyter.run("jupyter", "execute", "--inplace", str(path))
    assert example.outputs_in(path) == RIGHT
    assert await jupyter.names() == []


async def test_papermill_runs_a_notebook_with_parameters(jupyter: Jupyter) -> None:
    path, done = jupyter.folder / "it.ipynb", jupyter.folder / "done.ipynb"
    example.write(path, "sagemath")
    await jupyter.run("papermill", str(path), str(done), "--language", "python", "-p", "n", "7")
    assert [output["text"] for output in example.outputs_in(done)[2][:1]] == ["n is 7\n"]
    assert await jupyter.names() == []


@pytest.mark.parametrize("wrong", ["", "16"])
async def test_nbval_compares_a_notebook(jupyter: Jupyter, wrong: str) -> None:
    path = jupyter.folder / "it.ipynb"
    example.write(path, "sagemath", wrong=wrong)
    command = ["pytest", "--nbval", str(path), "-p", "no:cacheprovider", "-c", "/dev/null"]
    said = await jupyter.run(*command, code=1 if wrong else 0)
    assert ("1 failed, 2 passed" if wrong else "3 passed") in said
    assert await jupyter.names() == []


async def test_nbmake_runs_a_notebook_in_a_session_that_stays(jupyter: Jupyter) -> None:
    path = jupyter.folder / "it.ipynb"
    example.write(path, jupyter.install("shared"))
    for _ in range(2):
        said = await jupyter.run(
            *("pytest", "--nbmake", str(path), "-p", "no:cacheprovider", "-c", "/dev/null")
        )
        assert "1 passed" in said
    assert await jupyter.names() == ["shared"]
    await check_sockets(jupyter, "shared")


async def test_jupyter_run_runs_a_file(jupyter: Jupyter) -> None:
    script = jupyter.folder / "it.py"
    script.write_text("n = 6\nprint('found', n * 7)\n", encoding="utf-8")
    said = await jupyter.run("jupyter_client.runapp", "--kernel", "sagemath", str(script))
    assert re.search(r"found\s+42", said)
    assert await jupyter.names() == []
