"""Forms that a cell's questions become: what people and clients may do meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.context import ClientRequestContext
from mcp_types import (
    INVALID_PARAMS,
    CallToolResult,
    ClientCapabilities,
    ElicitationCapability,
    ElicitRequestParams,
    ElicitResult,
    FormElicitationCapability,
    UrlElicitationCapability,
)
from tests.interaction.calling import call, run
from tests.interaction.conftest import LOCAL_SERVER, local_server, open_in_memory
from tests.interaction.reading import is_error, result_text, status, text_of
from tests.serving import make_token, serving

from sagebroker.broker import Broker
from sagebroker.server.app import make_server
from sagebroker.server.asking import can_ask

GUARD_S = 60.0
LONGER_S = 300.0
"""What a call may wait: who waits for it to pass is told by `GUARD_S`."""
ASKS_TWICE = "a = input('First? '); b = input('Second? '); (a, b)"

Answering = Callable[[], Awaitable[ElicitResult]]


class Person:
    """Is shown forms; what happens then is up to a test."""

    def __init__(self, *answers: Answering) -> None:
        self.asked: list[str] = []
        self.is_asked = anyio.Event()
        self._answers = list(answers)

    async def __call__(
        self, context: ClientRequestContext, params: ElicitRequestParams
    ) -> ElicitResult:
        del context
        self.asked.append(params.message)
        self.is_asked.set()
        return await self._answers.pop(0)()


def answers(text: str) -> Answering:
    async def answer() -> ElicitResult:
        return ElicitResult(action="accept", content={"text": text})

    return answer


async def never() -> ElicitResult:
    await anyio.sleep_forever()
    raise AssertionError


async def refuses() -> ElicitResult:
    raise MCPError(INVALID_PARAMS, "This client shows no forms after all.")


async def nonsense() -> ElicitResult:
    return ElicitResult(action="accept", content={"word": 1})


async def cancels() -> ElicitResult:
    return ElicitResult(action="cancel")


async def test_an_answer_that_comes_too_late_is_none_to_the_next_question(
    short_dir: Path, era: str
) -> None:
    async def late() -> ElicitResult:
        quicker = await call(
            client, "sage_wait", session="default", cell=1, answer="quick", wait_s=0
        )
        assert not is_error(quicker)
        while "Second" not in text_of(quicker):
            quicker = await call(client, "sage_wait", session="default", cell=1, wait_s=0)
        return ElicitResult(action="accept", content={"text": "late"})

    person = Person(late, answers("two"))
    async with Client(local_server(short_dir), mode=era, elicitation_callback=person) as client:
        assert result_text(await run(client, ASKS_TWICE)) == "('quick', 'two')"
    assert person.asked == ["First? ", "Second? "]


@pytest.mark.parametrize("path", ["http", "bridge"])
async def test_a_form_comes_through_a_server_of_several_users(
    short_dir: Path, era: str, path: str
) -> None:
    make_token(short_dir / "state", "nobody")
    person = Person(answers("one"), answers("two"))
    command = [sys.executable, str(LOCAL_SERVER), str(short_dir), "serve"]
    async with serving(command, short_dir / "state") as served:
        opened: AbstractAsyncContextManager[Client]
        if path == "http":
            opened = served.client(served.token("ann"), mode=era, elicitation_callback=person)
        else:
            env = {
                **os.environ,
                "SAGEBROKER_STATE_DIR": str(short_dir / "state"),
                "SAGEBROKER_RUNTIME_DIR": str(short_dir / "run"),
            }
            process = StdioServerParameters(
                command=sys.executable, args=["-m", "sagebroker", "mcp"], env=env
            )
            opened = Client(process, mode=era, elicitation_callback=person)
        async with opened as client:
            assert result_text(await run(client, ASKS_TWICE)) == "('one', 'two')"
            # The kernel is one of this machine, as only that server has them.
            assert (
                result_text(await run(client, "import sys; 'sage.all' in sys.modules")) == "False"
            )


async def test_a_form_ends_with_its_cell(short_dir: Path) -> None:
    person = Person(never)
    async with Client(
        local_server(short_dir), mode="legacy", elicitation_callback=person
    ) as client:
        with anyio.fail_after(GUARD_S):
            stopped = await run(client, "input('?')", wait_s=LONGER_S, time_limit_s=1)
    assert status(stopped) == "interrupted"


async def test_a_form_ends_with_an_answer_from_elsewhere(short_dir: Path) -> None:
    person = Person(never)
    found: list[CallToolResult] = []
    async with Client(
        local_server(short_dir), mode="legacy", elicitation_callback=person
    ) as client:

        async def ask() -> None:
            found.append(await run(client, "input('?')", wait_s=LONGER_S))

        with anyio.fail_after(GUARD_S):
            async with anyio.create_task_group() as tg:
                tg.start_soon(ask)
                await person.is_asked.wait()
                await call(client, "sage_wait", session="default", cell=1, answer="x")
    assert result_text(found[0]) == "'x'"


async def test_a_call_that_is_cancelled_while_its_form_is_shown_stops_the_cell(
    short_dir: Path,
) -> None:
    # Who looks while the cell is being stopped may be shown its form once more.
    person = Person(never, never)
    async with Client(
        local_server(short_dir), mode="legacy", elicitation_callback=person
    ) as client:
        async with anyio.create_task_group() as tg:
            tg.start_soon(run, client, "kept = 5; input('?')")
            with anyio.fail_after(GUARD_S):
                await person.is_asked.wait()
            tg.cancel_scope.cancel()
        stopped = await call(client, "sage_wait", session="default", cell=1)
        assert status(stopped) == "interrupted"
        assert result_text(await run(client, "kept")) == "5"


# Where the client brings the answer by another call, an error of its own never reaches the server.
@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("legacy", refuses),
        ("legacy", nonsense),
        ("legacy", cancels),
        ("auto", nonsense),
        ("auto", cancels),
    ],
)
async def test_a_client_that_gives_no_answer_leaves_the_cell_waiting(
    short_dir: Path, mode: str, how: Answering
) -> None:
    async with Client(
        local_server(short_dir), mode=mode, elicitation_callback=Person(how, answers("x"))
    ) as client:
        asked = await run(client, "input('Now? ')")
        assert not is_error(asked)
        assert status(asked) == "awaiting_input"
        assert 'sage_wait(session="default", cell=1, answer="…")' in text_of(asked)
        again = await call(client, "sage_wait", session="default", cell=1)
        assert result_text(again) == "'x'"


async def test_a_person_may_take_an_hour_to_answer(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def after_an_hour() -> ElicitResult:
        later = SimpleNamespace(time=lambda: time.time() + 3600.0)
        monkeypatch.setattr("mcp.server.request_state.time", later)
        return ElicitResult(action="accept", content={"text": "late"})

    server = make_server(lambda: nullcontext(broker))
    async with Client(server, mode="auto", elicitation_callback=Person(after_an_hour)) as client:
        assert result_text(await run(client, "input('?')")) == "'late'"


async def test_a_question_of_a_closed_session_is_not_answered_in_its_namesake(
    broker: Broker,
) -> None:
    async def closes() -> ElicitResult:
        async with open_in_memory(broker, "auto") as other:
            await call(other, "sage_close", session="default")
            assert status(await run(other, "input('Mine? ')")) == "awaiting_input"
        return ElicitResult(action="accept", content={"text": "x"})

    server = make_server(lambda: nullcontext(broker))
    async with Client(server, mode="auto", elicitation_callback=Person(closes)) as client:
        refused = await run(client, "input('Theirs? ')")
        assert is_error(refused)
        assert "was closed while its cell 1 waited" in text_of(refused)
        looked = await call(client, "sage_wait", session="default", cell=1, wait_s=0)
        assert 'It asks: "Mine? "' in text_of(looked)


def test_only_clients_that_show_forms_are_asked_by_one() -> None:
    def able(**kinds: object) -> ClientCapabilities:
        return ClientCapabilities(elicitation=ElicitationCapability.model_validate(kinds))

    assert can_ask(able())
    assert can_ask(able(form=FormElicitationCapability()))
    assert can_ask(able(form={}, url={}))
    assert not can_ask(able(url=UrlElicitationCapability()))
    assert not can_ask(ClientCapabilities())
    assert not can_ask(None)
