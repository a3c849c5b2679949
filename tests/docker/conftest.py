"""A real engine, folders and specifications of sessions on it, and a faulty road to it."""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sagebroker.config import engine_environment
from sagebroker.container.docker import DockerRuntime
from sagebroker.container.engine import ContainerUser, FoundEngine, container_user, find_engine
from sagebroker.container.spec import LABEL_INSTANCE, ContainerSpec
from sagebroker.testing.containers import SessionFolders, make_folders, outside_ids, session_spec
from sagebroker.testing.podman_service import podman_problem, podman_service


@pytest.fixture(scope="session")
def podman_url(sage_image: str) -> Iterator[str]:
    """A Podman of the tests' own; its tests are skipped where that cannot be."""
    if problem := podman_problem(sage_image):
        pytest.skip(problem)
    with podman_service() as url:
        yield url


@pytest.fixture
async def engine() -> FoundEngine:
    return await find_engine("", engine_environment())


@pytest.fixture
def instance() -> str:
    """Value of the instance label of this test's containers."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
async def runtime(engine: FoundEngine) -> AsyncIterator[DockerRuntime]:
    """The engine, reached directly."""
    async with DockerRuntime(engine.url) as made:
        yield made


@dataclass(frozen=True)
class SpecMaker:
    """Makes specifications of sessions of one test."""

    image: str
    instance: str
    user: ContainerUser
    folder: Path

    def folders(self, session: str = "one") -> SessionFolders:
        return make_folders(self.folder / session)

    def __call__(self, *, session: str = "one", **changes: Any) -> ContainerSpec:
        made = session_spec(
            image=self.image,
            folders=self.folders(session),
            user=self.user,
            instance=self.instance,
        )
        return replace(made, **changes)


@pytest.fixture
async def make_spec(
    engine: FoundEngine, instance: str, sage_image: str, short_dir: Path
) -> AsyncIterator[SpecMaker]:
    """Makes this test's specifications; afterwards none of its containers is left."""
    uid, gid = outside_ids()
    user = container_user(engine.info, uid=uid, gid=gid)
    yield SpecMaker(sage_image, instance, user, short_dir)
    labels = {LABEL_INSTANCE: instance}
    async with DockerRuntime(engine.url) as cleaner:
        for left in await cleaner.list(labels):
            await cleaner.remove(left.id)
        assert await cleaner.list(labels) == []


class EngineProxy:
    """Stands between a runtime and its engine; a test sets what goes wrong.

    The runtime makes one connection for each request, so a connection is a request.
    """

    def __init__(self, engine_socket: str, path: Path) -> None:
        self.url = f"unix://{path}"
        self.stalled = False
        """Accept, and never answer."""
        self.lose_reply_to = ""
        """Do the next request whose first line contains this, and hang up without its reply."""
        self.rewrite_create: Callable[[dict[str, Any]], None] | None = None
        """Change the body of a create on its way."""
        self.event_junk: list[bytes] = []
        """Sent at the beginning of the next event stream, each as a line of its own."""
        self.events_silent = False
        """Event streams opened while this is set open and then say nothing."""
        self.requests: list[str] = []
        self._engine_socket = engine_socket
        self._open: set[socket.socket] = set()
        self._event_streams: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._start(self._accept)

    def cut_events(self) -> None:
        """Break every event stream."""
        for stream in list(self._event_streams):
            _shut(stream)

    def close(self) -> None:
        self._closing.set()
        _shut(self._listener)
        self._listener.close()
        for connection in list(self._open):
            _shut(connection)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self._answer(client)
        self._open.discard(client)

    def _answer(self, client: socket.socket) -> None:
        head, body = _read_request(client)
        first_line = head.split(b"\r\n", 1)[0].decode()
        if not first_line:
            return  # it only looked whether anybody is there
        self.requests.append(first_line)
        if self.stalled:
            client.recv(1)  # until the other side gives up
        else:
            self._forward(client, first_line, head, body)

    def _forward(self, client: socket.socket, first_line: str, head: bytes, body: bytes) -> None:
        if self.rewrite_create and "/containers/create" in first_line:
            document = json.loads(body)
            self.rewrite_create(document)
            old, body = len(body), json.dumps(document).encode()
            head = head.replace(b"Content-Length: %d" % old, b"Content-Length: %d" % len(body))
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self._engine_socket)
            self._open.add(engine)
            engine.sendall(head + body)
            if self.lose_reply_to and self.lose_reply_to in first_line:
                self.lose_reply_to = ""
                while engine.recv(65536):
                    pass  # the engine has done it all when it hangs up
            elif "/events" in first_line:
                self._forward_events(client, engine)
            else:
                _pump(engine, client)
            self._open.discard(engine)

    def _forward_events(self, client: socket.socket, engine: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += engine.recv(1)
        client.sendall(head)
        junk, self.event_junk = self.event_junk, []
        for line in junk:
            client.sendall(b"%x\r\n%s\n\r\n" % (len(line) + 1, line))
        self._event_streams.add(client)
        if self.events_silent:
            client.recv(1)
        else:
            self._start(_wait_for_end, client, engine)
            _pump(engine, client)
        self._event_streams.discard(client)


def _read_request(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        got = client.recv(65536)
        if not got:
            return b"", b""
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += client.recv(65536)
    return head + b"\r\n\r\n", body


def _pump(source: socket.socket, target: socket.socket) -> None:
    while got := source.recv(65536):
        target.sendall(got)


def _wait_for_end(client: socket.socket, engine: socket.socket) -> None:
    with suppress(OSError):
        client.recv(1)
    _shut(engine)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(engine: FoundEngine, short_dir: Path) -> Iterator[EngineProxy]:
    made = EngineProxy(engine.url.removeprefix("unix://"), short_dir / "proxy.sock")
    yield made
    made.close()


@pytest.fixture
async def through(proxy: Any) -> AsyncIterator[DockerRuntime]:
    """A runtime that reaches the engine by the proxy, with the usual deadlines."""
    async with DockerRuntime(proxy.url, event_idle_limit_s=0.5) as made:
        yield made
