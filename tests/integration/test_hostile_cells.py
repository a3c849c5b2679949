"""What code in a cell may do to its own kernel's wire, and what that does to its session."""

from __future__ import annotations

import anyio
import pytest
from tests.cells import ended

from sagebroker.broker import Broker
from sagebroker.session.session import Session

OVERSIZED_FRAME = """
import zmq
socket = get_ipython().kernel.iopub_socket
send = getattr(socket, "send_multipart")
send([b"x" * (200 * 2**20)])
"""

UNSIGNED_MESSAGES = """
socket = get_ipython().kernel.iopub_socket
for _ in range(5000):
    socket.send_multipart([b"", b"<IDS|MSG>", b"0" * 64, b"{}", b"{}", b"{}", b"{}"])
"""

FORGED_IDLE = """
kernel = get_ipython().kernel
kernel.session.send(kernel.iopub_socket, "status", {"execution_state": "idle"},
                    parent=kernel.get_parent("shell"))
import time; time.sleep(1.5)
print("after the forgery")
"""

DELETED_SOCKETS = """
import glob, os, json
from ipykernel.connect import get_connection_file
prefix = json.load(open(get_connection_file()))["ip"]
for path in glob.glob(prefix + "-*"):
    os.remove(path)
"""


async def usable(session: Session) -> bool:
    """Whether the session computes and shows, perhaps with another kernel."""
    with anyio.fail_after(60):
        for _ in range(5):
            cell = await ended(session, "print('here'); 6 * 7", time_limit_s=10)
            shown = [o.data.get("text/plain") for o in cell.outputs.displays]
            if shown == ["42"] and "here" in cell.outputs.stdout.text(100):
                return True
    return False


@pytest.mark.parametrize(
    "code",
    [OVERSIZED_FRAME, UNSIGNED_MESSAGES, FORGED_IDLE, DELETED_SOCKETS],
    ids=["oversized frame", "unsigned messages", "forged idle", "deleted sockets"],
)
async def test_a_cell_that_attacks_the_wire_harms_its_own_session_at_most(
    broker: Broker, code: str
) -> None:
    other, _ = await broker.open_session("other")
    await ended(other, "keep = 5")
    session, _ = await broker.open_session("default")
    await ended(session, code, time_limit_s=10)
    assert await usable(session)
    cell = await ended(other, "keep")
    assert [o.data.get("text/plain") for o in cell.outputs.displays] == ["5"]
    assert other.info().kernel_generation == 1


async def test_output_lost_with_a_broken_channel_is_said(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "keep = 5")
    cell = await ended(session, OVERSIZED_FRAME + "\nimport time; time.sleep(3)", time_limit_s=20)
    assert cell.output_lost
    after = await ended(session, "keep")
    assert [o.data.get("text/plain") for o in after.outputs.displays] == ["5"]
