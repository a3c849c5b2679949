"""What every `ContainerRuntime` promises. The fake is believed because it passes this suite too."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from sagebroker.config import engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import ContainerUser, container_user, find_engine
from sagebroker.container.runtime import ContainerEvent, ContainerRuntime, ContainerStatus
from sagebroker.container.spec import LABEL_GENERATION, LABEL_INSTANCE, ContainerSpec
from sagebroker.errors import (
    ConfigError,
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    ImageNotFoundError,
)
from sagebroker.testing.containers import make_folders, outside_ids, session_spec
from sagebroker.testing.fake_runtime import DEFAULT_IMAGE, FakeRuntime
from sagebroker.testing.podman_service import podman_problem, podman_service

NOBODY = "sagebroker-test-no-such-container"
LIMIT_S = 30


@dataclass
class Engine:
    runtime: ContainerRuntime
    image: str
    instance: str
    user: ContainerUser
    folder: Path

    def spec(self, **changes: Any) -> ContainerSpec:
        folders = make_folders(self.folder / "session")
        made = session_spec(
            image=self.image, folders=folders, user=self.user, instance=self.instance
        )
        return replace(made, **changes)

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL_INSTANCE: self.instance}

    async def running(self, **changes: Any) -> str:
        container = await self.runtime.create(self.spec(**changes))
        await self.runtime.start(container)
        return container

    async def until(
        self, container: str, holds: Callable[[ContainerStatus], bool]
    ) -> ContainerStatus:
        with anyio.fail_after(LIMIT_S):
            while not holds(status := await self.runtime.inspect(container)):
                await anyio.sleep(0.02)
        return status


@asynccontextmanager
async def _fake() -> AsyncIterator[tuple[ContainerRuntime, ContainerUser]]:
    uid, gid = outside_ids()
    yield FakeRuntime(), ContainerUser(uid=uid, gid=gid)


@asynccontextmanager
async def _real(url: str) -> AsyncIterator[tuple[ContainerRuntime, ContainerUser]]:
    found = await find_engine(url, engine_environment())
    uid, gid = outside_ids()
    async with DockerRuntime(found.url) as runtime:
        yield runtime, container_user(found.info, uid=uid, gid=gid)


@pytest.fixture(scope="module")
def podman_url(sage_image: str) -> Iterator[str]:
    if problem := podman_problem(sage_image):
        pytest.skip(problem)
    with podman_service() as url:
        yield url


@pytest.fixture(
    params=[
        "fake",
        *(pytest.param(name, marks=pytest.mark.docker) for name in ("docker", "podman")),
    ]
)
async def engine(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Engine]:
    fake = request.param == "fake"
    url = request.getfixturevalue("podman_url") if request.param == "podman" else ""
    image = DEFAULT_IMAGE if fake else request.getfixturevalue("sage_image")
    instance = f"contract-{secrets.token_hex(4)}"
    async with _fake() if fake else _real(url) as (runtime, user):
        made = Engine(runtime, image, instance, user, short_dir)
        yield made
        for left in await runtime.list(made.labels):
            await runtime.remove(left.id)
        assert await runtime.list(made.labels) == []
        await runtime.aclose()


async def test_ping_names_the_engine_and_its_version(engine: Engine) -> None:
    info = await engine.runtime.ping()
    assert info.name in ("docker", "podman")
    assert info.version
    assert info.api_version


async def test_a_local_image_has_a_digest(engine: Engine) -> None:
    assert (await engine.runtime.image_digest(engine.image)).startswith("sha256:")


async def test_an_absent_image_is_told_by_its_own_error(engine: Engine) -> None:
    with pytest.raises(ImageNotFoundError, match="sagebroker image build"):
        await engine.runtime.image_digest("sagebroker/no-such-image:0")


async def test_a_created_container_is_there_and_does_not_run(engine: Engine) -> None:
    spec = engine.spec()
    container = await engine.runtime.create(spec)
    status = await engine.runtime.inspect(container)
    assert (status.id, status.name, status.state) == (container, spec.name, "created")
    assert spec.labels.items() <= status.labels.items()
    assert not status.is_running
    assert status.exit_code is None
    assert not status.oom_killed
    assert status.created_at > 1.7e9


async def test_a_container_is_found_by_its_name_too(engine: Engine) -> None:
    spec = engine.spec()
    container = await engine.runtime.create(spec)
    assert (await engine.runtime.inspect(spec.name)).id == container


async def test_creating_from_an_absent_image_fails_and_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(ImageNotFoundError):
        await engine.runtime.create(engine.spec(image="sagebroker/no-such-image:0"))
    assert await engine.runtime.list(engine.labels) == []


async def test_a_name_taken_by_another_generation_is_a_conflict(engine: Engine) -> None:
    spec = engine.spec()
    await engine.runtime.create(spec)
    other = replace(spec, labels={**spec.labels, LABEL_GENERATION: "another"})
    with pytest.raises(ContainerConflictError, match="in use"):
        await engine.runtime.create(other)
    assert len(await engine.runtime.list(engine.labels)) == 1


async def test_creating_the_same_generation_again_gives_the_same_container(engine: Engine) -> None:
    spec = engine.spec()
    assert await engine.runtime.create(spec) == await engine.runtime.create(spec)


async def test_a_started_container_is_not_taken_for_a_new_one(engine: Engine) -> None:
    spec = engine.spec()
    await engine.runtime.start(await engine.runtime.create(spec))
    with pytest.raises(ContainerConflictError):
        await engine.runtime.create(spec)


async def test_a_missing_folder_is_refused_before_anything_is_made(engine: Engine) -> None:
    spec = engine.spec()
    spec.mounts[2].source.rmdir()
    with pytest.raises(ConfigError, match="does not exist"):
        await engine.runtime.create(spec)
    assert await engine.runtime.list(engine.labels) == []


async def test_a_started_container_runs_and_starting_it_again_does_nothing(engine: Engine) -> None:
    container = await engine.running()
    await engine.runtime.start(container)
    status = await engine.runtime.inspect(container)
    assert status.is_running
    assert status.pid > 0
    assert status.exit_code is None


async def test_sigkill_ends_a_container_with_137(engine: Engine) -> None:
    container = await engine.running()
    await engine.runtime.signal(container, "SIGKILL")
    status = await engine.until(container, lambda status: status.state == "exited")
    assert status.exit_code == 137
    assert not status.oom_killed


async def test_a_signal_to_a_container_that_does_not_run_is_a_conflict(engine: Engine) -> None:
    container = await engine.runtime.create(engine.spec())
    with pytest.raises(ContainerConflictError):
        await engine.runtime.signal(container, "SIGINT")


@pytest.mark.parametrize("operation", ["start", "inspect", "stats"])
async def test_an_unknown_container_is_told_by_its_own_error(
    engine: Engine, operation: str
) -> None:
    with pytest.raises(ContainerNotFoundError, match="no container"):
        await getattr(engine.runtime, operation)(NOBODY)


async def test_an_unknown_container_gets_no_signal_logs_or_name(engine: Engine) -> None:
    with pytest.raises(ContainerNotFoundError):
        await engine.runtime.signal(NOBODY, "SIGINT")
    with pytest.raises(ContainerNotFoundError):
        await engine.runtime.logs(NOBODY, tail=5)
    with pytest.raises(ContainerNotFoundError):
        await engine.runtime.rename(NOBODY, NOBODY + "-2")


@pytest.mark.parametrize("name", ["", "../images/json", "a b", "x?force=1"])
async def test_what_cannot_be_a_name_names_no_container(engine: Engine, name: str) -> None:
    with pytest.raises(ContainerNotFoundError):
        await engine.runtime.inspect(name)


async def test_the_list_has_running_and_ended_containers_with_all_the_labels(
    engine: Engine,
) -> None:
    created = await engine.runtime.create(engine.spec())
    ended = await engine.running()
    await engine.runtime.signal(ended, "SIGKILL")
    await engine.until(ended, lambda status: status.state == "exited")
    found = {status.id: status for status in await engine.runtime.list(engine.labels)}
    assert set(found) == {created, ended}
    assert found[created].state == "created"
    assert (found[ended].state, found[ended].exit_code) == ("exited", 137)
    assert found[ended].created_at > 1.7e9
    assert await engine.runtime.list({**engine.labels, LABEL_GENERATION: "none"}) == []


async def test_removing_ends_a_running_container_and_is_repeatable(engine: Engine) -> None:
    container = await engine.running()
    await engine.runtime.remove(container)
    await engine.runtime.remove(container)
    with pytest.raises(ContainerNotFoundError):
        await engine.runtime.inspect(container)


async def test_removing_from_two_tasks_at_once_ends_well(engine: Engine) -> None:
    container = await engine.running()
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(engine.runtime.remove, container)
            group.start_soon(engine.runtime.remove, container)
    assert await engine.runtime.list(engine.labels) == []


async def test_a_renamed_container_is_found_by_its_new_name_only(engine: Engine) -> None:
    spec = engine.spec()
    container = await engine.runtime.create(spec)
    await engine.runtime.rename(container, spec.name + "-new")
    assert (await engine.runtime.inspect(spec.name + "-new")).id == container
    with pytest.raises(ContainerNotFoundError):
        await engine.runtime.inspect(spec.name)


async def test_renaming_to_a_name_in_use_is_a_conflict(engine: Engine) -> None:
    first, second = engine.spec(), engine.spec()
    await engine.runtime.create(first)
    await engine.runtime.create(second)
    with pytest.raises(ContainerConflictError):
        await engine.runtime.rename(first.name, second.name)


async def test_a_running_container_uses_memory_and_a_process(engine: Engine) -> None:
    container = await engine.running()
    stats = await engine.runtime.stats(container)
    assert stats.pids >= 1
    assert 0 < stats.memory_bytes < 256 * 2**20


async def test_a_container_that_does_not_run_uses_nothing(engine: Engine) -> None:
    container = await engine.runtime.create(engine.spec())
    stats = await engine.runtime.stats(container)
    assert (stats.pids, stats.memory_bytes) == (0, 0)


async def test_a_silent_container_has_empty_logs(engine: Engine) -> None:
    assert await engine.runtime.logs(await engine.running(), tail=5) == ""


async def test_events_tell_the_life_of_the_subscribers_containers_only(engine: Engine) -> None:
    with anyio.fail_after(LIMIT_S):
        async with engine.runtime.events(engine.labels) as events:
            spec = engine.spec()
            stranger = replace(spec, name=spec.name + "-x", labels={LABEL_INSTANCE: "another"})
            other = await engine.runtime.create(stranger)
            await engine.runtime.remove(other)
            container = await engine.runtime.create(spec)
            await engine.runtime.start(container)
            await engine.runtime.signal(container, "SIGKILL")
            seen = await _until_action(events, "die")
            await engine.runtime.remove(container)
            seen += await _until_action(events, "destroy")
    assert {event.container_id for event in seen} == {container}
    assert [e.action for e in seen if e.action in ("create", "start", "die", "destroy")] == [
        "create",
        "start",
        "die",
        "destroy",
    ]
    died = next(event for event in seen if event.action == "die")
    assert died.exit_code == 137
    assert died.name == spec.name
    assert engine.labels.items() <= died.labels.items()


async def test_every_subscriber_hears_every_event(engine: Engine) -> None:
    with anyio.fail_after(LIMIT_S):
        async with engine.runtime.events(engine.labels) as one, engine.runtime.events({}) as all_:
            container = await engine.running()
            for events in (one, all_):
                seen = await _until_action(events, "start")
                while seen[-1].container_id != container:
                    seen = await _until_action(events, "start")


async def test_closing_the_runtime_ends_the_events(engine: Engine) -> None:
    with anyio.fail_after(LIMIT_S):
        async with engine.runtime.events(engine.labels) as events:
            await engine.runtime.aclose()
            assert [event async for event in events] == []


async def test_a_wrong_signal_name_is_refused(engine: Engine) -> None:
    container = await engine.running()
    with pytest.raises(ContainerError):
        await engine.runtime.signal(container, "INT; rm -rf /")
    assert (await engine.runtime.inspect(container)).is_running


async def _until_action(events: AsyncIterator[ContainerEvent], action: str) -> list[ContainerEvent]:
    seen = []
    async for event in events:
        seen.append(event)
        if event.action == action:
            return seen
    raise AssertionError(f"the events ended before {action!r}: {seen}")
