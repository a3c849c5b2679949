"""Many clients of many kinds on one session at once: slow, hostile and impatient ones among them.

``SAGEBROKER_TEST_TRAFFIC_S`` makes the random traffic last longer than it does by default.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import anyio
import psutil
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from tests.cells import ended, result
from tests.guests import echo, file_of, guest, outputs_of, reply_to, run, texts

from sagebroker.broker import Broker
from sagebroker.model import CellStatus
from sagebroker.session.session import Session

TRAFFIC_S = float(os.environ.get("SAGEBROKER_TEST_TRAFFIC_S", "15"))
GUARD_S = 60.0
SWEEPS = 300
LISTENER = """
import sys, time
from jupyter_client.blocking.client import BlockingKernelClient
client = BlockingKernelClient()
client.load_connection_file(sys.argv[1])
client.start_channels()
client.wait_for_ready(timeout=30)
print("ready", flush=True)
time.sleep(600)
"""


async def test_an_interrupt_at_any_moment_costs_no_reply_and_hits_no_later_cell(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        await run(client, "import time")
        for turn in range(SWEEPS):
            msg_id = client.execute("time.sleep(0.005)")
            await anyio.sleep(0.012 * turn / SWEEPS)
            client.control_channel.send(client.session.msg("interrupt_request", {}))
            reply = await reply_to(client, msg_id)
            assert reply["content"]["status"] == "ok" or (
                reply["content"]["ename"] == "KeyboardInterrupt"
            )
            following = await reply_to(client, client.execute(f"n = {turn}"))
            assert following["content"]["status"] == "ok", (turn, following["content"])
    assert result(await ended(session, "n")) == str(SWEEPS - 1)
    assert session.info().kernel_generation == 1


class Traffic:
    """What one client does at random, and what it checks."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.random = random.Random(seed)
        self.cells = 0
        self.until = time.monotonic() + TRAFFIC_S

    def next_code(self) -> tuple[str, str]:
        """Code, and what its output must be."""
        self.cells += 1
        mark = f"{self.name}-{self.cells}"
        match self.random.randrange(4):
            case 0:
                return f"import time; time.sleep({self.random.random() / 20}); '{mark}'", repr(mark)
            case 1:
                return f"for n in range(100): print('{mark}')", f"{mark}\n" * 100
            case 2:
                return f"{self.name}_last = '{mark}'; {self.name}_last", repr(mark)
        return f"print('{mark}' * 1000)", mark * 1000 + "\n"

    async def as_guest(self, client: AsyncKernelClient) -> None:
        """Cells one by one or some at once, each answered once and in order, questions in between."""
        while time.monotonic() < self.until:
            sent = [self.next_code() for _ in range(self.random.choice((1, 1, 1, 5)))]
            ids = [client.execute(code) for code, _ in sent]
            for msg_id, (_, expected) in zip(ids, sent, strict=True):
                assert texts(await outputs_of(client, msg_id)) == expected
                with anyio.fail_after(GUARD_S):
                    reply = await client.shell_channel.get_msg()
                assert reply["parent_header"]["msg_id"] == msg_id
                assert reply["content"]["status"] == "ok"
            if self.random.random() < 0.3:
                asked = client.complete(f"{self.name}_la")
                assert (await reply_to(client, asked))["content"]["status"] == "ok"

    async def as_agent(self, session: Session) -> None:
        while time.monotonic() < self.until:
            code, expected = self.next_code()
            cell = await ended(session, code)
            shown = [o.data["text/plain"] for o in cell.outputs.displays]
            assert (shown or [cell.outputs.stdout.text()]) == [expected]


async def test_random_traffic_of_five_clients_is_answered_once_each_in_order_and_kept(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    all_of_them = [Traffic(f"client{n}", n) for n in range(5)]
    async with (
        guest(path) as a,
        guest(path) as b,
        guest(path) as c,
        guest(path) as d,
        anyio.create_task_group() as tg,
    ):
        for traffic, client in zip(all_of_them, (a, b, c, d), strict=False):
            tg.start_soon(traffic.as_guest, client)
        tg.start_soon(all_of_them[-1].as_agent, session)
    cells = await broker.directory.list_cells("default", 10**6)
    assert len(cells) == sum(traffic.cells for traffic in all_of_them)
    assert {cell.status for cell in cells} == {CellStatus.OK}
    by_agent = [cell for cell in cells if cell.author == "api"]
    assert len(by_agent) == all_of_them[-1].cells


async def test_fifty_megabytes_of_buffers_come_back_as_they_were(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        block = os.urandom(50 * 10**6)
        back = await echo(client, {}, [block])
    assert bytes(back["buffers"][0]) == block


async def test_a_client_that_does_not_read_harms_neither_broker_nor_others(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    with subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [sys.executable, "-c", LISTENER, str(path)], stdout=subprocess.PIPE
    ) as stopped:
        try:
            assert stopped.stdout is not None
            await anyio.to_thread.run_sync(stopped.stdout.readline)
            stopped.send_signal(signal.SIGSTOP)
            before = psutil.Process().memory_info().rss
            async with guest(path) as client:
                for _ in range(5):
                    _, outputs = await run(client, "for n in range(2000): display('x' * 1000)")
                    shown = [m for m in outputs if m["msg_type"] == "display_data"]
                    assert len(shown) == 2000
                assert psutil.Process().memory_info().rss - before < 400 * 2**20
        finally:
            stopped.kill()


async def test_what_no_client_would_send_is_passed_over(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    connection = json.loads(path.read_text())
    context = zmq.asyncio.Context()
    sockets = [context.socket(zmq.DEALER) for _ in range(5)]
    try:
        for port, socket in enumerate(sockets, 1):
            socket.connect(f"ipc://{connection['ip']}-{port}")
            for frames in (
                [b""],
                [b"<IDS|MSG>"],
                [b"<IDS|MSG>", b"0" * 64, b"{}", b"{}", b"{}", b"{}"],
                [b"x"] * 500,
                [b"<IDS|MSG>", b"", b"[" * 10**6, b"{}", b"{}", b"{}"],
            ):
                await socket.send_multipart(frames)
            # Begun, and never ended.
            await socket.send(b"more", zmq.SNDMORE)
        async with guest(path) as client:
            codes: list[object] = [None, 7, ["a"], {}]
            for code in codes:
                message = client.session.msg("execute_request", {"code": code})
                client.shell_channel.send(message)
                reply = await reply_to(client, message["header"]["msg_id"])
                assert reply["content"]["status"] == "error"
            for msg_type in ("debug_request", "create_subshell_request", "nonsense_request"):
                message = client.session.msg(msg_type, {})
                client.control_channel.send(message)
                reply = await reply_to(client, message["header"]["msg_id"], "control")
                assert reply["content"]["ename"] == "UnsupportedRequest"
            assert texts((await run(client, "6 * 7"))[1]) == "42"
    finally:
        for socket in sockets:
            socket.close(linger=0)
        context.term()


async def test_of_two_requests_with_one_id_the_second_is_refused(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        content = {"code": "import time; time.sleep(0.3)", "silent": False}
        message = client.session.msg("execute_request", content)
        client.shell_channel.send(message)
        client.shell_channel.send(message)
        replies = [
            (await reply_to(client, message["header"]["msg_id"]))["content"]["status"]
            for _ in range(2)
        ]
        assert replies == ["error", "ok"]
