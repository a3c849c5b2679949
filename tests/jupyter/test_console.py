"""``sagebroker attach NAME --console`` as a person uses it: at a terminal, beside others."""

from __future__ import annotations

import pytest
from tests.jupyter.conftest import Jupyter
from tests.jupyter.pty_command import in_terminal

ATTACH = ("sagebroker", "attach", "shared", "--console")


@pytest.mark.parametrize("word", ["exit", "quit", "%exit", "quit()", "\x04"])
async def test_whoever_leaves_the_console_leaves_the_session_as_it_is(
    jupyter: Jupyter, word: str
) -> None:
    async with in_terminal(*ATTACH, env=jupyter.environment) as seen:
        await seen.show(r"In \[1\]: ")
        seen.type("n = 6 * 7\r")
        await seen.show(r"In \[2\]: ")
        seen.type(word if word == "\x04" else f"{word}\r")
        await seen.show("keeping kernel alive")
    async with in_terminal(*ATTACH, env=jupyter.environment) as seen:
        await seen.show(r"In \[\d+\]: ")
        seen.type("n\r")
        await seen.show(r"Out\[\d+\]: 42.*In \[\d+\]: ")
        seen.type("\x04")
    assert await jupyter.names() == ["shared"]


async def test_ctrl_c_stops_the_cell_and_keeps_its_variables(jupyter: Jupyter) -> None:
    async with in_terminal(*ATTACH, env=jupyter.environment) as seen:
        await seen.show(r"In \[1\]: ")
        seen.type("import time; kept = 'still here'; print('runs'); time.sleep(600)\r")
        await seen.show(r"\nruns")
        seen.type("\x03")
        await seen.show("KeyboardInterrupt")
        await seen.show(r"In \[\d+\]: ")
        seen.type("kept\r")
        await seen.show(r"Out\[\d+\]: 'still here'.*In \[\d+\]: ")
        seen.type("exit\r")
