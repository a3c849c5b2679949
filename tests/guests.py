"""A Jupyter client of a session's endpoint, as jupyter_client makes one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from jupyter_client.asynchronous.client import AsyncKernelClient

from sagebroker.broker import Broker
from sagebroker.session.connecting import CONNECTION_FILE
from sagebroker.session.session import Session
from sagebroker.store.folders import StateFolder

GUARD_S = 20.0
Message = dict[str, Any]


def file_of(broker: Broker, session: Session) -> Path:
    return StateFolder(broker.config.state_dir).folder(session.id).path / CONNECTION_FILE


@asynccontextmanager
async def guest(path: Path) -> AsyncIterator[AsyncKernelClient]:
    """A client that is connected, and hears outputs."""
    client = AsyncKernelClient()
    client.load_connection_file(str(path))
    client.start_channels()
    try:
        with anyio.fail_after(GUARD_S):
            await client.wait_for_ready(timeout=GUARD_S)
        yield client
    finally:
        client.stop_channels()


async def reply_to(client: AsyncKernelClient, msg_id: str, channel: str = "shell") -> Message:
    with anyio.fail_after(GUARD_S):
        while True:
            message: Message = await getattr(client, f"{channel}_channel").get_msg()
            if message["parent_header"].get("msg_id") == msg_id:
                return message


async def outputs_of(client: AsyncKernelClient, msg_id: str) -> list[Message]:
    """What iopub says of a request, up to its ``idle``."""
    found: list[Message] = []
    with anyio.fail_after(GUARD_S):
        while True:
            message: Message = await client.iopub_channel.get_msg()
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            found.append(message)
            if message["content"].get("execution_state") == "idle":
                return found


async def run(
    client: AsyncKernelClient, code: str, **options: Any
) -> tuple[Message, list[Message]]:
    """Reply and outputs of a cell."""
    msg_id = client.execute(code, **options)
    outputs = await outputs_of(client, msg_id)
    return await reply_to(client, msg_id), outputs


async def echo(client: AsyncKernelClient, data: Message, blocks: list[bytes]) -> Message:
    """What a widget that sends back everything makes of data and buffers: its message."""
    await run(
        client,
        "from comm import create_comm\n"
        "def back(comm, message):\n"
        "    comm.on_msg(lambda m: comm.send(m['content']['data'], buffers=m['buffers']))\n"
        "get_ipython().kernel.comm_manager.register_target('echo', back)",
    )
    opened = client.session.msg("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}})
    client.shell_channel.send(opened)
    sent = client.session.msg("comm_msg", {"comm_id": "c", "data": data})
    client.session.send(client.shell_channel.socket, sent, buffers=blocks)
    found = await outputs_of(client, sent["header"]["msg_id"])
    [back] = [message for message in found if message["msg_type"] == "comm_msg"]
    return back


def texts(outputs: list[Message]) -> str:
    """Streams and results, in order."""
    said = (
        message["content"].get("text") or message["content"].get("data", {}).get("text/plain", "")
        for message in outputs
    )
    return "".join(said)
