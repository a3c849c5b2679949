"""What an agent is told of the people who use its session in Jupyter, and the reverse."""

from __future__ import annotations

import pytest
from mcp import Client
from tests.guests import file_of, guest, texts
from tests.guests import run as run_as_guest
from tests.interaction.calling import call, run
from tests.interaction.reading import result_text, text_of

from sagebroker.broker import Broker
from sagebroker.server.news import cells_text


async def test_the_next_answer_says_once_what_a_user_ran_and_which_variables_it_set(
    broker: Broker, memory_client: Client
) -> None:
    await run(memory_client, "x = 1")
    async with guest(file_of(broker, broker.session("default"))) as client:
        await run_as_guest(client, "x = x + 41")
        await run_as_guest(client, "print('a')")
        await run_as_guest(client, "other = [x]; other.append(2)")
        _, outputs = await run_as_guest(client, "x")
    assert texts(outputs) == "42"
    answer = await run(memory_client, "x")
    assert result_text(answer) == "42"
    assert (
        "Since your last call the user ran cells 2-5 in Jupyter (`x`, `other` changed); "
        "sage_output(session='default', cell=5) reads what came of it."
    ) in text_of(answer).replace('"', "'")
    assert "Since your last call" not in text_of(await run(memory_client, "x"))
    shown = text_of(await call(memory_client, "sage_output", session="default", cell=3))
    assert "a" in shown


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "cell 3"), ([3, 4], "cells 3-4"), ([1, 3, 4, 5, 9], "cells 1, 3-5, 9")],
)
def test_numbers_are_told_in_spans(numbers: list[int], text: str) -> None:
    assert cells_text(numbers) == text
