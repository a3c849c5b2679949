"""Logging: a sentence for people, plus a stable event word and ids for machines.

Code and outputs are never logged, only their sizes and ids. Logs go to stderr: on stdio the
protocol owns stdout.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

EVENTS = frozenset(
    {
        "broker.started",
        "broker.stopping",
        "session.opened",
        "session.adopted",
        "session.closed",
        "session.hibernated",
        "session.failed",
        "cell.finished",
        "cell.refused",
        "endpoint.failed",
        "kernel.ready",
        "kernel.died",
        "kernel.hostile",
        "container.created",
        "container.removed",
        "engine.unavailable",
        "engine.events_stale",
        "orphan.removed",
    }
)
"""Every event word; `event` refuses others, so that the documentation can list them."""


def event(word: str, /, **ids: Any) -> dict[str, Any]:
    """The ``extra=`` of a log call: ``log.info("…", extra=event("session.opened", session=id))``."""
    if word not in EVENTS:
        raise ValueError(f"unknown event word {word!r}")
    return {"event": word, "ids": ids}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "event": getattr(record, "event", None),
            **getattr(record, "ids", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({k: v for k, v in line.items() if v is not None}, default=str)


def set_up_logging(level: str, *, as_json: bool) -> None:
    """Send the package's logs to stderr at ``level``; one JSON object per line if ``as_json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _JsonFormatter()
        if as_json
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger("sagebroker")
    root.handlers[:] = [handler]
    handler.setLevel(level.upper())
    # Events are counted by others, too (`server.metrics`), whatever is printed.
    root.setLevel(min(logging.INFO, handler.level))
    root.propagate = False
