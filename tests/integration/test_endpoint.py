"""Jupyter clients on a session's endpoint, with the broker's own callers beside them."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from tests.cells import ended, result
from tests.guests import echo, file_of, guest, reply_to, run, texts

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig, JupyterConfig
from sagebroker.model import CellStatus
from sagebroker.testing.local_runtime import LocalRuntime

GUARD_S = 20.0


async def test_variables_are_shared_and_clients_cells_are_in_the_transcript(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    await ended(session, "agents = 20")
    async with guest(file_of(broker, session)) as client:
        reply, outputs = await run(client, "x = agents + 1; print('said'); x")
    assert reply["content"]["status"] == "ok"
    assert texts(outputs) == "said\n21"
    assert result(await ended(session, "x * 2")) == "42"
    cell = session.cell(2)
    assert (cell.author, cell.status, result(cell)) == ("jupyter", CellStatus.OK, "21")
    assert session.take_guest_cells() == [2]


async def test_messages_are_passed_on_byte_for_byte(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        blocks = [os.urandom(5 * 2**20), b"", os.urandom(3)]
        back = await echo(client, {"n": 1}, blocks)
    assert back["content"]["data"] == {"n": 1}
    assert [bytes(block) for block in back["buffers"]] == blocks
    assert session.info().cells == 1


async def test_an_interrupt_stops_a_clients_cell_and_keeps_its_variables(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        await run(client, "kept = 1")
        msg_id = client.execute("import time\nwhile True: time.sleep(0.01)")
        await _until_running(session)
        asked = client.session.msg("interrupt_request", {})
        client.control_channel.send(asked)
        answer = await reply_to(client, asked["header"]["msg_id"], "control")
        assert answer["content"] == {"status": "ok"}
        assert (await reply_to(client, msg_id))["content"]["ename"] == "KeyboardInterrupt"
        assert texts((await run(client, "kept"))[1]) == "1"


async def test_a_request_to_shut_down_is_answered_and_not_obeyed(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        await run(client, "kept = 1")
        client.shutdown()
        answer = await client.control_channel.get_msg(timeout=GUARD_S)
        assert answer["msg_type"] == "shutdown_reply"
        await run(client, "exit")
        assert texts((await run(client, "kept"))[1]) == "1"
    assert session.info().kernel_generation == 1


async def test_a_client_is_told_of_the_death_of_its_kernel_and_goes_on(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        await run(client, "kept = 1")
        await session.checkpoint()
        reply, outputs = await run(client, "import os; os.kill(os.getpid(), 9)")
        assert reply["content"]["status"] == "error"
        assert "SIGKILL" in reply["content"]["evalue"]
        assert [m["content"]["evalue"] for m in outputs if m["msg_type"] == "error"] == [
            reply["content"]["evalue"]
        ]
        with anyio.fail_after(GUARD_S):
            while True:
                message = await client.iopub_channel.get_msg()
                if message["content"].get("execution_state") == "restarting":
                    break
        assert texts((await run(client, "kept"))[1]).endswith("1")


async def test_a_client_whose_kernel_died_meanwhile_is_told_with_its_next_cell(
    broker: Broker, runtime: LocalRuntime
) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        await run(client, "kept = 1")
        pid = int(texts((await run(client, "import os; os.getpid()"))[1]))
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(GUARD_S):
            while session.info().kernel_generation < 2:
                await anyio.sleep(0.05)
        _, outputs = await run(client, "kept")
        [told] = [m["content"]["text"] for m in outputs if m["msg_type"] == "stream"]
        assert "SIGKILL" in told
        _, outputs = await run(client, "kept")
        assert not [m for m in outputs if m["msg_type"] == "stream"]
    # The agent is told, too.
    assert any("SIGKILL" in notice for notice in session.take_notices())


async def test_questions_are_answered_while_a_cell_runs(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        await run(client, "a_long_name = 1; import time")
        running = session.submit("while True: time.sleep(0.01)")
        await _until_running(session)
        for ask, expected in (
            (client.kernel_info, "implementation"),
            (partial(client.complete, "a_long_n"), "matches"),
            (partial(client.history, n=1, hist_access_type="tail"), "history"),
            (partial(client.is_complete, "1"), "status"),
            (client.comm_info, "status"),
            (partial(client.inspect, "a_long_name"), "found"),
        ):
            content = (await reply_to(client, ask()))["content"]
            assert content[expected], content
            if expected == "matches":
                assert content["matches"] == ["a_long_name"]
            if expected == "history":
                assert content["history"][0][2] == running.code
        await session.interrupt()


async def test_what_a_failed_cell_has_behind_it_is_aborted_and_others_cells_are_not(
    broker: Broker,
) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    async with guest(path) as first, guest(path) as second:
        blocking = session.submit("import time; time.sleep(0.5)")
        wrong = first.execute("1/0")
        behind = [first.execute(f"n = {n}") for n in range(30)]
        beside = [second.execute(f"m = {n}") for n in range(20)]
        assert (await reply_to(first, wrong))["content"]["ename"] == "ZeroDivisionError"
        statuses = [(await reply_to(first, msg_id))["content"]["status"] for msg_id in behind]
        assert statuses == ["aborted"] * 30
        statuses = [(await reply_to(second, msg_id))["content"]["status"] for msg_id in beside]
        assert statuses == ["ok"] * 20
        assert blocking.status is CellStatus.OK
        assert result(await ended(session, "m")) == "19"


async def test_who_asks_is_answered_and_nobody_else(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    async with guest(path) as first, guest(path) as second:
        msg_id = first.execute("input('name? ')", allow_stdin=True)
        with anyio.fail_after(GUARD_S):
            asked = await first.stdin_channel.get_msg()
        assert asked["content"]["prompt"] == "name? "
        second.input("wrong")
        first.input("right")
        assert (await reply_to(first, msg_id))["content"]["status"] == "ok"
        assert texts((await run(first, "_"))[1]) == "'right'"
        reply, _ = await run(first, "input()", allow_stdin=False)
        assert reply["content"]["ename"] == "StdinNotImplementedError"


async def test_the_sockets_are_put_back_when_somebody_removes_them(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    connection = json.loads(path.read_text())
    folder = Path(connection["ip"]).parent
    names = [folder / f"k-{number}" for number in range(1, 6)]
    for name in names:
        name.unlink()
    with anyio.fail_after(GUARD_S):
        while not all(name.is_socket() for name in names):
            await anyio.sleep(0.05)
    async with guest(path) as client:
        assert texts((await run(client, "1"))[1]) == "1"


async def test_a_client_goes_on_with_the_next_broker(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default", keep=True)
        path = file_of(broker, session)
        before = path.read_bytes()
        connected = guest(path)
        client = await connected.__aenter__()
        await run(client, "kept = 7")
    msg_id = client.execute("kept")
    left = Path(json.loads(before)["ip"]).with_name("s0a1b2")
    left.parent.mkdir(mode=0o700, exist_ok=True)
    left.touch()  # as by a process that was killed
    async with Broker(config, runtime) as broker:
        session, _ = await broker.open_session("default")
        assert not left.exists()
        assert path.read_bytes() == before
        assert (await reply_to(client, msg_id))["content"]["status"] == "ok"
        assert result(session.cell(2)) == "7"
        await connected.__aexit__(None, None, None)
        await session.aclose()
    assert not Path(json.loads(before)["ip"]).parent.exists()


async def test_a_session_that_fell_asleep_wakes_with_a_clients_next_cell(
    impatient: BrokerConfig, runtime: LocalRuntime
) -> None:
    async with Broker(impatient, runtime) as broker:
        session, _ = await broker.open_session("default")
        async with guest(file_of(broker, session)) as client:
            await run(client, "kept = 7")
            with anyio.fail_after(GUARD_S):
                while broker.open_one("default") is not None:
                    await anyio.sleep(0.05)
            _, outputs = await run(client, "print(kept)")
        assert "7\n" in texts(outputs)
        assert "was asleep and is awake again" in texts(outputs)
        await broker.close_session("default")


async def test_a_client_of_another_machine_connects_encrypted_at_the_same_place_each_time(
    config: BrokerConfig, runtime: LocalRuntime
) -> None:
    remote = config.model_copy(update={"jupyter": JupyterConfig(tcp_host="127.0.0.1")})
    async with Broker(remote, runtime) as broker:
        session, _ = await broker.open_session("default", keep=True)
        path = file_of(broker, session).with_name("connection-tcp.json")
        before = path.read_bytes()
        told = json.loads(before)
        assert (told["transport"], told["ip"]) == ("tcp", "127.0.0.1")
        assert told == await broker.directory.connection("default", is_remote=True)
        async with guest(path) as client, guest(file_of(broker, session)) as near:
            assert texts((await run(client, "kept = 1; kept"))[1]) == "1"
            assert texts((await run(near, "kept + 1"))[1]) == "2"
        # Without the keys nobody gets a word through.
        bare = path.with_name("bare.json")
        bare.write_text(json.dumps({k: told[k] for k in told if not k.startswith("curve")}))
        stranger = AsyncKernelClient()
        stranger.load_connection_file(str(bare))
        stranger.start_channels()
        stranger.execute("kept = 2")
        with anyio.move_on_after(1):
            await stranger.shell_channel.get_msg()
            raise AssertionError("it was answered")
        stranger.stop_channels()
    async with Broker(remote, runtime) as broker:
        session, _ = await broker.open_session("default")
        assert path.read_bytes() == before
        async with guest(path) as client:
            assert texts((await run(client, "kept"))[1]) == "1"
        await session.aclose()


async def test_a_client_restarts_the_session_and_the_others_are_told(broker: Broker) -> None:
    session, _ = await broker.open_session("default")
    path = file_of(broker, session)
    async with guest(path) as first, guest(path) as second:
        await run(first, "kept = 1")
        before = await order(first, action="info")
        assert (before["name"], before["state"], before["generation"]) == ("default", "ready", 1)
        await session.checkpoint()
        done = await order(first, action="restart", restore=True)
        assert done["status"] == "ok"
        assert "1 variables" in done["sentence"]
        assert (await order(second, action="info"))["generation"] == 2
        _, outputs = await run(second, "kept")
        assert "The kernel was replaced on request." in texts(outputs)
        assert texts(outputs).endswith("1")
        # Whoever restarts a kernel knows; others are told.
        await session.restart()
        with anyio.fail_after(GUARD_S):
            while True:
                message = await second.iopub_channel.get_msg()
                if message["content"].get("execution_state") == "restarting":
                    break
    assert (await order_of_nothing(broker)) == "error"


async def order_of_nothing(broker: Broker) -> str:
    async with guest(file_of(broker, broker.session("default"))) as client:
        return str((await order(client, action="dance"))["status"])


async def order(client: AsyncKernelClient, **content: object) -> dict[str, Any]:
    asked = client.session.msg("broker_request", content)
    client.control_channel.send(asked)
    answer = await reply_to(client, asked["header"]["msg_id"], "control")
    found: dict[str, Any] = answer["content"]
    return found


@pytest.mark.parametrize("code", ["1/0", "raise SystemExit", "def f(:"])
async def test_an_error_of_the_users_is_the_kernels_own_reply(broker: Broker, code: str) -> None:
    session, _ = await broker.open_session("default")
    async with guest(file_of(broker, session)) as client:
        reply, _ = await run(client, code)
        assert reply["content"]["status"] == "error"
        assert reply["content"]["traceback"]


async def _until_running(session: object) -> None:
    with anyio.fail_after(GUARD_S):
        while getattr(session, "current", None) is None:
            await anyio.sleep(0.01)
        await anyio.sleep(0.1)
