"""`Attendance`: whether anybody needs a server that nobody started by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MOST_LOOK_INTERVAL_S: Final = 5.0
"""Between looks; they cost nothing, and ten of them are in a shorter limit."""


class Attendance:
    """Who is there: front ends that are connected, requests that are not answered yet."""

    def __init__(self) -> None:
        self._present = 0
        self._left_at = time.monotonic()

    @contextmanager
    def visiting(self) -> Iterator[None]:
        """Somebody is there while the context is entered."""
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1
            self._left_at = time.monotonic()

    def counting(self, app: ASGIApp) -> ASGIApp:
        """``app``, whose requests are visits."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            with self.visiting():
                await app(scope, receive, send)

        return counted

    async def until_nobody(self, limit_s: float, is_needed: Callable[[], bool]) -> None:
        """Return when nobody has been there for ``limit_s``, and ``is_needed`` was false all the time."""
        needed_at = time.monotonic()
        while True:
            await anyio.sleep(min(MOST_LOOK_INTERVAL_S, limit_s / 10))
            now = time.monotonic()
            if self._present or is_needed():
                needed_at = now
            elif now - max(needed_at, self._left_at) >= limit_s:
                return
