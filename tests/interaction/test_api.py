"""The JSON API over HTTP: what it does, and what it refuses."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from tests.interaction.calling import call
from tests.interaction.conftest import local_serve
from tests.interaction.reading import is_error, text_of
from tests.serving import Served, serving_in

from sagebroker.server.auth import READ, RUN

GUARD_S = 90.0
SCHEMATHESIS_LIMIT_S = 240.0
UNLIMITED = {
    "SAGEBROKER_USERS__CALLS_PER_MINUTE": "1000000",
    "SAGEBROKER_USERS__BURST_CALLS": "1000000",
    "SAGEBROKER_USERS__TOTAL_SESSIONS": "1000000",
}
ENDPOINTS = [
    ("GET", "/sessions"),
    ("GET", "/sessions/theirs"),
    ("PUT", "/sessions/theirs"),
    ("DELETE", "/sessions/theirs"),
    ("POST", "/sessions/theirs/interrupt"),
    ("POST", "/sessions/theirs/restart"),
    ("GET", "/sessions/theirs/connection"),
    ("GET", "/sessions/theirs/cells"),
    ("POST", "/sessions/theirs/cells"),
    ("GET", "/sessions/theirs/cells/1"),
    ("POST", "/sessions/theirs/cells/1/input"),
]
BODIES = {"cells": {"code": "1"}, "input": {"text": "1"}}
"""What has to be sent, by the end of the path."""
OF_ONE_SESSION = [(m, p) for m, p in ENDPOINTS if "theirs" in p and m != "PUT"]
CHANGING = [(m, p) for m, p in ENDPOINTS if m != "GET" or p.endswith("connection")]
TOOLS: dict[str, dict[str, Any]] = {
    "sage_run": {"code": "1", "session": "theirs"},
    "sage_wait": {"session": "theirs", "cell": 1},
    "sage_output": {"session": "theirs", "cell": 1},
    "sage_interrupt": {"session": "theirs"},
    "sage_open": {"name": "theirs"},
    "sage_sessions": {},
    "sage_restart": {"session": "theirs"},
    "sage_close": {"session": "theirs"},
    "sage_variables": {"session": "theirs"},
    "sage_inspect": {"session": "theirs", "name": "int"},
    "sage_checkpoint": {"session": "theirs", "action": "list"},
    "sage_files": {"session": "theirs", "action": "list"},
}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Served]:
    async with serving_in(local_serve, "api", **UNLIMITED) as found:
        yield found


@pytest.fixture
def served(server: Served) -> Served:
    return server.for_one_test()


class Api:
    """A client of the API, with or without a token."""

    def __init__(self, http: httpx2.AsyncClient, base: str, token: str) -> None:
        self._http, self._base = http, f"{base}/api"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def ask(self, method: str, path: str, body: object = None) -> httpx2.Response:
        if method == "POST" and body is None:
            body = BODIES.get(path.rpartition("/")[2])
        return await self._http.request(method, self._base + path, json=body, headers=self._headers)

    async def get(self, path: str) -> Any:
        answer = await self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=GUARD_S) as client:
        yield client


@pytest.fixture
async def api(served: Served, http: httpx2.AsyncClient) -> Api:
    return Api(http, served.base, served.token("alice"))


async def test_a_session_is_opened_used_and_closed(api: Api) -> None:
    assert (await api.ask("PUT", "/sessions/a")).status_code == 201
    again = await api.ask("PUT", "/sessions/a", {"keep": True})
    assert again.status_code == 200
    assert again.json()["notices"] == ["It was opened without keep, and that stays so."]
    code = "import sys; print('out'); print('err', file=sys.stderr); 6 * 7"
    answer = await api.ask("POST", "/sessions/a/cells", {"code": code, "wait_s": 60})
    cell = answer.json()
    assert (answer.status_code, cell["status"], cell["number"]) == (202, "ok", 1)
    assert (cell["stdout"], cell["stderr"]) == ("out\n", "err\n")
    assert cell["outputs"] == [{"result": True, "data": {"text/plain": "42"}}]
    assert await api.get("/sessions/a/cells/1") == cell
    [line] = (await api.get("/sessions/a/cells"))["cells"]
    assert line["code"] == code
    restarted = (await api.ask("POST", "/sessions/a/restart")).json()
    assert "All variables are gone" in restarted["message"]
    assert "closed" in (await api.ask("DELETE", "/sessions/a")).json()["message"]
    assert (await api.get("/sessions"))["sessions"] == []


async def test_a_cell_that_runs_is_waited_for_again_and_interrupted(api: Api) -> None:
    await api.ask("PUT", "/sessions/a")
    begun = await api.ask("POST", "/sessions/a/cells", {"code": "x = 3\nwhile True: pass"})
    assert begun.json()["status"] in ("queued", "running")
    with anyio.fail_after(GUARD_S):
        while (await api.get("/sessions/a/cells/1"))["status"] != "running":
            pass
    await api.ask("POST", "/sessions/a/interrupt")
    assert (await api.get("/sessions/a/cells/1?wait_s=60"))["status"] == "interrupted"
    kept = await api.ask("POST", "/sessions/a/cells", {"code": "x", "wait_s": 60})
    assert kept.json()["outputs"][0]["data"]["text/plain"] == "3"
    idle = await api.ask("POST", "/sessions/a/interrupt")
    assert "Nothing runs" in idle.json()["message"]


async def test_a_cell_that_asks_is_answered(api: Api) -> None:
    await api.ask("PUT", "/sessions/a")
    body = {"code": "input('Who? ')", "wait_s": 60}
    asked = (await api.ask("POST", "/sessions/a/cells", body)).json()
    assert (asked["status"], asked["asks"]) == ("awaiting_input", "Who? ")
    assert (await api.ask("POST", "/sessions/a/cells/1/input", {"text": "me"})).status_code == 200
    ended = await api.get("/sessions/a/cells/1?wait_s=60")
    assert ended["outputs"][0]["data"]["text/plain"] == "'me'"
    late = await api.ask("POST", "/sessions/a/cells/1/input", {"text": "you"})
    assert (late.status_code, late.json()["error"]) == (409, "no_input_wanted")


async def test_a_repeated_request_runs_nothing_twice(api: Api) -> None:
    await api.ask("PUT", "/sessions/a")
    body = {"code": "n = globals().get('n', 0) + 1; n", "wait_s": 60, "request_id": "once"}
    first = (await api.ask("POST", "/sessions/a/cells", body)).json()
    second = (await api.ask("POST", "/sessions/a/cells", body)).json()
    assert first == second


@pytest.mark.parametrize(
    ("method", "path", "code", "word"),
    [
        ("GET", "/sessions/absent", 404, "session_not_found"),
        ("POST", "/sessions/absent/interrupt", 404, "session_not_found"),
        ("POST", "/sessions/absent/cells", 404, "session_not_found"),
        ("GET", "/sessions/-", 422, "invalid_request"),
        ("GET", f"/sessions/a/cells/{2**63}", 422, "invalid_request"),
        ("PATCH", "/sessions/a", 405, "http"),
        ("GET", "/nothing", 404, "http"),
    ],
)
async def test_what_cannot_be_done_is_a_problem_with_a_word(
    api: Api, method: str, path: str, code: int, word: str
) -> None:
    answer = await api.ask(method, path)
    assert (answer.status_code, answer.json()["error"]) == (code, word)
    if code == 405:
        assert answer.headers["Allow"] == "DELETE, GET, PUT"


async def test_a_connection_is_told_and_one_for_other_machines_only_where_that_is_wished(
    api: Api,
) -> None:
    await api.ask("PUT", "/sessions/a")
    told = (await api.ask("GET", "/sessions/a/connection")).json()
    assert (told["transport"], told["session"], told["kernel_name"]) == ("ipc", "a", "sagemath")
    refused = await api.ask("GET", "/sessions/a/connection?remote=true")
    assert (refused.status_code, refused.json()["error"]) == (409, "no_endpoint")
    assert "jupyter.tcp_host" in refused.json()["message"]
    assert (await api.ask("GET", "/sessions/absent/connection")).status_code == 404


async def test_a_session_named_connection_is_read_with_the_scope_to_read(
    served: Served, http: httpx2.AsyncClient
) -> None:
    reader = Api(http, served.base, served.token("alice", READ))
    assert (await reader.ask("GET", "/sessions/connection")).status_code == 404
    refused = await reader.ask("GET", "/sessions/connection/connection")
    assert (refused.status_code, refused.json()["error"]) == (403, "insufficient_scope")


async def test_a_lone_surrogate_is_harmless_in_both_directions(api: Api, served: Served) -> None:
    await api.ask("PUT", "/sessions/a")
    sent = rb'{"code": "\"\\ud800\" + \"\ud800\"", "wait_s": 60}'
    headers = {
        "Authorization": f"Bearer {served.token('alice')}",
        "Content-Type": "application/json",
    }
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        url = f"{served.base}/api/sessions/a/cells"
        answer = await http.post(url, content=sent, headers=headers)
    assert answer.status_code == 422
    shown = await api.ask("POST", "/sessions/a/cells", {"code": "'\\ud800'", "wait_s": 60})
    assert shown.status_code == 202
    assert "ud800" in shown.text


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_every_endpoint_refuses_whoever_has_no_valid_token(
    served: Served, http: httpx2.AsyncClient, method: str, path: str
) -> None:
    answers = [
        await Api(http, served.base, token).ask(method, path)
        for token in (
            "",
            "wrong",
            "sbt_00000000_wrong",
            "a.b.c",
            served.token("alice")[:-1] + "!",
            served.token("alice", lasts_s=-1),
        )
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.text for answer in answers}) == 1
    mcp = await http.post(served.url, json={})
    assert mcp.text == answers[0].text


@pytest.mark.parametrize(("method", "path"), OF_ONE_SESSION)
async def test_another_users_session_is_answered_like_none(
    served: Served, http: httpx2.AsyncClient, api: Api, method: str, path: str
) -> None:
    await api.ask("PUT", "/sessions/theirs")
    await api.ask("POST", "/sessions/theirs/cells", {"code": "1", "wait_s": 60})
    other = Api(http, served.base, served.token("bob"))
    foreign = await other.ask(method, path)
    missing = await other.ask(method, path.replace("theirs", "absent"))
    assert foreign.status_code == missing.status_code == 404
    assert foreign.text.replace("theirs", "absent") == missing.text
    assert (await api.get("/sessions/theirs"))["state"] == "ready"


@pytest.mark.parametrize(("method", "path"), CHANGING)
async def test_a_token_for_reading_changes_nothing(
    served: Served, http: httpx2.AsyncClient, api: Api, method: str, path: str
) -> None:
    await api.ask("PUT", "/sessions/theirs")
    reader = Api(http, served.base, served.token("alice", READ))
    refused = await reader.ask(method, path)
    assert (refused.status_code, refused.json()["error"]) == (403, "insufficient_scope")
    assert (await reader.get("/sessions/theirs"))["last_cell"] == 0


async def test_every_tool_answers_for_a_foreign_session_as_for_none(
    served: Served, api: Api, era: str
) -> None:
    await api.ask("PUT", "/sessions/theirs")
    await api.ask("POST", "/sessions/theirs/cells", {"code": "1", "wait_s": 60})
    async with served.client(served.token("bob"), mode=era) as bob:
        listed = await bob.list_tools()
        assert {tool.name for tool in listed.tools} == set(TOOLS)
        for tool, arguments in TOOLS.items():
            if tool in ("sage_open", "sage_sessions"):
                continue
            foreign = await call(bob, tool, **arguments)
            missing = await call(bob, tool, **{**arguments, "session": "absent"})
            assert is_error(foreign), tool
            assert text_of(foreign).replace("theirs", "absent") == text_of(missing)
    assert (await api.get("/sessions/theirs"))["last_cell"] == 1


async def test_every_tool_that_changes_something_wants_the_scope_for_it(
    served: Served, era: str
) -> None:
    async with served.client(served.token("alice", READ), mode=era) as reader:
        for tool in (await reader.list_tools()).tools:
            answer = await call(reader, tool.name, **TOOLS[tool.name])
            reads = tool.annotations is not None and tool.annotations.read_only_hint
            assert (RUN in text_of(answer)) is not bool(reads), tool.name


async def test_the_openapi_document_is_kept_in_every_answer(served: Served) -> None:
    """By schemathesis: no 5xx, no hang, nothing undocumented, nothing that the document forbids."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run"),
        f"{served.base}/api/openapi.json",
        *("--header", f"Authorization: Bearer {served.token('alice', RUN)}"),
        *("--url", f"{served.base}/api"),
        *("--checks", "all", "--max-examples", "25", "--seed", "1", "--workers", "2"),
        *("--request-timeout", "60", "--generation-database", "none", "--no-color"),
    ]
    with anyio.fail_after(SCHEMATHESIS_LIMIT_S):
        done = await anyio.run_process(command, check=False, cwd=served.state_dir)
    report = re.sub(r"Bearer \S+", "Bearer …", done.stdout.decode())
    assert done.returncode == 0, report
    assert f"{len(ENDPOINTS)} selected / {len(ENDPOINTS)} total" in report
