"""What is to be known of its surroundings by whoever serves Jupyter clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sagebroker.protocol.messages import Channel, Message
    from sagebroker.session.session import Session


class Outward(Protocol):
    """What is to be known here of the endpoint."""

    def reply(
        self, channel: Channel, client: bytes, parent: bytes, msg_type: str, content: dict[str, Any]
    ) -> None:
        """Send a message of the broker's own to one client."""

    def publish(self, parent: bytes, msg_type: str, content: dict[str, Any]) -> None:
        """Send a message of the broker's own to all."""

    def pass_on(self, channel: Channel, client: bytes, message: Message) -> None:
        """Send a kernel's message to one client."""

    def pass_to_all(self, message: Message) -> None:
        """Send a kernel's message to all clients."""


class House(Protocol):
    """Where the session is found, wherever it is."""

    @property
    def session(self) -> Session | None:
        """It, while it is open."""
        ...

    async def awake(self) -> Session:
        """It, woken where it sleeps. Raises `BrokerError`."""
        ...

    def ended(self, *, is_removed: bool) -> None:
        """It has ended."""
