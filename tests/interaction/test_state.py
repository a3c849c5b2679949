"""What the tools say of variables, checkpoints, repeated requests and sessions that sleep."""

from __future__ import annotations

import pytest
from mcp import Client
from tests.interaction.calling import call, run, run_on
from tests.interaction.reading import is_error, result_text, text_of

from sagebroker.broker import Broker

HOSTILE = "class Hostile:\n    def __repr__(self):\n        {body}\nhostile = Hostile()\nplain = 7"


async def test_variables_are_listed_with_type_size_and_value(client: Client) -> None:
    await run(client, "numbers = list(range(5))\ntext = 'hello'\n_hidden = 1\nf = lambda x: x")
    said = text_of(await call(client, "sage_variables", session="default"))
    assert "Session 'default' has 4 variables." in said
    assert "text: str" in said
    assert "'hello'" in said
    assert "numbers: list" in said
    assert "[0, 1, 2, 3, 4]" in said


async def test_listing_leaves_no_trace_in_history_outputs_and_results(client: Client) -> None:
    await run(client, "a = 5\na")
    await call(client, "sage_variables", session="default")
    assert result_text(await run(client, "(_, len(In), a)")) == "(5, 3, 5)"


@pytest.mark.parametrize(
    "body", ["raise ValueError('no')", "while True: pass", "import os; os._exit(1)"]
)
async def test_a_variable_that_does_not_let_itself_be_shown_harms_nothing(
    memory_client: Client, body: str
) -> None:
    await run(memory_client, HOSTILE.format(body=body))
    said = text_of(await call(memory_client, "sage_variables", session="default"))
    assert "hostile: Hostile" in said
    assert "does not let itself be shown" in said
    assert "plain: int" in said
    assert result_text(await run(memory_client, "plain")) == "7"


async def test_a_pattern_and_a_limit_choose_variables(memory_client: Client) -> None:
    await run(memory_client, "ab = 1\nac = 2\nb = 3")
    said = text_of(
        await call(memory_client, "sage_variables", session="default", pattern="a*", limit=1)
    )
    assert "has 2 variables like 'a*'; 1 are shown." in said
    assert "ab: int" in said
    assert "ac: int" not in said


async def test_while_a_cell_runs_variables_are_not_looked_at_and_that_is_said(
    memory_client: Client,
) -> None:
    await run_on(memory_client, "import time\ntime.sleep(60)")
    for tool in ("sage_variables", "sage_checkpoint"):
        refused = await call(memory_client, tool, session="default")
        assert is_error(refused)
        assert "Cell 1 runs in session 'default'" in text_of(refused)
        assert "sage_interrupt" in text_of(refused)
    await call(memory_client, "sage_interrupt", session="default")


async def test_a_labelled_state_can_be_gone_back_to(client: Client) -> None:
    await run(client, "a = 1")
    saved = text_of(await call(client, "sage_checkpoint", session="default", label="before"))
    assert "is saved as checkpoint" in saved
    assert "Everything is in it." in saved
    assert "(before): 1 variables after In[1]" in saved
    await run(client, "a = 2\nb = 3")
    restarted = text_of(await call(client, "sage_restart", session="default", restore="before"))
    assert "1 variables" in restarted
    assert result_text(await run(client, "(a, 'b' in globals())")) == "(1, False)"


async def test_what_cannot_be_saved_is_named_by_a_checkpoint(memory_client: Client) -> None:
    await run(memory_client, "gen = (i for i in range(3))\na = 1")
    said = text_of(await call(memory_client, "sage_checkpoint", session="default"))
    assert "gen (" in said


async def test_an_unknown_checkpoint_and_a_bad_label_are_refused(memory_client: Client) -> None:
    await run(memory_client, "a = 1")
    refused = await call(memory_client, "sage_restart", session="default", restore="none such")
    assert is_error(refused)
    assert "has no checkpoint none such" in text_of(refused)
    refused = await call(memory_client, "sage_checkpoint", session="default", label="no good/")
    assert is_error(refused)
    assert result_text(await run(memory_client, "a")) == "1"


async def test_a_repeated_request_runs_nothing_twice(client: Client) -> None:
    await run(client, "n = 0")
    first = await run(client, "n += 1\nn", request_id="r-1")
    again = await run(client, "n += 1\nn", request_id="r-1")
    assert result_text(first) == result_text(again) == "1"
    assert "was not run again" in text_of(again)
    other = await run(client, "n += 10", request_id="r-1")
    assert is_error(other)
    assert "has other code" in text_of(other)
    assert result_text(await run(client, "n")) == "1"


async def test_a_session_that_sleeps_is_listed_read_and_woken(
    broker: Broker, memory_client: Client
) -> None:
    await run(memory_client, "a = 41")
    await run(memory_client, "print('kept output')\na + 1")
    assert await broker.session("default").hibernate() == ""
    listed = text_of(await call(memory_client, "sage_sessions"))
    assert "default: asleep for" in listed
    read = await call(memory_client, "sage_wait", session="default", cell=2)
    assert result_text(read) == "42"
    output = text_of(await call(memory_client, "sage_output", session="default", cell=2))
    assert "kept output" in output
    # Reading has woken nothing.
    assert broker.sessions() == []
    woken = await run(memory_client, "a")
    assert result_text(woken) == "41"
    assert "was asleep and is awake again, with 1 variables" in text_of(woken)
    assert text_of(woken).startswith("[default #3 ok ")
    assert "asleep" not in text_of(await run(memory_client, "a"))


async def test_a_session_that_sleeps_can_be_closed(broker: Broker, memory_client: Client) -> None:
    await run(memory_client, "a = 1")
    await broker.session("default").hibernate()
    assert not is_error(await call(memory_client, "sage_close", session="default"))
    assert await broker.stored_sessions() == []
    assert is_error(await call(memory_client, "sage_wait", session="default", cell=1))


async def test_an_interrupt_of_a_session_that_is_not_open_here_says_so_and_wakes_nothing(
    broker: Broker, memory_client: Client
) -> None:
    await run(memory_client, "a = 1")
    await broker.session("default").hibernate()
    said = await call(memory_client, "sage_interrupt", session="default")
    assert not is_error(said)
    assert text_of(said) == "Session 'default' is not open here; sage_open opens it."
    assert broker.sessions() == []
    refused = await call(memory_client, "sage_interrupt", session="none-such")
    assert is_error(refused)
    assert "none-such" in text_of(refused)
