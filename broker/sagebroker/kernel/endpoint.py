"""`Endpoint`: the sockets by which Jupyter clients reach a session, in place of its kernel's own.

They have places of their own and sign with a key of their own, which both outlive every kernel: a client's sockets
connect anew by themselves. Nothing is decided here; requests are handed over as they come. `IpcEndpoint` and
`tcp_endpoint.TcpEndpoint` say where the sockets are.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import zmq
import zmq.asyncio
from anyio.lowlevel import checkpoint

from sagebroker.errors import ConfigError, WireError
from sagebroker.kernel.channels import TURN_S
from sagebroker.kernel.connection import SOCKET_NAMES, SocketName
from sagebroker.model import utcnow
from sagebroker.protocol.messages import DELIMITER, Channel, Message, parse, sign
from sagebroker.protocol.requests import PROTOCOL_VERSION, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from sagebroker.kernel.connection import ConnectionInfo
    from sagebroker.kernel.guard import MemoryGuard

RequestHandler = Callable[[Channel, bytes, Message], None]
"""Channel, ZeroMQ identity of the client, message. Must not block."""

REQUEST_CHANNELS: Final[tuple[Channel, ...]] = ("shell", "control", "stdin")
MAX_FRAME_BYTES: Final = 256 * 2**20
"""Size of a frame; ZeroMQ ends the connection of a client that sends a larger one. The largest honest one is the
buffer of a widget."""
QUEUED_OUTPUTS: Final = 100_000
"""Messages kept for a client that does not read; beyond that it loses some, and no other does. A display
has 1 to 2 kB as a rule; the memory guard has an eye on larger ones."""
LINGER_MS: Final = 500
"""For what was sent last to reach clients that read."""
LOOK_INTERVAL_S: Final = 1.0
"""Time between looks whether the sockets can still be found."""
USERNAME: Final = "sagebroker"
_TOKEN_BYTES: Final = 3


class Endpoint:
    """See the module. `bind`, then `serve` in a task; `close` at the end.

    Args:
        key: With which messages are signed.
        context: The ZeroMQ context.
        guard: Ends connections that fill the memory.
        on_request: Called with each valid message of a client.
    """

    def __init__(
        self,
        key: bytes,
        *,
        context: zmq.asyncio.Context,
        guard: MemoryGuard,
        on_request: RequestHandler,
    ) -> None:
        self._key = key
        self._context = context
        self._guard = guard
        self._on_request = on_request
        self._wire_id = secrets.token_hex(8)
        self._sockets: dict[SocketName, zmq.asyncio.Socket] = {}
        self._severed = anyio.Event()
        self.received_bytes = 0
        self.subscribers = 0
        """Clients that listen to outputs."""
        self.is_replaced = False
        """Another process serves the session, and has taken over the sockets' places."""

    def bind(self) -> None:
        """Make the sockets. Blocks for a moment.

        Raises:
            ConfigError: They cannot be made there.
        """
        try:
            for name in SOCKET_NAMES:
                self._bind(name, self._make(name))
        except (OSError, zmq.ZMQError) as error:
            self.close()
            raise self._refusal(error) from error

    async def serve(self) -> None:
        """Read until cancelled, or until another process serves the session."""
        while not self.is_replaced:
            with self._guard.watching(self):
                async with anyio.create_task_group() as tg:
                    for channel in REQUEST_CHANNELS:
                        tg.start_soon(self._read, channel)
                    tg.start_soon(self._echo)
                    tg.start_soon(self._count_subscribers)
                    tg.start_soon(self._watch, tg.cancel_scope)
                    await self._severed.wait()
                    tg.cancel_scope.cancel()
            if not self.is_replaced:
                self.close()
                self._severed = anyio.Event()
                self.bind()

    def hide(self) -> None:
        """Have nobody find it any more."""

    def close(self) -> None:
        """Close the sockets; what was sent last still reaches clients that read."""
        self.hide()
        for socket in self._sockets.values():
            socket.close(linger=LINGER_MS)
        self._sockets.clear()
        self.subscribers = 0

    def sever(self, detail: str) -> None:
        """Hang up on all clients, which connect anew: what ZeroMQ held for them is freed."""
        del detail
        self._severed.set()

    def accuse(self, detail: str) -> None:
        """Nothing more can be done about a client than to hang up."""

    def reply(
        self, channel: Channel, client: bytes, parent: bytes, msg_type: str, content: dict[str, Any]
    ) -> None:
        """Send a message of the broker's own to one client.

        Args:
            channel: Of its request.
            client: Its ZeroMQ identity; nothing happens where it is gone.
            parent: Header of its request.
            msg_type: Such as ``execute_reply``.
            content: JSON values.
        """
        self._send(channel, [client], self._made(parent, msg_type, content), ())

    def publish(self, parent: bytes, msg_type: str, content: dict[str, Any]) -> None:
        """Send a message of the broker's own to all clients on iopub; see `reply`."""
        self._send(
            "iopub", [f"sagebroker.{msg_type}".encode()], self._made(parent, msg_type, content), ()
        )

    def pass_on(self, channel: Channel, client: bytes, message: Message) -> None:
        """Send a kernel's message to one client, byte for byte."""
        self._send(channel, [client], message.frames, message.buffers)

    def pass_to_all(self, message: Message) -> None:
        """Send a kernel's message to all clients on iopub, byte for byte."""
        self._send("iopub", [message.msg_type.encode()], message.frames, message.buffers)

    def _made(self, parent: bytes, msg_type: str, content: dict[str, Any]) -> tuple[bytes, ...]:
        header = {
            "msg_id": secrets.token_hex(16),
            "msg_type": msg_type,
            "session": self._wire_id,
            "username": USERNAME,
            "date": utcnow().isoformat(),
            "version": PROTOCOL_VERSION,
        }
        return encode(header), parent or b"{}", b"{}", encode(content)

    def _send(
        self,
        name: Channel,
        routing: list[bytes],
        frames: Sequence[bytes],
        buffers: Sequence[bytes],
    ) -> None:
        socket = self._sockets.get(name)
        if socket is None:
            return
        signature = sign(self._key, frames)
        # Done at once: these sockets drop what they cannot deliver, and never wait.
        sent = socket.send_multipart(
            [*routing, DELIMITER, signature, *frames, *buffers], zmq.DONTWAIT
        )
        # Looked at, or Python complains of an error that nobody has seen: a client that is gone.
        cast("Future[None]", sent).exception()

    async def _read(self, channel: Channel) -> None:
        socket = self._sockets[channel]
        turn_began = time.monotonic()
        while True:
            client, *frames = await socket.recv_multipart()
            self.received_bytes += sum(map(len, frames))
            try:
                message = parse(channel, frames, self._key)
            except WireError:
                # From nobody who has the key: a client would be told, but who that is is not known.
                pass
            else:
                self._on_request(channel, client, message)
            if time.monotonic() - turn_began >= TURN_S:
                await checkpoint()
                turn_began = time.monotonic()

    async def _echo(self) -> None:
        """Answer heartbeats: they tell that the broker is there."""
        socket = self._sockets["hb"]
        while True:
            frames = await socket.recv_multipart()
            socket.send_multipart(frames, zmq.DONTWAIT)
            await checkpoint()

    async def _count_subscribers(self) -> None:
        socket = self._sockets["iopub"]
        while True:
            said = await socket.recv()
            if said[:1] == b"\x01":
                self.subscribers += 1
                # Jupyter's protocol 5.4: a client may wait for this before it sends anything (JEP 65).
                welcome = self._made(b"", "iopub_welcome", {"subscription": _text(said[1:])})
                self._send("iopub", [said[1:]], welcome, ())
            elif said[:1] == b"\x00":
                self.subscribers -= 1
            await checkpoint()

    async def _watch(self, scope: anyio.CancelScope) -> None:
        await self._stay_findable()
        self.is_replaced = True
        scope.cancel()

    def _make(self, name: SocketName) -> zmq.asyncio.Socket:
        socket = self._context.socket(zmq.XPUB if name == "iopub" else zmq.ROUTER)
        self._sockets[name] = socket
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        if name == "iopub":
            socket.setsockopt(zmq.SNDHWM, QUEUED_OUTPUTS)
            socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        else:
            # A client that connects anew must not wait until its old connection is found dead.
            socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        return socket

    def _bind(self, name: SocketName, socket: zmq.asyncio.Socket) -> None:
        """Bind a socket at its place. Raises `OSError`, `zmq.ZMQError`."""
        raise NotImplementedError

    def _refusal(self, error: Exception) -> ConfigError:
        """What to say where a socket cannot be bound."""
        raise NotImplementedError

    async def _stay_findable(self) -> None:
        """See to it that clients find the sockets; returns when another process has taken them over."""
        await anyio.sleep_forever()


