"""`ScriptedKernel`: a kernel impostor over real ZeroMQ sockets that answers from a script.

It runs no code. A script maps the text of a cell to what to do when that cell comes, and can do
what no honest kernel does: stay deaf, forge parents, sign wrongly, send raw frames.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import zmq
import zmq.asyncio

from sagebroker.kernel.connection import SOCKET_NAMES, ConnectionInfo, SocketName
from sagebroker.model import utcnow
from sagebroker.protocol.messages import DELIMITER, sign

if TYPE_CHECKING:
    from pathlib import Path

PROTOCOL_VERSION: Final = "5.3"
"""Version of the messaging protocol in every header."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request the kernel has received."""

    channel: SocketName
    identity: bytes
    """ZeroMQ identity of the sender; a reply begins with it."""
    header: dict[str, Any]
    content: dict[str, Any]

    @property
    def msg_type(self) -> str:
        """Such as ``execute_request``."""
        return str(self.header["msg_type"])

    @property
    def code(self) -> str:
        """The cell's text; empty if it is no cell."""
        return str(self.content.get("code", ""))


Handler = Callable[["ScriptedKernel", Request], Awaitable[None]]


class ScriptedKernel:
    """The impostor; `running_kernel` makes and runs one.

    Args:
        connection: Where to bind, and the key to sign with.
        script: Text of a cell to what happens when it comes; other cells are answered ``ok``.
        answers_heartbeat: False for a kernel whose heartbeat is silent.
    """

    def __init__(
        self,
        connection: ConnectionInfo,
        script: Mapping[str, Handler] | None = None,
        *,
        answers_heartbeat: bool = True,
    ) -> None:
        self.connection = connection
        self.script = dict(script or {})
        self.answers_heartbeat = answers_heartbeat
        self.requests: list[Request] = []
        """Every request that came, in order."""
        self.execution_count = 0
        self._session = uuid.uuid4().hex
        self._sockets: dict[SocketName, zmq.asyncio.Socket] = {}
        self._subscribed = anyio.Event()

    async def wait_subscribed(self) -> None:
        """Wait until somebody listens on iopub."""
        await self._subscribed.wait()

    async def answer(self, request: Request, **reply: Any) -> None:
        """What an honest kernel does with a cell that shows nothing: busy, reply, idle."""
        await self.status(request, "busy")
        self.execution_count += 1
        content = {"status": "ok", "execution_count": self.execution_count, **reply}
        await self.reply(request, "execute_reply", content)
        await self.status(request, "idle")

    async def status(self, request: Request | None, state: str) -> None:
        """Publish ``busy`` or ``idle`` for a request."""
        await self.publish(request, "status", {"execution_state": state})

    async def stream(self, request: Request | None, text: str, name: str = "stdout") -> None:
        """Publish text of stdout or stderr."""
        await self.publish(request, "stream", {"name": name, "text": text})

    async def publish(
        self, request: Request | None, msg_type: str, content: dict[str, Any]
    ) -> None:
        """Publish any message on iopub, as an output of ``request``."""
        frames = self.frames(msg_type, content, request.header if request else None)
        await self.publish_raw([msg_type.encode(), *frames])

    async def publish_raw(self, frames: Sequence[bytes]) -> None:
        """Publish frames as they are."""
        await self._sockets["iopub"].send_multipart(frames)

    async def reply(
        self,
        request: Request,
        msg_type: str,
        content: dict[str, Any],
        *,
        parent: dict[str, Any] | None = None,
    ) -> None:
        """Answer on the request's channel; ``parent`` forges the parent header."""
        frames = self.frames(msg_type, content, request.header if parent is None else parent)
        await self.reply_raw(request, frames)

    async def reply_raw(self, request: Request, frames: Sequence[bytes]) -> None:
        """Answer with frames as they are."""
        await self._sockets[request.channel].send_multipart([request.identity, *frames])

    def frames(
        self,
        msg_type: str,
        content: object,
        parent: dict[str, Any] | None = None,
        *,
        key: bytes | None = None,
    ) -> list[bytes]:
        """Delimiter, signature and the four JSON frames of a message.

        Args:
            msg_type: Its type.
            content: Its content, JSON.
            parent: Its parent header.
            key: A key to sign with in place of the connection's.
        """
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "username": "kernel",
            "session": self._session,
            "date": utcnow().isoformat(),
            "version": PROTOCOL_VERSION,
        }
        body = [json.dumps(part).encode() for part in (header, parent or {}, {}, content)]
        return self.signed(body, key=key)

    def signed(self, body: Sequence[bytes], *, key: bytes | None = None) -> list[bytes]:
        """``body`` with the delimiter and a signature before it."""
        return [DELIMITER, sign(self.connection.key if key is None else key, body), *body]

    def bind(self, stack: ExitStack, context: zmq.asyncio.Context) -> None:
        """Bind all sockets; `running_kernel` calls it."""
        for name in SOCKET_NAMES:
            socket = context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
            stack.callback(socket.close, linger=0)
            # Nothing is lost on the kernel's side: what a test misses, the broker has dropped.
            socket.setsockopt(zmq.SNDHWM, 0)
            path = self.connection.socket_path(name)
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - a plain string
            socket.bind(f"ipc://{path}")
            self._sockets[name] = socket

    async def serve(self, name: SocketName) -> None:
        """Serve one socket until cancelled; `running_kernel` starts one for each."""
        socket = self._sockets[name]
        while True:
            frames = await socket.recv_multipart()
            if name == "iopub":
                if frames[0][:1] == b"\x01":
                    self._subscribed.set()
            elif name == "hb":
                if self.answers_heartbeat:
                    await socket.send_multipart(frames)
            else:
                await self._serve_request(name, frames)

    async def _serve_request(self, name: SocketName, frames: list[bytes]) -> None:
        start = frames.index(DELIMITER)
        header, _, _, content = (json.loads(frame) for frame in frames[start + 2 : start + 6])
        request = Request(channel=name, identity=frames[0], header=header, content=content)
        self.requests.append(request)
        if request.msg_type == "execute_request":
            handler = self.script.get(request.code, ScriptedKernel.answer)
            await handler(self, request)
        elif request.msg_type == "kernel_info_request":
            await self.status(request, "busy")
            info = {
                "status": "ok",
                "protocol_version": PROTOCOL_VERSION,
                "implementation": "script",
            }
            await self.reply(request, "kernel_info_reply", info)
            await self.status(request, "idle")


@asynccontextmanager
async def running_kernel(
    folder: Path,
    script: Mapping[str, Handler] | None = None,
    *,
    answers_heartbeat: bool = True,
    connection: ConnectionInfo | None = None,
) -> AsyncIterator[ScriptedKernel]:
    """A scripted kernel whose sockets lie in ``folder``; all of it is gone at the end.

    Args:
        folder: A folder with a short path.
        script: See `ScriptedKernel`.
        answers_heartbeat: See `ScriptedKernel`.
        connection: A connection to serve in place of a fresh one in ``folder``.
    """
    kernel = ScriptedKernel(
        connection or ConnectionInfo.new(str(folder / "k")),
        script,
        answers_heartbeat=answers_heartbeat,
    )
    with zmq.asyncio.Context() as context, ExitStack() as sockets:
        kernel.bind(sockets, context)
        async with anyio.create_task_group() as tasks:
            for name in SOCKET_NAMES:
                tasks.start_soon(kernel.serve, name, name=f"scripted kernel {name}")
            yield kernel
            tasks.cancel_scope.cancel()
