"""MCP over HTTP as users meet it: tokens, names, owners, limits, the server's end."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client
from tests.interaction.calling import call, run, run_on
from tests.interaction.conftest import local_serve, local_server
from tests.interaction.reading import is_error, result_text, status, text_of
from tests.serving import Served, make_token, serving, serving_in

from sagebroker.client import ask_server
from sagebroker.config import BrokerConfig
from sagebroker.errors import ServerError
from sagebroker.server.auth import METRICS, READ, RUN

GUARD_S = 90.0
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
HEADERS = {"Accept": "application/json, text/event-stream"}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Served]:
    async with serving_in(local_serve, "http", SAGEBROKER_USERS__TOTAL_SESSIONS="1000") as found:
        yield found


@pytest.fixture
def served(server: Served) -> Served:
    """A server that has given out a token."""
    return server.for_one_test()


async def post(served: Served, headers: dict[str, str], **body: object) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        return await http.post(served.url, json=INITIALIZE | body, headers=HEADERS | headers)


async def test_two_users_have_the_same_names_and_nothing_else_in_common(
    served: Served, era: str
) -> None:
    async with (
        served.client(served.token("alice"), mode=era) as alice,
        served.client(served.token("bob"), mode=era) as bob,
    ):
        await run(alice, "x = 'of alice'")
        await run(bob, "x = 'of bob'")
        assert result_text(await run(alice, "x")) == "'of alice'"
        assert result_text(await run(bob, "x")) == "'of bob'"
        await call(alice, "sage_open", name="secret")
        foreign = await call(bob, "sage_wait", session="secret", cell=1)
        missing = await call(bob, "sage_wait", session="absent", cell=1)
        assert is_error(foreign)
        assert text_of(foreign).replace("secret", "absent") == text_of(missing)
        assert "secret" not in text_of(await call(bob, "sage_sessions"))


async def test_two_tokens_of_one_user_open_the_same_sessions(served: Served, era: str) -> None:
    async with served.client(served.token("alice"), mode=era) as first:
        await run(first, "x = 7")
    async with served.client(served.token("alice", note="another"), mode=era) as second:
        assert result_text(await run(second, "x")) == "7"


@pytest.mark.parametrize(
    ("token", "code"),
    [("", 401), ("sbt_00000000_nonsense", 401), ("expired", 401), ("revoked", 401)],
)
async def test_without_a_valid_token_there_is_one_and_the_same_answer(
    served: Served, token: str, code: int
) -> None:
    if token == "expired":
        token = served.token("alice", lasts_s=-1)
    if token == "revoked":
        token = served.token("alice")
        command = [sys.executable, "-m", "sagebroker", "token", "revoke", served.user("alice")]
        env = {**os.environ, "SAGEBROKER_STATE_DIR": str(served.state_dir)}
        await anyio.run_process(command, env=env)
    answer = await post(served, {"Authorization": f"Bearer {token}"} if token else {})
    assert answer.status_code == code
    assert answer.json() == {
        "error": "invalid_token",
        "error_description": "Authentication required",
    }


async def test_a_token_that_is_revoked_ends_in_the_running_server(served: Served) -> None:
    token = served.token("alice")
    assert (await post(served, {"Authorization": f"Bearer {token}"})).status_code == 200
    command = [sys.executable, "-m", "sagebroker", "token", "revoke", token.split("_")[1]]
    env = {**os.environ, "SAGEBROKER_STATE_DIR": str(served.state_dir)}
    await anyio.run_process(command, env=env)
    assert (await post(served, {"Authorization": f"Bearer {token}"})).status_code == 401


async def test_a_token_for_reading_reads_and_changes_nothing(served: Served, era: str) -> None:
    async with served.client(served.token("alice", RUN), mode=era) as writer:
        await run(writer, "x = 1; x")
    async with served.client(served.token("alice", READ), mode=era) as reader:
        assert "default" in text_of(await call(reader, "sage_sessions"))
        assert "1" in text_of(await call(reader, "sage_output", session="default", cell=1))
        for tool, arguments in (
            ("sage_run", {"code": "x = 2"}),
            ("sage_close", {"session": "default"}),
            ("sage_open", {"name": "more"}),
            ("sage_interrupt", {}),
        ):
            refused = await call(reader, tool, **arguments)
            assert is_error(refused)
            assert RUN in text_of(refused)
    async with served.client(served.token("alice", RUN), mode=era) as writer:
        assert result_text(await run(writer, "x")) == "1"


async def test_a_token_for_metrics_opens_no_session(served: Served) -> None:
    answer = await post(served, {"Authorization": f"Bearer {served.token('ops', METRICS)}"})
    assert answer.status_code == 403
    assert "insufficient_scope" in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example:80"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_foreign_names_and_pages_are_refused_before_any_token_is_looked_at(
    served: Served, headers: dict[str, str], code: int
) -> None:
    bearer = {"Authorization": f"Bearer {served.token('alice')}"}
    refused = await post(served, headers | bearer)
    assert refused.status_code == code
    assert "serve.allowed_" in refused.json()["error"]
    assert (await post(served, headers)).status_code == code


async def test_a_request_that_is_too_large_is_refused_and_the_next_one_served(
    served: Served,
) -> None:
    bearer = {"Authorization": f"Bearer {served.token('alice')}"}
    assert (await post(served, bearer, filler="x" * 7 * 2**20)).status_code == 413
    assert (await post(served, bearer)).status_code == 200


async def test_health_is_told_to_anybody_and_readiness_by_the_engine(served: Served) -> None:
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        for path in ("/healthz", "/readyz"):
            answer = await http.get(served.base + path, headers={"Host": "10.1.2.3"})
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_metrics_count_calls_sessions_and_events_for_whoever_may_read_them(
    short_dir: Path, era: str
) -> None:
    make_token(short_dir / "state", "nobody")
    async with (
        serving(local_serve(short_dir), short_dir / "state") as served,
        served.client(served.token("alice"), mode=era) as alice,
    ):
        await run(alice, "1")
        await run(alice, "1/0")
        await call(alice, "no_such_tool")
        await read_metrics(served)


async def read_metrics(served: Served) -> None:
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        bearer = {"Authorization": f"Bearer {served.token('ops', METRICS)}"}
        found = await http.get(f"{served.base}/metrics", headers=bearer)
        reader = {"Authorization": f"Bearer {served.token('alice')}"}
        refused = await http.get(f"{served.base}/metrics", headers=reader)
        nobody = await http.get(f"{served.base}/metrics")
    assert (refused.status_code, nobody.status_code) == (403, 401)
    for line in (
        'sagebroker_calls_total{outcome="ok",tool="sage_run"} 1.0',
        'sagebroker_calls_total{outcome="error",tool="sage_run"} 1.0',
        'sagebroker_calls_total{outcome="failed",tool="unknown"} 1.0',
        'sagebroker_call_seconds_count{tool="sage_run"} 2.0',
        'sagebroker_events_total{event="session.opened"} 1.0',
        'sagebroker_events_total{event="cell.finished"} 2.0',
        'sagebroker_sessions{state="ready"} 1.0',
    ):
        assert line in found.text
    assert "alice" not in found.text


async def test_too_many_calls_are_told_when_to_come_again(
    short_dir: Path, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEBROKER_USERS__BURST_CALLS", "3")
    monkeypatch.setenv("SAGEBROKER_USERS__CALLS_PER_MINUTE", "1")
    make_token(short_dir / "state", "nobody")
    async with (
        serving(local_serve(short_dir), short_dir / "state", dict(os.environ)) as found,
        found.client(found.token("alice"), mode=era) as alice,
        found.client(found.token("bob"), mode=era) as bob,
    ):
        answers = [await call(alice, "sage_sessions") for _ in range(4)]
        assert [is_error(answer) for answer in answers] == [False, False, False, True]
        assert "retry_after: " in text_of(answers[3])
        assert not is_error(await call(bob, "sage_sessions"))


async def test_quotas_of_sessions_and_cells_are_told_with_a_time(
    short_dir: Path, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEBROKER_USERS__MAX_SESSIONS", "2")
    monkeypatch.setenv("SAGEBROKER_USERS__TOTAL_SESSIONS", "3")
    monkeypatch.setenv("SAGEBROKER_USERS__MAX_CELLS", "2")
    make_token(short_dir / "state", "nobody")
    async with (
        serving(local_serve(short_dir), short_dir / "state", dict(os.environ)) as found,
        found.client(found.token("alice"), mode=era) as alice,
        found.client(found.token("bob"), mode=era) as bob,
    ):
        for name in ("a", "b"):
            assert not is_error(await call(alice, "sage_open", name=name))
        third = await call(alice, "sage_open", name="c")
        assert is_error(third)
        assert "retry_after: " in text_of(third)
        assert not is_error(await call(bob, "sage_open", name="a"))
        full = await call(bob, "sage_open", name="b")
        assert is_error(full)
        assert "room for" in text_of(full)
        assert "retry_after: " in text_of(full)
        for _ in range(2):
            await run(alice, "import time; time.sleep(60)", session="a", wait_s=0)
        refused = await run(alice, "1", session="b")
        assert is_error(refused)
        assert "retry_after: " in text_of(refused)
        assert result_text(await run(bob, "1 + 1", session="a")) == "2"


async def test_the_end_of_the_server_answers_those_who_wait(short_dir: Path, era: str) -> None:
    token = make_token(short_dir / "state", "alice")
    answers = []
    async with serving(local_serve(short_dir), short_dir / "state") as found:
        async with found.client(token, mode=era) as alice, anyio.create_task_group() as tg:
            await call(alice, "sage_open", name="default", keep=True)
            await run_on(alice, "import time\nx = 5\ntime.sleep(20)\nx")

            async def wait() -> None:
                answers.append(await call(alice, "sage_wait", session="default", cell=1))

            tg.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await call(alice, "sage_sessions")
            found.process.send_signal(signal.SIGTERM)
        assert [status(answer) for answer in answers] == ["running"]


async def test_beyond_this_machine_nothing_is_served_without_tokens(short_dir: Path) -> None:
    command = [sys.executable, "-m", "sagebroker", "serve", "--host", "0.0.0.0", "--port", "0"]
    env = {**os.environ, "SAGEBROKER_STATE_DIR": str(short_dir / "state")}
    with anyio.fail_after(GUARD_S):
        refused = await anyio.run_process(command, env=env, check=False)
    assert refused.returncode == 2
    assert b"sagebroker token create" in refused.stderr


async def test_a_second_server_of_a_state_folder_is_refused(served: Served) -> None:
    command = local_serve(served.state_dir.parent)
    with anyio.fail_after(GUARD_S):
        refused = await anyio.run_process(command, check=False)
    assert refused.returncode != 0
    assert f"pid {served.process.pid}".encode() in refused.stderr


async def test_on_the_unix_socket_its_owner_needs_no_token(served: Served) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=str(served.http_socket))
    async with httpx2.AsyncClient(transport=transport, timeout=GUARD_S) as http:
        answer = await http.post("http://localhost/mcp", json=INITIALIZE, headers=HEADERS)
    assert answer.status_code == 200
    assert stat_mode(served.http_socket) == stat_mode(served.mcp_socket) == 0o600


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_what_a_server_refuses_to_the_command_line_is_its_own_sentence(
    served: Served,
) -> None:
    folder = served.state_dir.parent
    config = BrokerConfig(state_dir=served.state_dir, runtime_dir=folder / "run")
    with pytest.raises(ServerError, match="no session named 'absent'"):
        await ask_server(config, "DELETE", "/sessions/absent")
    nowhere = config.model_copy(update={"state_dir": folder / "none"})
    assert await ask_server(nowhere, "GET", "/sessions") is None


async def test_with_a_certificate_https_is_spoken(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = short_dir / "key.pem", short_dir / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    await anyio.run_process([*openssl, "-keyout", str(key), "-out", str(certificate)])
    monkeypatch.setenv("SAGEBROKER_SERVE__TLS_KEY", str(key))
    monkeypatch.setenv("SAGEBROKER_SERVE__TLS_CERTIFICATE", str(certificate))
    async with serving(local_serve(short_dir), short_dir / "state", dict(os.environ)) as found:
        assert found.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with httpx2.AsyncClient(verify=trusting, timeout=GUARD_S) as http:
            answer = await http.post(found.url, json=INITIALIZE, headers=HEADERS)
        assert answer.status_code == 200


async def test_a_front_end_joins_the_server_and_leaves_its_sessions_there(
    served: Served, era: str
) -> None:
    front_end = local_server(served.state_dir.parent)
    async with Client(front_end, mode=era) as first:
        assert result_text(await run(first, "x = 3; x")) == "3"
        async with Client(front_end, mode=era) as second:
            assert result_text(await run(second, "x + 1")) == "4"
            assert "sleeps when idle" in text_of(await call(second, "sage_sessions"))
    async with Client(front_end, mode=era) as third:
        assert result_text(await run(third, "x + 2")) == "5"
        await call(third, "sage_close", session="default")


async def test_a_front_end_takes_a_message_of_many_megabytes(served: Served, era: str) -> None:
    async with Client(local_server(served.state_dir.parent), mode=era) as client:
        code = f"len({'x' * 900_000!r})"
        assert result_text(await run(client, code)) == "900000"
        await call(client, "sage_close", session="default")


def told(output: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(output)
    return found


async def test_tokens_are_made_listed_and_revoked_by_the_command_line(short_dir: Path) -> None:
    env = {**os.environ, "SAGEBROKER_STATE_DIR": str(short_dir / "state")}

    async def token(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "sagebroker", "token", *arguments]
        return await anyio.run_process(command, env=env, check=check)

    made = told((await token("create", "alice", "--expires", "2d", "--json")).stdout)
    assert made["scopes"] == [RUN]
    listed = (await token("list", "--json")).stdout
    assert str(made["token"]).encode() not in listed
    assert str(made["token"]) not in (short_dir / "state" / "tokens.json").read_text()
    assert stat_mode(short_dir / "state" / "tokens.json") == 0o600
    assert (await token("revoke", str(made["id"]))).returncode == 0
    assert (await token("revoke", str(made["id"]), check=False)).returncode == 2
    for wrong in (
        ("create", "../up"),
        ("create", "a", "--scope", "all"),
        ("create", "a", "--expires", "soon"),
    ):
        assert (await token(*wrong, check=False)).returncode == 2
