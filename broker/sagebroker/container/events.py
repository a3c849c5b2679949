"""Events of the engine: one daemon thread reads them, any number of tasks subscribe.

Events are hints. An engine's stream can die in silence, skip, or carry junk, so a stream that has
said nothing for a while is opened anew from where it stood, a gap is told as ``resync``, and a
periodic list stays the truth. `EventReader` is the thread, `EventHub` its end in the event loop;
where the bytes come from (`EventSource`) is the business of `docker.py`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from sagebroker.container.replies import event_from_json
from sagebroker.container.runtime import ContainerEvent
from sagebroker.errors import ContainerError
from sagebroker.logs import event as log_event

log = logging.getLogger(__name__)

RESYNC = ContainerEvent(action="resync")
"""Events may have been missed: list."""

IDLE_LIMIT_S = 30.0
"""Silence after which the stream is opened anew; KubeSpawner found that a watch has to be."""
STALE_AFTER_S = 60.0
"""Time without a working stream after which it is logged: two idle limits."""
FIRST_PAUSE_S = 0.2
"""Pause before the second attempt to open the stream; doubles."""
LONGEST_PAUSE_S = 10.0
"""Bound of that pause."""
SUBSCRIBE_LIMIT_S = 5.0
"""Time a new subscriber waits for the stream; without one it goes on and hears ``resync`` later."""
JOIN_LIMIT_S = 10.0
"""Time the thread gets to end: longer than any of its blocking calls."""
BUFFERED_EVENTS = 256
"""Events kept for a subscriber that does not read; what comes after becomes one ``resync``."""
MAX_LINE_BYTES = 2**20
"""Longest event; labels and all, a real one has some 2 kB."""


class SourceIdleError(Exception):
    """The stream said nothing for its idle limit."""


class EventSource(Protocol):
    """An open stream of events."""

    @property
    def opened_ns(self) -> int:
        """The engine's wall clock when it opened, nanoseconds; 0 if it did not say."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Bytes as they come; ends when the engine ends the stream.

        Raises:
            SourceIdleError: Nothing came for the idle limit.
            ContainerError: The stream broke.
        """
        ...

    def wake(self) -> None:
        """Make `chunks` end; called from another thread."""
        ...

    def close(self) -> None:
        """Release it; called by the thread that reads, after `chunks`."""
        ...


class EventParser:
    """Cuts the stream into events; what is none is counted and dropped. Pure."""

    def __init__(self) -> None:
        self.junk = 0
        """Lines that were no event of a container though they should have been."""
        self.last_ns = 0
        """The engine's own time of the newest event, nanoseconds; 0 before the first."""
        self._rest = b""

    def feed(self, chunk: bytes) -> list[ContainerEvent]:
        """Events completed by ``chunk``."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            self.junk += 1
            self._rest = b""
        events = (self._read(line) for line in lines if line.strip())
        return [event for event in events if event is not None]

    def reset(self) -> None:
        """Forget an unfinished line; called between two streams."""
        self._rest = b""

    def _read(self, line: bytes) -> ContainerEvent | None:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            self.junk += 1
            return None
        event = event_from_json(document) if isinstance(document, Mapping) else None
        if event is None:
            self.junk += 1
            return None
        stamp = document.get("timeNano")
        if isinstance(stamp, int):
            self.last_ns = max(self.last_ns, stamp)
        return event


class Subscription(AsyncIterator[ContainerEvent]):
    """One subscriber's bounded queue; belongs to the event loop."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._send, self._receive = anyio.create_memory_object_stream[ContainerEvent](
            BUFFERED_EVENTS
        )
        self._overflowed = False
        self.missed_stream = False
        """It went on without a stream."""

    def deliver(self, event: ContainerEvent) -> None:
        """Queue ``event`` if it is wanted; a full queue is replaced by one ``resync``."""
        if event.action != RESYNC.action and not self._labels.items() <= event.labels.items():
            return
        try:
            self._send.send_nowait(event)
        except anyio.WouldBlock:
            self._overflowed = True

    async def __anext__(self) -> ContainerEvent:
        if self._overflowed:
            # What is queued is older than the gap, and a list tells it all.
            self._overflowed = False
            while self._receive.statistics().current_buffer_used:
                self._receive.receive_nowait()
            return RESYNC
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def end(self) -> None:
        """Let the iterator end after what is queued."""
        self._send.close()

    def close(self) -> None:
        """Release both ends."""
        self._send.close()
        self._receive.close()


