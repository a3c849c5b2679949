"""A server process for tests: ``sagebroker serve``, and clients of it over each transport."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
from anyio.abc import Process
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from tests.conftest import PREFIX, remove_folder

from sagebroker.model import utcnow
from sagebroker.server.auth import RUN
from sagebroker.store.tokens import TokenFile

_tests = itertools.count(1)

START_LIMIT_S = 60.0
END_LIMIT_S = 60.0
CALL_LIMIT_S = 120.0
"""Bounds a test that hangs; no statement about speed."""


@dataclass
class Served:
    """A server that runs."""

    process: Process
    state_dir: Path
    url: str
    """Of /mcp."""
    http_socket: Path
    mcp_socket: Path
    suffix: str = ""
    """Behind the names of users: tests that share a server have users of their own."""

    @property
    def base(self) -> str:
        return self.url.removesuffix("/mcp")

    def token(self, user: str, *scopes: str, lasts_s: float | None = None, note: str = "") -> str:
        return make_token(self.state_dir, self.user(user), *scopes, lasts_s=lasts_s, note=note)

    def user(self, name: str) -> str:
        """The whole name of a user."""
        return name + self.suffix

    def for_one_test(self) -> Served:
        """The same server, with users that no other test has."""
        return replace(self, suffix=f"-{next(_tests)}")

    @asynccontextmanager
    async def client(
        self, token: str = "", *, mode: str = "auto", **options: Any
    ) -> AsyncIterator[Client]:
        """An MCP client over HTTP."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx2.AsyncClient(headers=headers, timeout=CALL_LIMIT_S) as http:
            transport = streamable_http_client(self.url, http_client=http)
            async with Client(transport, mode=mode, **options) as client:
                yield client


def make_token(
    state_dir: Path, user: str, *scopes: str, lasts_s: float | None = None, note: str = ""
) -> str:
    """A token for the server of a state folder, which reads the file again."""
    now = utcnow().timestamp()
    text, _ = TokenFile(state_dir / "tokens.json").create(
        user,
        scopes or (RUN,),
        now=now,
        expires_at=None if lasts_s is None else now + lasts_s,
        note=note,
    )
    return text


@asynccontextmanager
async def serving(
    command: Sequence[str], state_dir: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Served]:
    """Run a server on a free port until the block ends; it must end by SIGTERM with code 0."""
    process = await anyio.open_process(list(command), env=env, stderr=sys.stderr)
    try:
        with anyio.fail_after(START_LIMIT_S):
            told = await _first_document(process)
        yield Served(
            process=process,
            state_dir=state_dir,
            url=told["url"],
            http_socket=Path(told["http_socket"]),
            mcp_socket=Path(told["mcp_socket"]),
        )
        if process.returncode is None:
            process.terminate()
        with anyio.fail_after(END_LIMIT_S):
            assert await process.wait() == 0
        assert _left(told["http_socket"], told["mcp_socket"]) == []
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


def _left(*paths: str) -> list[str]:
    return [path for path in paths if Path(path).exists()]


async def _first_document(process: Process) -> dict[str, str]:
    assert process.stdout is not None
    text = b""
    while not text.rstrip().endswith(b"}"):
        text += await process.stdout.receive()
    found: dict[str, str] = json.loads(text)
    return found


@asynccontextmanager
async def serving_in(
    command: Callable[[Path], list[str]], name: str, **settings: str
) -> AsyncIterator[Served]:
    """Run a server that has given out a token, in a folder of its own.

    Args:
        command: Of the server, for its folder.
        name: Of the folder.
        settings: Of the server's environment.
    """
    folder = Path("/tmp") / f"{PREFIX}{name}"
    make_token(folder / "state", "nobody")
    try:
        async with serving(command(folder), folder / "state", {**os.environ, **settings}) as found:
            yield found
    finally:
        remove_folder(folder)


def real_server_env(config_dir: Path, image: str, **settings: str) -> dict[str, str]:
    """The environment of a ``sagebroker`` process with its state in ``config_dir``."""
    return {
        **os.environ,
        "SAGEBROKER_STATE_DIR": str(config_dir / "state"),
        "SAGEBROKER_RUNTIME_DIR": str(config_dir / "run"),
        "SAGEBROKER_KERNEL__IMAGE": image,
        **settings,
    }


REAL_SERVE = [sys.executable, "-m", "sagebroker", "serve", "--port", "0", "--json"]
REAL_STDIO = StdioServerParameters(command=sys.executable, args=["-m", "sagebroker", "mcp"])
