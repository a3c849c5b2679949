"""Events of a real engine: junk, broken and silent streams, an engine that comes late."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sagebroker.container.docker import DockerRuntime
from sagebroker.container.docker_calls import Deadlines
from sagebroker.container.runtime import ContainerEvent
from sagebroker.container.spec import LABEL_INSTANCE

pytestmark = pytest.mark.docker

LIMIT_S = 30


async def _run(runtime: DockerRuntime, spec: Any) -> str:
    container = await runtime.create(spec)
    await runtime.start(container)
    return container


async def _next(events: AsyncIterator[ContainerEvent], *actions: str) -> ContainerEvent:
    async for event in events:
        if event.action in actions:
            return event
    raise AssertionError("the events ended")


async def test_junk_between_the_events_is_skipped(
    through: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    proxy.event_junk = [
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"Type":"container"}',
        b'{"Type":"container","Action":"die","Actor":{}}',
        b'{"Type":"container","Action":7,"Actor":{"ID":"x"}}',
        b'{"Type":"container","Action":"die","Actor":{"ID":"x","Attributes":{"exitCode":"many"}}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ]
    with anyio.fail_after(LIMIT_S):
        async with through.events({LABEL_INSTANCE: make_spec.instance}) as events:
            container = await _run(through, make_spec())
            assert (await _next(events, "start")).container_id == container


async def test_a_broken_stream_is_opened_again_and_the_gap_is_told(
    through: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    with anyio.fail_after(LIMIT_S):
        async with through.events({LABEL_INSTANCE: make_spec.instance}) as events:
            proxy.cut_events()
            assert (await _next(events, "resync")).action == "resync"
            container = await _run(through, make_spec())
            assert (await _next(events, "start")).container_id == container


async def test_a_stream_that_died_in_silence_loses_no_event(
    through: DockerRuntime, proxy: Any, make_spec: Any
) -> None:
    proxy.events_silent = True
    with anyio.fail_after(LIMIT_S):
        async with through.events({LABEL_INSTANCE: make_spec.instance}) as events:
            container = await _run(through, make_spec())
            proxy.events_silent = False
            event = await _next(events, "create", "resync")
            assert (event.action, event.container_id) == ("create", container)


def _runtime_with_eager_events(proxy: Any) -> DockerRuntime:
    return DockerRuntime(
        proxy.url,
        deadlines=Deadlines(urgent_s=0.2),
        event_stale_after_s=0.1,
        event_longest_pause_s=0.2,
    )


async def test_events_come_once_the_engine_does(proxy: Any, make_spec: Any) -> None:
    proxy.stalled = True
    async with _runtime_with_eager_events(proxy) as late:
        with anyio.fail_after(LIMIT_S):
            async with late.events({LABEL_INSTANCE: make_spec.instance}) as events:
                # Nobody listens to the engine yet: that is told, as soon as it counts as stale.
                assert (await _next(events, "resync")).action == "resync"
                proxy.stalled = False
                await _next(events, "resync")
                await _run(late, make_spec())
                await _next(events, "start")


async def test_a_missing_stream_is_logged_once(
    proxy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.stalled = True
    async with _runtime_with_eager_events(proxy) as late:
        with anyio.fail_after(LIMIT_S):
            async with late.events({}) as events:
                await _next(events, "resync")
                seen = len(proxy.requests)
                while len(proxy.requests) < seen + 3:
                    await anyio.sleep(0.02)
    words = [getattr(record, "event", "") for record in caplog.records]
    assert words.count("engine.events_stale") == 1


async def test_closing_ends_the_thread_of_the_events(runtime: DockerRuntime) -> None:
    async with runtime.events({}):
        assert "engine-events" in _threads()
    with anyio.fail_after(LIMIT_S):
        await runtime.aclose()
    assert "engine-events" not in _threads()


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}
