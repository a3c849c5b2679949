"""Cells that ask something: by a form where the client can show one, else by ``sage_wait``."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from mcp import Client
from mcp.client.context import ClientRequestContext
from mcp_types import ElicitRequestParams, ElicitResult
from tests.interaction.calling import call, run
from tests.interaction.conftest import local_server, open_broker, open_in_memory
from tests.interaction.reading import is_error, parts, result_text, status, text_of

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig

GUARD_S = 60.0
ASKS_TWICE = "a = input('First? '); b = input('Second? '); (a, b)"


async def test_a_cell_that_asks_is_answered_by_sage_wait(client: Client) -> None:
    asked = await run(client, ASKS_TWICE, wait_s=60)
    assert status(asked) == "awaiting_input"
    assert not is_error(asked)
    assert 'It asks: "First? "' in text_of(asked)
    assert 'sage_wait(session="default", cell=1, answer="…")' in text_of(asked)
    second = await call(client, "sage_wait", session="default", cell=1, answer="one")
    assert status(second) == "awaiting_input"
    assert 'It asks: "Second? "' in text_of(second)
    ended = await call(client, "sage_wait", session="default", cell=1, answer="\n")
    assert result_text(ended) == "('one', '')"
    again = await call(client, "sage_wait", session="default", cell=1, answer="three")
    assert is_error(again)
    assert "does not wait for input: it is ok" in text_of(again)


async def test_looking_at_a_cell_that_asks_answers_nothing(client: Client) -> None:
    await run(client, "input('?')")
    assert status(await call(client, "sage_wait", session="default", cell=1)) == "awaiting_input"
    sessions = await call(client, "sage_sessions")
    assert "cell 1 awaiting_input" in text_of(sessions)
    ended = await call(client, "sage_wait", session="default", cell=1, answer="x\n\n")
    assert result_text(ended) == r"'x\n'"


async def test_a_question_does_not_outlive_an_interrupt_nor_its_time(client: Client) -> None:
    await run(client, "x = 5; input('?')")
    stopped = await call(client, "sage_interrupt")
    assert "All variables are kept" in text_of(stopped)
    late = await run(client, "input('?')", time_limit_s=0.5)
    assert status(late) == "awaiting_input"
    with anyio.fail_after(GUARD_S):
        # Between its question and its end it runs, for a moment.
        while status(late) in ("awaiting_input", "running"):
            late = await call(client, "sage_wait", session="default", cell=2)
    assert status(late) == "interrupted"
    assert result_text(await run(client, "x")) == "5"


async def test_an_answer_to_a_cell_that_has_ended_wakes_nobody(
    memory_client: Client, broker: Broker
) -> None:
    await run(memory_client, "input('?')")
    await call(memory_client, "sage_wait", session="default", cell=1, answer="x")
    assert await broker.session("default").hibernate() == ""
    late = await call(memory_client, "sage_wait", session="default", cell=1, answer="y")
    assert is_error(late)
    assert "does not wait for input: it is ok" in text_of(late)
    assert broker.sessions() == []


async def test_an_answer_that_another_process_would_have_to_give_is_refused(
    memory_client: Client, config: BrokerConfig, era: str
) -> None:
    await run(memory_client, "input('?')")
    async with open_broker(config) as other, open_in_memory(other, era) as elsewhere:
        refused = await call(elsewhere, "sage_wait", session="default", cell=1, answer="x")
        assert is_error(refused)
        assert "pid" in text_of(refused)
    ended = await call(memory_client, "sage_wait", session="default", cell=1, answer="y")
    assert result_text(ended) == "'y'"


async def test_a_cell_behind_one_that_asks_waits_and_runs(client: Client) -> None:
    await run(client, "y = input('?')")
    behind = await run(client, "y * 2", wait_s=0)
    assert status(behind) == "queued"
    await call(client, "sage_wait", session="default", cell=1, answer="ab")
    assert result_text(await call(client, "sage_wait", session="default", cell=2)) == "'abab'"


class Person:
    """Answers forms as told; counts them."""

    def __init__(self, *answers: str | None) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)

    async def __call__(
        self, context: ClientRequestContext, params: ElicitRequestParams
    ) -> ElicitResult:
        del context
        self.asked.append(params.message)
        answer = self._answers.pop(0)
        if answer is None:
            return ElicitResult(action="decline")
        return ElicitResult(action="accept", content={"text": answer})


@pytest.mark.parametrize("words", [("one", "two"), ("", "ü\n")])
async def test_a_person_behind_the_client_is_asked_by_a_form(
    short_dir: Path, era: str, words: tuple[str, str]
) -> None:
    person = Person(*words)
    server = local_server(short_dir)
    async with Client(server, mode=era, elicitation_callback=person) as client:
        count = "n = globals().get('n', 0) + 1\n"
        assert result_text(await run(client, count + ASKS_TWICE)) == repr(words)
        assert person.asked == ["First? ", "Second? "]
        # The code ran once, however often the call was made.
        assert result_text(await run(client, "n")) == "1"


async def test_a_person_who_declines_leaves_the_cell_waiting(short_dir: Path, era: str) -> None:
    person = Person(None, "late")
    async with Client(local_server(short_dir), mode=era, elicitation_callback=person) as client:
        declined = await run(client, "input('Now? ')")
        assert status(declined) == "awaiting_input"
        answered = await call(client, "sage_wait", session="default", cell=1)
        assert result_text(answered) == "'late'"


async def test_a_password_is_asked_for_by_no_form_and_kept_nowhere(
    short_dir: Path, era: str
) -> None:
    person = Person()
    async with Client(local_server(short_dir), mode=era, elicitation_callback=person) as client:
        asked = await run(client, "import getpass; p = getpass.getpass('Secret: '); len(p)")
        assert status(asked) == "awaiting_input"
        assert "a password" in text_of(asked)
        assert person.asked == []
        ended = await call(client, "sage_wait", session="default", cell=1, answer="hunter2")
        assert result_text(ended) == "7"
    assert not [p for p in holding(short_dir / "state", b"hunter2") if "checkpoints" not in p]


def holding(folder: Path, needle: bytes) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if needle in path.read_bytes()]


async def test_a_form_that_nobody_fills_in_does_not_hang_the_call(
    short_dir: Path,
) -> None:
    async def never(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        await anyio.sleep_forever()
        raise AssertionError

    server = local_server(short_dir)
    async with Client(server, mode="legacy", elicitation_callback=never) as client:
        with anyio.fail_after(GUARD_S):
            waiting = await run(client, "input('?')", wait_s=2)
        assert status(waiting) == "awaiting_input"
        ended = await call(client, "sage_wait", session="default", cell=1, answer="x", wait_s=5)
        assert parts(ended, "result") == ["'x'"]
