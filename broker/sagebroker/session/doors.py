"""`Doors`: all endpoints of one session as one: what is sent goes out at each, and reaches whom it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagebroker.racing import first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagebroker.kernel.endpoint import Endpoint
    from sagebroker.protocol.messages import Channel, Message


class Doors:
    """See the module; methods as `Endpoint` has them.

    A client is known at one door only, and a socket passes over what is for a client that it does not know.
    """

    def __init__(self, doors: Sequence[Endpoint]) -> None:
        self._doors = doors

    @property
    def subscribers(self) -> int:
        """Clients that listen to outputs."""
        return sum(door.subscribers for door in self._doors)

    def bind(self) -> None:
        """Make all sockets, or none. Blocks for a moment. Raises `ConfigError`."""
        try:
            for door in self._doors:
                door.bind()
        except BaseException:
            self.close()
            raise

    async def serve(self) -> None:
        """Read until cancelled, or until another process serves the session."""
        await first(*(door.serve for door in self._doors))

    def hide(self) -> None:
        """Have nobody find them any more."""
        for door in self._doors:
            door.hide()

    def close(self) -> None:
        """Close all sockets."""
        for door in self._doors:
            door.close()

    def reply(
        self, channel: Channel, client: bytes, parent: bytes, msg_type: str, content: dict[str, Any]
    ) -> None:
        """Send a message of the broker's own to one client."""
        for door in self._doors:
            door.reply(channel, client, parent, msg_type, content)

    def publish(self, parent: bytes, msg_type: str, content: dict[str, Any]) -> None:
        """Send a message of the broker's own to all clients."""
        for door in self._doors:
            door.publish(parent, msg_type, content)

    def pass_on(self, channel: Channel, client: bytes, message: Message) -> None:
        """Send a kernel's message to one client, byte for byte."""
        for door in self._doors:
            door.pass_on(channel, client, message)

    def pass_to_all(self, message: Message) -> None:
        """Send a kernel's message to all clients, byte for byte."""
        for door in self._doors:
            door.pass_to_all(message)
