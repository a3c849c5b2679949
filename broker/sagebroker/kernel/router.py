"""`MessageRouter`: hands each message to whoever waits for its parent's id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sagebroker.protocol.messages import Message

MessageHandler = Callable[[Message], None]


class MessageRouter:
    """Routes messages by ``parent_id``.

    Handlers are called in the reader's task and must not block. Ids are the kernel's claims: a
    kernel can put its own messages under its own session's requests, and nowhere else.

    Args:
        on_foreign: Called with every message nobody waits for: other clients' traffic, output of
            threads after their cell, late replies.
    """

    def __init__(self, on_foreign: MessageHandler) -> None:
        self._on_foreign = on_foreign
        self._handlers: dict[str, MessageHandler] = {}

    @contextmanager
    def expect(self, msg_id: str, handler: MessageHandler) -> Iterator[None]:
        """Send every message whose parent is ``msg_id`` to ``handler``; enter before sending.

        Raises:
            ValueError: ``msg_id`` is empty or already waited for.
        """
        if not msg_id or msg_id in self._handlers:
            raise ValueError(f"{msg_id!r} is empty or already waited for")
        self._handlers[msg_id] = handler
        try:
            yield
        finally:
            del self._handlers[msg_id]

    def deliver(self, message: Message) -> None:
        """Hand ``message`` to its handler; `ChannelSet` calls this for each one it reads."""
        self._handlers.get(message.parent_id, self._on_foreign)(message)