class IpcEndpoint(Endpoint):
    """An endpoint on unix sockets, for clients of the same user on the same machine.

    A socket is bound at a private name and linked to the public one. Clients that tidy up behind a kernel
    remove the public name (jupyter_client's managers do), and it is put back; and the process that serves a
    session after another takes the name over with one rename, without a moment at which nobody is there.

    Args:
        connection: Where, and the key.
        options: Of every endpoint.
    """

    def __init__(self, connection: ConnectionInfo, **options: Any) -> None:
        super().__init__(connection.key, **options)
        self._connection = connection
        self._folder = Path(connection.ip).parent
        self._private: dict[SocketName, Path] = {}

    def bind(self) -> None:
        """Make the sockets; what a process that was killed has left of its own goes. Raises `ConfigError`."""
        super().bind()
        own = {path.name for path in self._private.values()}
        own |= {Path(self._connection.socket_path(name)).name for name in SOCKET_NAMES}
        with suppress(OSError):
            for left in self._folder.iterdir():
                if left.name not in own:
                    left.unlink()

    def hide(self) -> None:
        """Remove the sockets' names, if they are still this one's."""
        with suppress(OSError):
            for name, private in self._private.items():
                public = Path(self._connection.socket_path(name))
                if _inode(public) == _inode(private):
                    public.unlink()
                private.unlink()
            # Not empty where another process has taken over.
            self._folder.rmdir()
        self._private.clear()

    def _bind(self, name: SocketName, socket: zmq.asyncio.Socket) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = self._folder / f"{name[0]}{secrets.token_hex(_TOKEN_BYTES)}"
        socket.bind(f"ipc://{private}")
        self._private[name] = private
        draft = private.with_name(f"{private.name}.n")
        os.link(private, draft)
        draft.replace(self._connection.socket_path(name))

    def _refusal(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"The sockets for Jupyter clients in {self._folder} cannot be made: {error}.",
            hint="Set SAGEBROKER_RUNTIME_DIR to a short path that you may write.",
        )

    async def _stay_findable(self) -> None:
        while True:
            await anyio.sleep(LOOK_INTERVAL_S)
            for name, private in self._private.items():
                public = Path(self._connection.socket_path(name))
                found = _inode(public)
                if found is None:
                    with suppress(OSError):
                        os.link(private, public)
                elif found != _inode(private):
                    return


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _text(topic: bytes) -> str:
    return topic.decode("utf-8", "replace")