class EventHub:
    """Hands events to subscribers. All methods run in the event loop."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._streaming = anyio.Event()

    @asynccontextmanager
    async def subscribe(
        self, labels: Mapping[str, str], *, limit_s: float = SUBSCRIBE_LIMIT_S
    ) -> AsyncIterator[Subscription]:
        """Events with ``labels`` from now on; waits for the stream, at most ``limit_s`` seconds."""
        subscription = Subscription(labels)
        self._subscriptions.add(subscription)
        try:
            with anyio.move_on_after(limit_s) as scope:
                await self._streaming.wait()
            subscription.missed_stream = scope.cancelled_caught
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    def stream_opened(self, *, after_gap: bool) -> None:
        """The stream works (again)."""
        self._streaming.set()
        for subscription in self._subscriptions:
            if after_gap or subscription.missed_stream:
                subscription.missed_stream = False
                subscription.deliver(RESYNC)

    def stream_lost(self) -> None:
        """The stream broke; new subscribers wait for the next one."""
        if self._streaming.is_set():
            self._streaming = anyio.Event()

    def publish(self, events: list[ContainerEvent]) -> None:
        """Hand ``events`` to everyone who wants them."""
        for event in events:
            for subscription in self._subscriptions:
                subscription.deliver(event)

    def end(self) -> None:
        """End every subscription; called when the runtime closes."""
        for subscription in self._subscriptions:
            subscription.end()


class EventReader:
    """The thread: opens the stream, reads it, opens it again. Start it from the event loop.

    Args:
        hub: Where the events go.
        open_source: Opens a stream that replays from the given time (engine's wall clock,
            nanoseconds), or from now; may block for a bounded time; raises `ContainerError`.
        stale_after_s: Seconds without a stream until the alarm.
        longest_pause_s: Bound of the pause between attempts, seconds.
    """

    def __init__(
        self,
        hub: EventHub,
        open_source: Callable[[int | None], EventSource],
        *,
        stale_after_s: float = STALE_AFTER_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self.parser = EventParser()
        self._hub = hub
        self._open_source = open_source
        self._stale_after_s = stale_after_s
        self._longest_pause_s = longest_pause_s
        self._token = anyio.lowlevel.current_token()
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards _source between the thread and aclose
        self._source: EventSource | None = None
        self._alive_at = time.monotonic()
        self._alarmed = False
        self._after_gap = False
        # Daemon: an interpreter that ends without aclose does not wait for an event.
        self._thread = threading.Thread(target=self._run, name="engine-events", daemon=True)
        self._thread.start()

    @property
    def silent_for_s(self) -> float:
        """Seconds since the stream last worked: a byte came or it was opened."""
        return time.monotonic() - self._alive_at

    async def aclose(self, limit_s: float = JOIN_LIMIT_S) -> None:
        """End the thread and wait for it, at most ``limit_s`` seconds."""
        self._closing.set()
        with self._lock:
            source = self._source
        # In a worker thread: shutting a socket down and joining may both block.
        await anyio.to_thread.run_sync(self._end, source, limit_s, abandon_on_cancel=True)
        if self._thread.is_alive():
            log.warning("The thread that reads the engine's events did not end in %s s.", limit_s)

    def _end(self, source: EventSource | None, limit_s: float) -> None:
        if source is not None:
            source.wake()
        self._thread.join(limit_s)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        try:
            while not self._closing.is_set():
                source = self._open()
                if source is not None and self._read(source):
                    pause_s = FIRST_PAUSE_S
                    continue
                # Not opened, or opened and ended at once.
                self._after_gap = True
                self._closing.wait(pause_s)
                pause_s = min(self._longest_pause_s, pause_s * 2)
        except anyio.RunFinishedError:
            log.debug("The event loop has ended; so does the reader of the engine's events.")

    def _open(self) -> EventSource | None:
        since_ns = self.parser.last_ns + 1 if self.parser.last_ns else None
        try:
            source = self._open_source(since_ns)
        except ContainerError as error:
            self._note_silence(error)
            return None
        with self._lock:
            self._source = source
        if self._closing.is_set():
            source.wake()  # aclose may have looked before it was there
        self.parser.last_ns = self.parser.last_ns or source.opened_ns
        self._alive_at = time.monotonic()
        if self._alarmed:
            log.info("The engine's events are back.")
            self._alarmed = False
        return source

    def _read(self, source: EventSource) -> bool:
        """Read until the stream ends; whether it was any good."""
        useful = False
        try:
            self._in_loop(partial(self._hub.stream_opened, after_gap=self._after_gap))
            self._after_gap = True
            for chunk in source.chunks():
                useful = True
                self._alive_at = time.monotonic()
                if events := self.parser.feed(chunk):
                    self._in_loop(partial(self._hub.publish, events))
        except SourceIdleError:
            useful = True
            # The next stream goes on where this one stood: nothing is missed, even if it was dead.
            self._after_gap = not self.parser.last_ns
        except ContainerError as error:
            self._note_silence(error)
        finally:
            source.close()
            self.parser.reset()
            with self._lock:
                self._source = None
        if self._after_gap:
            self._in_loop(self._hub.stream_lost)
        return useful

    def _note_silence(self, error: ContainerError) -> None:
        if self._alarmed or self.silent_for_s < self._stale_after_s:
            return
        self._alarmed = True
        log.warning(
            "No events of the engine for %.0f s: %s",
            self.silent_for_s,
            error,
            extra=log_event("engine.events_stale", seconds=round(self.silent_for_s)),
        )
        self._in_loop(partial(self._hub.publish, [RESYNC]))

    def _in_loop(self, call: Callable[[], None]) -> None:
        anyio.from_thread.run_sync(call, token=self._token)
