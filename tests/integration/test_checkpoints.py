"""Checkpoints as the broker handles them: restored by number, labelled, listed, asked about."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
from tests.cells import LIMIT_S, ended, result

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.kernel.checkpoints import (
    LABELLED_LIMIT,
    CheckpointInfo,
    CheckpointState,
    expression_text,
    parse_state,
    parse_variables,
    read_checkpoints,
    state_expression,
    variables_expression,
)
from sagebroker.kernel.folders import KernelFolder
from sagebroker.session.session import Session
from sagebroker.testing.wire_client import open_wire

DIES = "import os; os._exit(1)"


class Checkpoints:
    """A session's, as its broker sees them."""

    def __init__(self, session: Session, config: BrokerConfig) -> None:
        self._session = session
        self._folder: Path = config.state_dir / "sessions" / session.id / "checkpoints"
        self.order = KernelFolder(config.runtime_dir, session.id)

    async def listed(self) -> list[CheckpointInfo]:
        return await anyio.to_thread.run_sync(read_checkpoints, self._folder)

    async def numbers(self) -> list[int]:
        return [info.number for info in await self.listed()]

    async def written(self, number: int) -> CheckpointInfo:
        """The checkpoint of that number, when it is there."""
        with anyio.fail_after(LIMIT_S):
            while True:
                for info in await self.listed():
                    if info.number == number:
                        return info
                await anyio.sleep(0.01)

    async def said(self, expression: str) -> str:
        """What the kernel says to a silent request."""
        host = self._session._desk.host
        assert host is not None
        async with open_wire(host.connection) as wire:
            asked = await wire.execute("", limit_s=LIMIT_S, expressions={"said": expression})
        text = expression_text(asked.user_expressions["said"])
        assert text is not None, asked.user_expressions
        return text

    async def state(self, *, write: bool = False, label: str = "") -> CheckpointState:
        state = parse_state(await self.said(state_expression(write=write, label=label)))
        assert state is not None
        return state

    async def settled(self, *, write: bool = False, label: str = "") -> CheckpointState:
        """The state when nothing is pending."""
        state = await self.state(write=write, label=label)
        with anyio.fail_after(LIMIT_S):
            while state.pending:
                await anyio.sleep(0.01)
                state = await self.state()
        return state


async def opened(broker: Broker, config: BrokerConfig) -> tuple[Session, Checkpoints]:
    session, _ = await broker.open_session("default")
    return session, Checkpoints(session, config)


async def died(session: Session) -> None:
    """Return when the kernel is dead and a new one takes cells."""
    before = session.info().kernel_generation
    await ended(session, DIES)
    with anyio.fail_after(LIMIT_S):
        while session.info().kernel_generation == before:
            await anyio.sleep(0.01)


async def test_a_state_that_the_user_has_left_does_not_come_back(
    broker: Broker, config: BrokerConfig
) -> None:
    session, checkpoints = await opened(broker, config)
    await ended(session, "old = 12345")
    await checkpoints.written(1)
    await session.restart(restore="none")
    fresh = await checkpoints.written(2)
    assert (fresh.names, fresh.cell, fresh.generation) == (0, 0, 2)
    await died(session)
    assert result(await ended(session, "'old' in globals()")) == "False"


async def test_an_earlier_checkpoint_that_was_restored_is_the_newest_state(
    broker: Broker, config: BrokerConfig
) -> None:
    session, checkpoints = await opened(broker, config)
    for value in (1, 2):
        await ended(session, f"a = {value}; b{value} = 0")
        await checkpoints.written(value)
    await anyio.to_thread.run_sync(checkpoints.order.ask_restore, 1)
    await died(session)
    assert result(await ended(session, "a")) == "1"
    fresh = await checkpoints.written(3)
    assert fresh.variables == (("a", "int"), ("b1", "int"))
    await died(session)
    assert result(await ended(session, "a")) == "1"


async def test_a_kernel_that_restored_the_newest_checkpoint_writes_none_anew(
    broker: Broker, config: BrokerConfig
) -> None:
    session, checkpoints = await opened(broker, config)
    await ended(session, "a = 1")
    await checkpoints.written(1)
    await died(session)
    state = await checkpoints.settled()
    assert (state.number, state.settled) == (0, True)
    assert await checkpoints.numbers() == [1]


async def test_looking_at_the_state_is_no_change(broker: Broker, config: BrokerConfig) -> None:
    session, checkpoints = await opened(broker, config)
    await ended(session, "a = 1")
    first = await checkpoints.settled()
    assert (first.number, first.error, first.settled) == (1, "", True)
    assert await checkpoints.settled() == await checkpoints.settled() == first
    asked = await checkpoints.state(write=True)
    assert (asked.pending, asked.settled) == (True, False)
    assert (await checkpoints.settled()).number == 2


async def test_a_labelled_checkpoint_is_kept_until_too_many_are(
    broker: Broker, config: BrokerConfig
) -> None:
    session, checkpoints = await opened(broker, config)
    await ended(session, "a = 1")
    state = await checkpoints.settled(label="start")
    assert (state.label, state.unlabelled, state.error) == ("start", "", "")
    start = newest = state.number
    for _ in range(config.checkpoint.keep + 1):
        newest = (await checkpoints.settled(write=True)).number
    kept = list(range(newest - config.checkpoint.keep + 1, newest + 1))
    assert await checkpoints.numbers() == [start, *kept]
    assert [info.label for info in await checkpoints.listed()] == ["start", "", "", ""]
    for more in range(1, LABELLED_LIMIT):
        assert (await checkpoints.settled(label=f"more-{more}")).unlabelled == ""
    state = await checkpoints.settled(write=True, label="last")
    assert state.unlabelled == "start"
    listed = await checkpoints.listed()
    assert start not in [info.number for info in listed]
    labels = [info.label for info in listed if info.label]
    assert labels == ["more-1", "more-2", "more-3", "more-4", "last"]


async def test_a_labelled_checkpoint_holds_what_was_there_when_it_was_asked_for(
    broker: Broker, config: BrokerConfig
) -> None:
    session, checkpoints = await opened(broker, config)
    await ended(session, "a = 1")
    await checkpoints.settled(label="one")
    await ended(session, "a = 2")
    state = await checkpoints.settled(label="one")
    (labelled,) = [info for info in await checkpoints.listed() if info.label]
    assert (labelled.number, labelled.label) == (state.number, "one")
    refused = await checkpoints.settled(label="no label")
    assert "a label has" in refused.error
    assert (await checkpoints.settled()).number == state.number


async def test_variables_are_listed_and_saved_with_their_types(
    broker: Broker, config: BrokerConfig
) -> None:
    session, checkpoints = await opened(broker, config)
    await ended(session, "class Own: pass\nown = Own(); text = 'é'; never = (i for i in [])")
    await checkpoints.settled()
    saved = (await checkpoints.listed())[-1]
    assert saved.variables == (("Own", "type"), ("own", "Own"), ("text", "str"))
    assert saved.missing == (("never", "cannot pickle 'generator' object"),)
    found = parse_variables(await checkpoints.said(variables_expression("t*", 5)))
    assert found is not None
    (text,) = found.variables
    assert (text.name, text.type, text.repr, found.total) == ("text", "str", "'é'", 1)
    await ended(session, "globals().update({f'v{n}': n for n in range(600)})")
    await checkpoints.settled()
    saved = (await checkpoints.listed())[-1]
    assert (saved.names, len(saved.variables)) == (603, 500)
