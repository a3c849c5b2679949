"""`Orders`: what Jupyter clients want of the broker rather than of the kernel: to interrupt, to restart, to end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sagebroker.errors import BrokerError, WireError
from sagebroker.session import replies

if TYPE_CHECKING:
    from sagebroker.protocol.messages import Channel, Message
    from sagebroker.session.parties import House, Outward

BROKER_REQUEST: Final = "broker_request"
"""Not of Jupyter's protocol: ``{"action": "info" | "interrupt" | "restart" | "keep"}``, on control."""
ORDERS: Final = frozenset({"interrupt_request", "shutdown_request", BROKER_REQUEST})


class Orders:
    """See the module.

    Args:
        house: Where the session is.
        endpoint: Where answers go.
        may_interrupt_all: Whether a client may interrupt others' cells, too.
    """

    def __init__(self, house: House, endpoint: Outward, *, may_interrupt_all: bool) -> None:
        self._house = house
        self._endpoint = endpoint
        self._may_interrupt_all = may_interrupt_all
        self.is_restarting = False
        """A client wishes the new kernel that comes next."""

    async def carry_out(self, channel: Channel, client: bytes, message: Message) -> None:
        """Do what a client's message orders, and answer it."""
        header = message.frames[0]
        try:
            match message.msg_type:
                case "interrupt_request":
                    await self._interrupt(channel, client, header)
                    return
                case "shutdown_request":
                    # Others use the kernel, too: the client leaves, and no more.
                    restart = message.content.get("restart") is True
                    content: dict[str, Any] = {"status": "ok", "restart": restart}
                case _:
                    content = await self._broker_request(message.content)
        except BrokerError as error:
            content = replies.failure(error)
        msg_type = replies.type_of(message.msg_type)
        self._endpoint.reply(channel, client, header, msg_type, content)

    async def _interrupt(self, channel: Channel, client: bytes, header: bytes) -> None:
        """Stop what runs. It is answered at once: the client sees the end by the cell's own reply."""
        session = self._house.session
        cell = None if session is None else session.current
        content: dict[str, Any] = {"status": "ok"}
        if cell is not None and cell.client != client and not self._may_interrupt_all:
            cell = None
            content = replies.failure(WireError("What runs is another client's cell."))
        self._endpoint.reply(channel, client, header, "interrupt_reply", content)
        if session is not None and cell is not None:
            await session.cancel(cell, "request")

    async def _broker_request(self, content: dict[str, Any]) -> dict[str, Any]:
        match content.get("action"):
            case "info":
                return replies.session_info(self._house.session)
            case "interrupt":
                session = self._house.session
                done = None if session is None else await session.interrupt()
                return {"status": "ok", "sentence": replies.interrupted(done)}
            case "restart":
                return await self._restart(content.get("restore", False))
            case "keep":
                await (await self._house.awake()).keep_running()
                return {"status": "ok"}
        return replies.unsupported(f"The action {content.get('action')!r}")

    async def _restart(self, restore: object) -> dict[str, Any]:
        session = await self._house.awake()
        wanted = restore if isinstance(restore, (bool, int, str)) else False
        order = await session.restore_order(wanted)
        self.is_restarting = True
        try:
            sentence = await session.restart(restore=order)
        finally:
            self.is_restarting = False
        return {"status": "ok", "sentence": sentence}
