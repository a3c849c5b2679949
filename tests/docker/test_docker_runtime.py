"""`DockerRuntime` on a real engine, and on one that fails: stalls, loses replies, sends junk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sagebroker.container.breaker import CircuitBreaker
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.docker_calls import WORKERS, Deadlines
from sagebroker.container.engine import FoundEngine, find_engine
from sagebroker.container.runtime import ContainerStatus
from sagebroker.container.spec import LABEL_INSTANCE
from sagebroker.errors import (
    ConfigError,
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    RuntimeUnavailableError,
)

pytestmark = pytest.mark.docker

LIMIT_S = 30
QUICK = Deadlines(urgent_s=0.5, read_s=0.5, change_s=0.5)
"""Deadlines under which a stalled engine is noticed soon."""
EAGER_PAUSE_S = 0.2
"""Pause of a breaker that tries again soon."""


@pytest.fixture
async def hasty(proxy: Any) -> AsyncIterator[DockerRuntime]:
    """The same with short deadlines and a breaker that tries again soon."""
    breaker = CircuitBreaker(first_pause_s=EAGER_PAUSE_S, longest_pause_s=EAGER_PAUSE_S)
    async with DockerRuntime(proxy.url, deadlines=QUICK, breaker=breaker) as made:
        yield made


async def _ended(runtime: DockerRuntime, container: str) -> ContainerStatus:
    with anyio.fail_after(LIMIT_S):
        while (status := await runtime.inspect(container)).state != "exited":
            await anyio.sleep(0.02)
    return status


async def _run(runtime: DockerRuntime, spec: Any) -> str:
    container = await runtime.create(spec)
    await runtime.start(container)
    return container


# A real engine that works.


async def test_an_exit_code_and_the_last_lines_of_the_output_are_kept(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    command = ("sh", "-c", "echo one; echo two; echo three; exit 7")
    container = await _run(runtime, make_spec(command=command))
    status = await _ended(runtime, container)
    assert (status.exit_code, status.oom_killed) == (7, False)
    assert (await runtime.logs(container, tail=2)).split() == ["two", "three"]


async def test_errors_are_part_of_the_output(runtime: DockerRuntime, make_spec: Any) -> None:
    container = await _run(runtime, make_spec(command=("sh", "-c", "echo wrong >&2")))
    await _ended(runtime, container)
    assert await runtime.logs(container, tail=5) == "wrong\n"


async def test_endless_output_fills_neither_the_disk_nor_an_answer(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    command = ("sh", "-c", "yes 0123456789abcdef | head -c 8000000")
    container = await _run(runtime, make_spec(command=command))
    await _ended(runtime, container)
    assert len(await runtime.logs(container, tail=10_000_000)) <= 65_536


async def test_signals_reach_pid_1(runtime: DockerRuntime, make_spec: Any) -> None:
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(11))\n"
        "open('/files/ready', 'w').close()\n"
        "while True: signal.pause()\n"
    )
    spec = make_spec(command=("python3", "-c", program))
    container = await _run(runtime, spec)
    ready = anyio.Path(make_spec.folders().files / "ready")
    with anyio.fail_after(LIMIT_S):
        while not await ready.exists():
            await anyio.sleep(0.02)
    await runtime.signal(container, "SIGUSR1")
    assert (await _ended(runtime, container)).exit_code == 11


async def test_a_program_that_the_image_lacks_is_no_missing_container(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    container = await runtime.create(make_spec(command=("/no/such/program",)))
    with pytest.raises(ContainerError, match="no such file") as caught:
        await runtime.start(container)
    assert not isinstance(caught.value, ContainerNotFoundError)
    assert (await runtime.inspect(container)).state == "created"


async def test_calls_leave_no_connection_open(runtime: DockerRuntime, make_spec: Any) -> None:
    await runtime.list({LABEL_INSTANCE: make_spec.instance})
    before = _open_files()
    for _ in range(3):
        container = await runtime.create(make_spec())
        await runtime.inspect(container)
        await runtime.remove(container)
    assert _open_files() <= before


async def test_the_runtime_can_be_used_again_after_closing(runtime: DockerRuntime) -> None:
    await runtime.aclose()
    assert (await runtime.ping()).version


# An engine that does not answer.


async def test_without_an_engine_every_call_says_so(short_dir: Path) -> None:
    async with DockerRuntime(f"unix://{short_dir}/none.sock") as absent:
        with pytest.raises(RuntimeUnavailableError, match="no such file or directory"):
            await absent.ping()
        with pytest.raises(RuntimeUnavailableError, match="no such file or directory"):
            await absent.inspect("some-container")


async def test_every_call_to_a_stalled_engine_ends_by_its_deadline(
    hasty: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    proxy.stalled = True
    spec = make_spec()
    calls: list[Any] = [
        hasty.ping,
        lambda: hasty.image_digest(spec.image),
        lambda: hasty.create(spec),
        lambda: hasty.start("some-container"),
        lambda: hasty.signal("some-container", "SIGINT"),
        lambda: hasty.inspect("some-container"),
        lambda: hasty.list({}),
        lambda: hasty.stats("some-container"),
        lambda: hasty.logs("some-container", tail=1),
        lambda: hasty.remove("some-container"),
        lambda: hasty.rename("some-container", "another"),
    ]
    for call in calls:
        with anyio.fail_after(LIMIT_S), pytest.raises(RuntimeUnavailableError):
            await call()


async def test_more_calls_than_workers_to_a_stalled_engine_end_too(
    hasty: DockerRuntime, proxy: Any
) -> None:
    proxy.stalled = True
    ended = []

    async def call() -> None:
        with pytest.raises(RuntimeUnavailableError):
            await hasty.inspect("some-container")
        ended.append(1)

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as group:
            for _ in range(3 * WORKERS):
                group.start_soon(call)
    assert len(ended) == 3 * WORKERS


async def test_the_breaker_opens_after_five_silences_and_closes_when_the_engine_is_back(
    hasty: DockerRuntime, proxy: Any
) -> None:
    proxy.stalled = True
    with anyio.fail_after(LIMIT_S):
        for _ in range(5):
            with pytest.raises(RuntimeUnavailableError):
                await hasty.inspect("some-container")
        asked = len(proxy.requests)
        with pytest.raises(RuntimeUnavailableError, match="5 times in a row"):
            await hasty.inspect("some-container")
        assert len(proxy.requests) == asked
        proxy.stalled = False
        while True:  # until the pause is over and the trial goes through
            try:
                await hasty.list({LABEL_INSTANCE: "none"})
                break
            except RuntimeUnavailableError:
                await anyio.sleep(0.02)
        with pytest.raises(ContainerNotFoundError):
            await hasty.inspect("some-container")


async def test_ping_signal_and_remove_are_tried_while_the_breaker_is_open(
    proxy: Any, runtime: DockerRuntime, make_spec: Any
) -> None:
    container = await _run(runtime, make_spec())
    breaker = CircuitBreaker(first_pause_s=3600, longest_pause_s=3600)
    async with DockerRuntime(proxy.url, breaker=breaker) as asked:
        for operation in ("signal", "remove", "ping"):
            while not breaker.is_open:
                breaker.failed(0)
            if operation == "signal":
                await asked.signal(container, "SIGKILL")
            elif operation == "remove":
                await asked.remove(container)
            else:
                await asked.ping()
            assert not breaker.is_open  # an answer closes it


async def test_a_dropped_reply_to_a_question_is_asked_for_again(
    through: DockerRuntime, proxy: Any
) -> None:
    await through.ping()
    proxy.lose_reply_to = "/containers/json"
    assert await through.list({LABEL_INSTANCE: "none"}) == []


# Changes whose outcome is not known.


async def test_a_create_whose_reply_is_lost_makes_exactly_one_container(
    through: DockerRuntime, runtime: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    proxy.lose_reply_to = "/containers/create"
    spec = make_spec()
    container = await through.create(spec)
    assert [status.id for status in await runtime.list(spec.labels)] == [container]
    await through.start(container)


async def test_a_start_whose_reply_is_lost_may_be_repeated(
    through: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    container = await through.create(make_spec())
    proxy.lose_reply_to = f"/containers/{container}/start"
    with pytest.raises(RuntimeUnavailableError):
        await through.start(container)
    await through.start(container)
    assert (await through.inspect(container)).is_running


async def test_a_create_that_never_arrived_is_not_invented(
    hasty: DockerRuntime, runtime: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    await hasty.ping()
    proxy.stalled = True
    spec = make_spec()
    with pytest.raises(RuntimeUnavailableError):
        await hasty.create(spec)
    assert await runtime.list(spec.labels) == []


async def test_a_weaker_container_than_asked_for_is_removed_and_refused(
    through: DockerRuntime, runtime: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    def weaken(body: dict[str, Any]) -> None:
        body["HostConfig"]["CapDrop"] = []
        body["HostConfig"]["NetworkMode"] = "bridge"

    proxy.rewrite_create = weaken
    spec = make_spec()
    with pytest.raises(ContainerError, match=r"weaker than asked for.*NetworkMode.*CapDrop"):
        await through.create(spec)
    assert await runtime.list(spec.labels) == []


async def test_a_folder_that_vanishes_before_the_engine_looks_is_an_error(
    through: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    def misdirect(body: dict[str, Any]) -> None:
        body["HostConfig"]["Mounts"][0]["Source"] += "-gone"

    proxy.rewrite_create = misdirect
    with pytest.raises(ContainerError, match="does not exist"):
        await through.create(make_spec())


# Finding the engine.


async def test_the_engine_is_found_at_the_place_that_is_named(engine: FoundEngine) -> None:
    assert (await find_engine(engine.url, {})).url == engine.url
    assert (await find_engine("", {"DOCKER_HOST": engine.url})).url == engine.url


async def test_a_stalled_engine_is_reported_with_what_was_tried(proxy: Any) -> None:
    proxy.stalled = True
    with pytest.raises(RuntimeUnavailableError, match="No container engine answers") as caught:
        await find_engine(proxy.url, {}, limit_s=0.3)
    assert proxy.url in str(caught.value)
    assert "engine_url" in str(caught.value)


async def test_an_engine_elsewhere_is_refused() -> None:
    with pytest.raises(ConfigError, match="on this machine"):
        await find_engine("tcp://192.0.2.1:2375", {})


async def test_a_conflict_names_the_state_of_the_other_container(
    runtime: DockerRuntime, make_spec: Any
) -> None:
    spec = make_spec()
    await _run(runtime, spec)
    with pytest.raises(ContainerConflictError, match="state running"):
        await runtime.create(spec)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
