"""Events: cutting the stream, subscribers, and the thread with a stream in memory."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagebroker.container.events import (
    BUFFERED_EVENTS,
    MAX_LINE_BYTES,
    RESYNC,
    EventHub,
    EventParser,
    EventReader,
    EventSource,
    SourceIdleError,
)
from sagebroker.container.runtime import ContainerEvent
from sagebroker.errors import RuntimeUnavailableError

LIMIT_S = 10


def line(action: str = "start", container: str = "c1", at_ns: int = 0, **labels: str) -> bytes:
    document: dict[str, Any] = {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": container, "Attributes": {"name": "n", **labels}},
    }
    if at_ns:
        document["timeNano"] = at_ns
    return json.dumps(document).encode() + b"\n"


# The parser.


@given(st.integers(min_value=1, max_value=60))
def test_events_are_the_same_however_the_stream_is_cut(size: int) -> None:
    stream = line("create") + b"\n" + line("start", name="ü") + line("die", exitCode="137")
    parser = EventParser()
    events = [
        event
        for start in range(0, len(stream), size)
        for event in parser.feed(stream[start : start + size])
    ]
    assert [event.action for event in events] == ["create", "start", "die"]
    assert events[2].exit_code == 137
    assert parser.junk == 0


@pytest.mark.parametrize(
    "junk",
    [
        b"x",
        b"7",
        b"null",
        b'"text"',
        b"\xff",
        b"[" * 100_000,
        b'{"Type":"network","Action":"connect","Actor":{"ID":"x"}}',
        b'{"Type":"container","Action":"die"}',
        b'{"Type":"container","Action":"die","Actor":[]}',
        b'{"Type":"container","Action":"die","Actor":{"ID":""}}',
        b'{"Type":"container","Action":null,"Actor":{"ID":"x"}}',
    ],
)
def test_junk_is_counted_and_the_next_event_is_read(junk: bytes) -> None:
    parser = EventParser()
    assert [e.action for e in parser.feed(junk + b"\n" + line())] == ["start"]
    assert parser.junk == 1


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    parser = EventParser()
    parser.feed(data)
    assert [e.action for e in parser.feed(b"\n" + line("die"))][-1] == "die"


def test_a_line_without_end_is_not_kept() -> None:
    parser = EventParser()
    for _ in range(40):
        parser.feed(b"x" * (MAX_LINE_BYTES // 10))
    assert len(parser._rest) <= MAX_LINE_BYTES
    assert parser.junk >= 1


def test_the_time_of_the_newest_event_is_kept() -> None:
    parser = EventParser()
    parser.feed(line(at_ns=5) + line(at_ns=9) + line(at_ns=7))
    assert parser.last_ns == 9


def test_the_tail_of_an_action_is_cut_off() -> None:
    assert EventParser().feed(line("exec_create: sh -c x"))[0].action == "exec_create"


# The hub.


def event(action: str, **labels: str) -> ContainerEvent:
    return ContainerEvent(action=action, container_id="c", labels=labels)


def streaming() -> EventHub:
    hub = EventHub()
    hub.stream_opened(after_gap=False)
    return hub


async def collect(events: AsyncIterator[ContainerEvent], count: int) -> list[str]:
    with anyio.fail_after(LIMIT_S):
        return [(await anext(events)).action for _ in range(count)]


async def test_a_subscriber_hears_what_has_its_labels() -> None:
    hub = streaming()
    async with hub.subscribe({"a": "1"}) as events:
        hub.publish([event("x", a="2"), event("y"), event("z", a="1", b="2")])
        hub.publish([RESYNC])
        assert await collect(events, 2) == ["z", "resync"]


async def test_a_subscriber_that_does_not_read_hears_one_resync_instead() -> None:
    hub = streaming()
    async with hub.subscribe({}) as slow, hub.subscribe({}) as other:
        hub.publish([event("old")] * BUFFERED_EVENTS)
        assert await collect(other, BUFFERED_EVENTS) == ["old"] * BUFFERED_EVENTS
        hub.publish([event("lost")])
        assert await collect(slow, 1) == ["resync"]
        hub.publish([event("new")])
        assert await collect(slow, 1) == ["new"]
        assert await collect(other, 2) == ["lost", "new"]


async def test_a_subscriber_without_a_stream_hears_resync_when_there_is_one() -> None:
    hub = EventHub()
    async with hub.subscribe({}, limit_s=0) as early:
        hub.stream_opened(after_gap=False)
        hub.publish([event("x")])
        assert await collect(early, 2) == ["resync", "x"]


async def test_a_subscriber_in_time_hears_no_resync() -> None:
    hub = streaming()
    async with hub.subscribe({}) as events:
        hub.publish([event("x")])
        assert await collect(events, 1) == ["x"]


async def test_after_a_gap_everybody_hears_resync() -> None:
    hub = streaming()
    async with hub.subscribe({"a": "1"}) as events:
        hub.stream_lost()
        hub.stream_opened(after_gap=True)
        assert await collect(events, 1) == ["resync"]


async def test_the_end_of_the_hub_ends_the_iterators() -> None:
    hub = streaming()
    async with hub.subscribe({}) as events:
        hub.publish([event("x")])
        hub.end()
        assert [e.action async for e in events] == ["x"]


# The thread.


class MemorySource:
    """A stream whose bytes a test puts in; an exception put in is raised, None ends it."""

    def __init__(self, opened_ns: int = 0) -> None:
        self.opened_ns = opened_ns
        self.items: queue.Queue[bytes | Exception | None] = queue.Queue()
        self.closed = threading.Event()

    def chunks(self) -> Iterator[bytes]:
        while (item := self.items.get(timeout=LIMIT_S)) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def wake(self) -> None:
        self.items.put(None)

    def close(self) -> None:
        self.closed.set()


class Opener:
    """Opens the prepared streams one by one, then fails."""

    def __init__(self, *sources: MemorySource) -> None:
        self.sources = list(sources)
        self.asked_since: list[int | None] = []

    def __call__(self, since_ns: int | None) -> EventSource:
        self.asked_since.append(since_ns)
        if not self.sources:
            raise RuntimeUnavailableError("No more streams.")
        return self.sources.pop(0)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(LIMIT_S):
        while not holds():
            await anyio.sleep(0.005)


async def test_the_thread_delivers_and_ends() -> None:
    source = MemorySource()
    hub = EventHub()
    reader = EventReader(hub, Opener(source))
    async with hub.subscribe({}) as events:
        source.items.put(line("start"))
        assert await collect(events, 1) == ["start"]
    await reader.aclose(LIMIT_S)
    assert source.closed.is_set()
    assert not reader._thread.is_alive()
    assert reader._thread.daemon


async def test_after_a_broken_stream_the_next_one_replays_and_the_gap_is_told() -> None:
    first, second = MemorySource(), MemorySource()
    opener = Opener(first, second)
    hub = EventHub()
    reader = EventReader(hub, opener)
    async with hub.subscribe({}) as events:
        first.items.put(line("start", at_ns=41))
        first.items.put(RuntimeUnavailableError("broken"))
        assert await collect(events, 2) == ["start", "resync"]
        second.items.put(line("die"))
        assert await collect(events, 1) == ["die"]
    await reader.aclose(LIMIT_S)
    assert opener.asked_since == [None, 42]


async def test_a_silent_stream_is_replaced_without_a_gap() -> None:
    first, second = MemorySource(opened_ns=100), MemorySource(opened_ns=200)
    opener = Opener(first, second)
    hub = EventHub()
    reader = EventReader(hub, opener)
    async with hub.subscribe({}) as events:
        first.items.put(SourceIdleError())
        second.items.put(line("die", at_ns=150))
        assert await collect(events, 1) == ["die"]
    await reader.aclose(LIMIT_S)
    assert opener.asked_since[:2] == [None, 101]


async def test_half_a_line_of_a_broken_stream_does_not_spoil_the_next_one() -> None:
    first, second = MemorySource(), MemorySource()
    hub = EventHub()
    reader = EventReader(hub, Opener(first, second))
    async with hub.subscribe({}) as events:
        first.items.put(line("lost")[:-20])
        first.items.put(None)
        second.items.put(line("die"))
        assert await collect(events, 2) == ["resync", "die"]
    await reader.aclose(LIMIT_S)
    assert reader.parser.junk == 0


async def test_long_silence_is_logged_once_and_told(caplog: pytest.LogCaptureFixture) -> None:
    hub = EventHub()
    opener = Opener()
    reader = EventReader(hub, opener, stale_after_s=0, longest_pause_s=0.01)
    async with hub.subscribe({}, limit_s=0) as events:
        await until(lambda: len(opener.asked_since) > 4)
        assert await collect(events, 1) == ["resync"]
        assert reader.silent_for_s > 0
    await reader.aclose(LIMIT_S)
    words = [getattr(record, "event", "") for record in caplog.records]
    assert words.count("engine.events_stale") == 1


async def test_closing_does_not_wait_for_the_pause_between_attempts() -> None:
    opener = Opener()
    reader = EventReader(EventHub(), opener, longest_pause_s=3600)
    await until(lambda: len(opener.asked_since) > 1)
    with anyio.fail_after(LIMIT_S):
        await reader.aclose(LIMIT_S)
    assert not reader._thread.is_alive()


def test_an_event_loop_that_ends_without_closing_ends_the_thread_too() -> None:
    source = MemorySource()

    async def forget_to_close() -> EventReader:
        hub = EventHub()
        reader = EventReader(hub, Opener(source))
        async with hub.subscribe({}):
            return reader

    reader = anyio.run(forget_to_close)
    source.items.put(line())
    reader._thread.join(LIMIT_S)
    assert not reader._thread.is_alive()
