"""A server that nobody started by hand: it is there when somebody needs it, once, and goes by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import anyio
import pytest
from tests.jupyter.conftest import Jupyter, await_server_end

from sagebroker.client import ensure_server
from sagebroker.config import BrokerConfig, ServeConfig
from sagebroker.errors import KernelError, ServerError
from sagebroker.jupyter.link import Link, broker_request
from sagebroker.places import server_lock, server_log
from sagebroker.server.serve import serve

GUARD_S = 60.0


@pytest.fixture
def short_lived(prepared: Jupyter) -> Iterator[BrokerConfig]:
    """A configuration whose servers end a second after their last visitor. Afterwards none runs."""
    config = prepared.config.model_copy(
        update={
            "serve": ServeConfig(idle_limit_s=1.0),
            "engine_url": f"unix://{prepared.folder}/none",
        }
    )
    yield config
    await_server_end(config)


async def test_several_who_need_a_server_at_once_get_one_which_ends_when_all_have_left(
    short_lived: BrokerConfig,
) -> None:
    processes: set[str] = set()

    async def need() -> None:
        assert await Link(short_lived).sessions() == []
        processes.add(server_lock(short_lived).read_text())

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(need)
    [process] = processes
    # Of its own process session: what is typed in the terminal of whoever started it does not reach it.
    assert os.getsid(int(process)) == int(process)
    await_server_end(short_lived)


async def test_a_server_that_has_ended_is_started_once_more(short_lived: BrokerConfig) -> None:
    await ensure_server(short_lived)
    first = server_lock(short_lived).read_text()
    os.kill(int(first), signal.SIGKILL)
    assert await Link(short_lived).sessions() == []
    assert server_lock(short_lived).read_text() != first


async def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(
    prepared: Jupyter,
) -> None:
    config = prepared.config.model_copy(update={"runtime_dir": prepared.folder / ("long" * 30)})
    with pytest.raises(
        ServerError, match=r"(?s)ended at once.*cannot be made: AF_UNIX path too long"
    ):
        await ensure_server(config)
    assert server_log(config).stat().st_mode & 0o777 == 0o600


async def test_a_server_starts_with_the_configuration_of_whoever_needs_it(
    short_lived: BrokerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in short_lived.as_environment().items():
        monkeypatch.setenv(name, value)
    told = BrokerConfig.load()
    assert told == short_lived
    assert told.serve.model_fields_set == {"idle_limit_s"}


async def test_a_server_without_a_port_needs_no_token_and_listens_at_sockets_only(
    short_lived: BrokerConfig,
) -> None:
    config = short_lived.model_copy(update={"serve": ServeConfig(host="0.0.0.0", idle_limit_s=0.5)})
    urls = []
    with anyio.fail_after(GUARD_S):
        await serve(config, is_local=True, on_ready=lambda serving: urls.append(serving.url))
    assert urls == [""]


async def test_sessions_are_opened_found_and_closed(jupyter: Jupyter) -> None:
    link = jupyter.link
    connection, is_new = await link.open("a")
    assert (is_new, connection["session"], connection["transport"]) == (True, "a", "ipc")
    again, is_new = await link.open("a")
    assert (is_new, again) == (False, connection)
    assert link.is_there(connection)
    other = await link.open_new("mine")
    assert other["session"].startswith("mine-")
    assert await jupyter.names() == ["a", other["session"]]
    assert await link.interrupt("a") == "Nothing runs in session 'a'."
    assert await link.restart("a")
    await link.close("a")
    assert not link.is_there(connection)
    with pytest.raises(ServerError, match="There is no session named 'a'"):
        await link.close("a")


async def test_the_broker_answers_what_jupyters_protocol_has_no_words_for(jupyter: Jupyter) -> None:
    connection, _ = await jupyter.link.open("a")
    info = await broker_request(connection, "info")
    assert (info["name"], info["id"]) == ("a", connection["session_id"])
    assert (info["state"], info["generation"]) == ("ready", 1)
    restarted = await broker_request(connection, "restart", limit_s=GUARD_S, restore=False)
    assert restarted["sentence"]
    assert (await broker_request(connection, "info"))["generation"] == 2
    with pytest.raises(KernelError, match="dance"):
        await broker_request(connection, "dance")
    await jupyter.link.close("a")
    with pytest.raises(ServerError, match=r"Nobody has answered for session 'a' within 0\.5 s"):
        await broker_request(connection, "info", limit_s=0.5)
