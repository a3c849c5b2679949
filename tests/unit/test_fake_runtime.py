"""The knobs of `FakeRuntime`; that it behaves like an engine is the contract suite's to show."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sagebroker.container.engine import ContainerUser
from sagebroker.container.spec import LABEL_GENERATION, ContainerSpec
from sagebroker.errors import (
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    RuntimeUnavailableError,
)
from sagebroker.testing.containers import make_folders, session_spec
from sagebroker.testing.fake_runtime import DEFAULT_IMAGE, FakeContainer, FakeRuntime

LIMIT_S = 10


@pytest.fixture
def spec(tmp_path: Path) -> ContainerSpec:
    return session_spec(
        image=DEFAULT_IMAGE,
        folders=make_folders(tmp_path),
        user=ContainerUser(uid=1000, gid=1000),
        instance="test",
    )


async def running(runtime: FakeRuntime, spec: ContainerSpec) -> str:
    container = await runtime.create(spec)
    await runtime.start(container)
    return container


async def test_planned_failures_come_in_order_and_end() -> None:
    runtime = FakeRuntime()
    runtime.fail("ping", times=2)
    runtime.fail("ping", error=ContainerError("Another."))
    for _ in range(2):
        with pytest.raises(RuntimeUnavailableError):
            await runtime.ping()
    with pytest.raises(ContainerError, match="Another"):
        await runtime.ping()
    assert (await runtime.ping()).name == "docker"


async def test_a_lost_reply_means_done_and_not_told(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    container = await runtime.create(spec)
    runtime.fail("start", lost_reply=True)
    with pytest.raises(RuntimeUnavailableError):
        await runtime.start(container)
    assert (await runtime.inspect(container)).is_running


async def test_a_create_whose_reply_is_lost_is_found_again(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    runtime.fail("create", lost_reply=True)
    container = await runtime.create(spec)
    assert list(runtime.containers) == [container]


async def test_a_create_that_failed_before_it_began_made_nothing(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    runtime.fail("create")
    with pytest.raises(RuntimeUnavailableError):
        await runtime.create(spec)
    assert runtime.containers == {}


async def test_a_lost_create_and_a_lost_look_leave_a_container_behind(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    runtime.fail("create", lost_reply=True)
    runtime.fail("inspect")
    with pytest.raises(RuntimeUnavailableError):
        await runtime.create(spec)
    assert len(runtime.containers) == 1
    assert await runtime.create(spec) in runtime.containers


async def test_a_daemon_that_is_down_answers_nothing_and_kills_nothing(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    container = await running(runtime, spec)
    runtime.is_down = True
    with pytest.raises(RuntimeUnavailableError):
        await runtime.inspect(container)
    runtime.is_down = False
    assert (await runtime.inspect(container)).is_running


async def test_delays_hold_until_they_are_taken_back() -> None:
    runtime = FakeRuntime()
    runtime.delay("ping", 3600)
    with anyio.move_on_after(0.01) as scope:
        await runtime.ping()
    assert scope.cancelled_caught
    runtime.delay("ping", 0)
    with anyio.fail_after(LIMIT_S):
        await runtime.ping()


async def test_death_for_want_of_memory_is_told_and_flagged(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    container = await running(runtime, spec)
    async with runtime.events({}) as events:
        await runtime.die(container, oom=True)
        assert [(await anext(events)).action for _ in range(2)] == ["oom", "die"]
    status = await runtime.inspect(container)
    assert (status.state, status.exit_code, status.oom_killed) == ("exited", 137, True)


async def test_a_vanished_container_is_gone(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    container = await running(runtime, spec)
    await runtime.vanish(container)
    with pytest.raises(ContainerNotFoundError):
        await runtime.inspect(container)


async def test_a_hidden_container_is_missing_from_the_list_only(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    container = await running(runtime, spec)
    runtime.find(container).hidden = True
    assert await runtime.list({}) == []
    assert (await runtime.inspect(container)).is_running


async def test_events_can_be_lost_repeated_and_broken(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    async with runtime.events({}) as events:
        runtime.lose_events(1)
        container = await runtime.create(spec)
        runtime.repeat_events(1)
        await runtime.start(container)
        runtime.break_events()
        seen = [(await anext(events)).action for _ in range(3)]
    assert seen == ["start", "start", "resync"]


async def test_hooks_see_the_life_of_a_container(spec: ContainerSpec) -> None:
    seen: list[str] = []

    async def on_start(container: FakeContainer) -> None:
        seen.append(f"start in state {container.state}")

    async def on_signal(container: FakeContainer, signal: str) -> None:
        seen.append(signal)

    async def on_stop(container: FakeContainer) -> None:
        seen.append(f"stop with {container.exit_code}")

    runtime = FakeRuntime(on_start=on_start, on_signal=on_signal, on_stop=on_stop)
    container = await running(runtime, spec)
    await runtime.signal(container, "SIGINT")
    await runtime.signal(container, "SIGTERM")
    await runtime.remove(container)
    assert seen == ["start in state created", "SIGINT", "SIGTERM", "stop with 0"]
    assert [operation for operation, _ in runtime.calls] == [
        "create",
        "start",
        "signal",
        "signal",
        "remove",
    ]


async def test_another_generation_under_the_name_is_not_taken_over(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    await runtime.create(spec)
    spec.labels[LABEL_GENERATION] = "next"
    other = ContainerSpec(**{**vars(spec), "labels": {LABEL_GENERATION: "other"}})
    with pytest.raises(ContainerConflictError):
        await runtime.create(other)


async def test_logs_are_the_last_lines(spec: ContainerSpec) -> None:
    runtime = FakeRuntime()
    container = await runtime.create(spec)
    runtime.find(container).output = "a\nb\nc\n"
    assert await runtime.logs(container, tail=2) == "b\nc\n"
