"""Ending the real stdio server: no container and no socket is left, and the variables are."""

from __future__ import annotations

import os
import signal
import sys

import anyio
import pytest
from tests.cells import ended, result
from tests.interaction.raw_client import CLIENT_PATIENCE_S, raw_server

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig

pytestmark = pytest.mark.sage


@pytest.mark.parametrize("end", ["eof", "SIGTERM", "SIGINT"])
async def test_a_server_that_has_ended_leaves_its_variables_and_nothing_else(
    config: BrokerConfig, sage_image: str, end: str
) -> None:
    env = {
        **os.environ,
        "SAGEBROKER_STATE_DIR": str(config.state_dir),
        "SAGEBROKER_RUNTIME_DIR": str(config.runtime_dir),
        "SAGEBROKER_KERNEL__IMAGE": sage_image,
    }
    async with raw_server([sys.executable, "-m", "sagebroker", "mcp"], env) as client:
        assert await client.run("factor(2^64 + 1)") == "274177 * 67280421310721"
        await client.run("R.<x> = QQ[]\nf = x^4 - 1\nf")
        await client.send(
            "tools/call", {"name": "sage_run", "arguments": {"code": "while True: pass"}}
        )
        if end == "eof":
            await client.close_stdin()
        else:
            os.kill(client.process.pid, signal.Signals[end])
        with anyio.fail_after(CLIENT_PATIENCE_S):
            assert await client.process.wait() == (130 if end == "SIGINT" else 0)
    async with Broker(config) as broker:
        runtime = await broker.runtime()
        assert await runtime.list(broker.own_labels) == []
        assert not list(config.runtime_dir.glob("*"))
        session = await broker.awake("default")
        assert result(await ended(session, "factor(f)")) == "(x - 1) * (x + 1) * (x^2 + 1)"
        await broker.close_session("default")
