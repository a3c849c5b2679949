"""What a server tells about itself at ``/metrics``, for Prometheus: counts and times, never names or code."""

from __future__ import annotations

import logging
import time
from collections import Counter as Count
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from sagebroker.users import ServedUsers

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600)
"""Bounds of calls: from a cell that computes nothing to a long wait."""


class Metrics:
    """The server's metrics. A context manager: while it is entered events of the log are counted.

    Args:
        users: Whose sessions are counted when somebody asks.
    """

    def __init__(self, users: ServedUsers) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(_Sessions(users))
        self._calls = Counter(
            "sagebroker_calls_total",
            "Tool calls that were answered, by tool and outcome (ok, error, failed, cancelled).",
            ("tool", "outcome"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "sagebroker_call_seconds",
            "Time from a tool call to its answer.",
            ("tool",),
            buckets=SECONDS,
            registry=self._registry,
        )
        events = Counter(
            "sagebroker_events_total",
            "Events of the log, by their words.",
            ("event",),
            registry=self._registry,
        )
        self._handler = _EventCounter(events)

    def __enter__(self) -> Metrics:
        logging.getLogger("sagebroker").addHandler(self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("sagebroker").removeHandler(self._handler)

    @contextmanager
    def call(self, tool: str) -> Iterator[list[str]]:
        """Count a tool call and its time; the block appends its outcome, or ends by an exception."""
        began = time.monotonic()
        outcome: list[str] = []
        try:
            yield outcome
        except Exception:
            outcome.append("failed")
            raise
        finally:
            self._calls.labels(tool, outcome[0] if outcome else "cancelled").inc()
            self._seconds.labels(tool).observe(time.monotonic() - began)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)


class _EventCounter(logging.Handler):
    def __init__(self, counter: Counter) -> None:
        super().__init__(logging.INFO)
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:
        word = getattr(record, "event", None)
        if isinstance(word, str):
            self._counter.labels(word).inc()


class _Sessions(Collector):
    """Counts what there is at the moment of the question."""

    def __init__(self, users: ServedUsers) -> None:
        self._users = users

    def collect(self) -> Iterator[Metric]:
        brokers = self._users.brokers()
        infos = [s.info() for broker in brokers.values() for s in broker.sessions()]
        states = Count(info.state.value for info in infos)
        sessions = GaugeMetricFamily(
            "sagebroker_sessions", "Sessions that are awake, by state.", labels=["state"]
        )
        for state, number in sorted(states.items()):
            sessions.add_metric([state], number)
        yield sessions
        yield GaugeMetricFamily("sagebroker_users", "Users whose brokers run.", value=len(brokers))
        yield GaugeMetricFamily(
            "sagebroker_cells_running",
            "Cells that run.",
            value=sum(info.running is not None for info in infos),
        )
        yield GaugeMetricFamily(
            "sagebroker_cells_queued",
            "Cells that wait for earlier ones.",
            value=sum(info.queued for info in infos),
        )
