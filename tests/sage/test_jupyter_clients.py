"""Jupyter clients on real Sage: what people use in a notebook, over the session's endpoint."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from tests.cells import ended, result, started
from tests.guests import file_of, guest, outputs_of, reply_to, run, texts

from sagebroker.broker import Broker
from sagebroker.session.session import Session

pytestmark = [pytest.mark.sage, pytest.mark.docker]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GUARD_S = 60.0


@pytest.fixture
async def session(broker: Broker) -> Session:
    return (await broker.open_session("default"))[0]


@pytest.fixture
async def notebook(broker: Broker, session: Session) -> AsyncIterator[AsyncKernelClient]:
    async with guest(file_of(broker, session)) as client:
        yield client


def data_of(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """All that was displayed, by MIME type."""
    found: dict[str, Any] = {}
    for message in outputs:
        found |= message["content"].get("data", {})
    return found


async def test_sage_is_the_kernel_and_says_so(notebook: AsyncKernelClient) -> None:
    info = (await reply_to(notebook, notebook.kernel_info()))["content"]
    assert info["status"] == "ok"
    assert info["implementation"] == "sage"
    assert "debugger" not in info["supported_features"]
    assert "kernel subshells" not in info["supported_features"]


async def test_plots_formulas_and_documentation_are_shown(notebook: AsyncKernelClient) -> None:
    _, outputs = await run(notebook, "plot(sin(x), (x, 0, 1))")
    assert base64.b64decode(data_of(outputs)["image/png"]).startswith(PNG_SIGNATURE)
    _, outputs = await run(notebook, "sphere()")
    assert "three.js" in data_of(outputs)["text/html"] or "threejs" in data_of(outputs)["text/html"]
    _, outputs = await run(notebook, "show(integrate(x^2, x))")
    assert r"\frac{1}{3}" in data_of(outputs)["text/latex"]
    _, outputs = await run(notebook, "%display latex\nx^2")
    assert "x^{2}" in str(data_of(outputs))
    await run(notebook, "%display plain")
    reply, _ = await run(notebook, "factor?")
    assert "factorization" in str(reply["content"]["payload"])
    reply, _ = await run(notebook, "E = EllipticCurve('37a')\nE.rank??")
    assert "ell_rational_field.py" in str(reply["content"]["payload"])


async def matches(notebook: AsyncKernelClient, code: str) -> list[str]:
    found: list[str] = (await reply_to(notebook, notebook.complete(code)))["content"]["matches"]
    return found


async def test_names_are_completed_and_explained_also_while_a_cell_runs(
    notebook: AsyncKernelClient, session: Session
) -> None:
    await run(notebook, "G = graphs.PetersenGraph(); import time")
    await started(session, "while True: time.sleep(0.05)")
    for code, expected in (("G.chromatic_n", "chromatic_number"), ("ellip", "elliptic_e")):
        with anyio.fail_after(GUARD_S):
            # On a loaded machine an answer may be too late.
            while expected not in await matches(notebook, code):
                pass
    shown = (await reply_to(notebook, notebook.inspect("G.chromatic_number")))["content"]
    assert shown["found"]
    assert "chromatic" in shown["data"]["text/plain"]
    # Python's lock is held all the time: an empty answer comes, and the client goes on.
    await session.interrupt()
    await started(session, "while True: factor(2^256 + 1)")
    answer = await reply_to(notebook, notebook.complete("G.chromatic_n"))
    assert answer["content"]["status"] == "ok"
    await session.interrupt()
    assert result(await ended(session, "G.order()")) == "10"


async def test_a_slider_of_interact_is_moved_by_a_client(notebook: AsyncKernelClient) -> None:
    _, outputs = await run(
        notebook,
        "@interact\ndef _(n=slider(1, 10, 1, default=2)):\n    print('squared', n^2)",
    )
    models = {
        message["content"]["comm_id"]: message["content"]["data"]["state"]
        for message in outputs
        if message["msg_type"] == "comm_open"
    }
    [slider] = [
        comm for comm, state in models.items() if state.get("_model_name") == "IntSliderModel"
    ]
    moved = notebook.session.msg(
        "comm_msg", {"comm_id": slider, "data": {"method": "update", "state": {"value": 7}}}
    )
    notebook.shell_channel.send(moved)
    found = await outputs_of(notebook, moved["header"]["msg_id"])
    assert "squared 49" in texts(found) + str(found)


async def test_a_computation_in_c_is_stopped_by_the_stop_button_and_variables_are_kept(
    notebook: AsyncKernelClient, session: Session
) -> None:
    await run(notebook, "kept = 7")
    msg_id = notebook.execute("factor(2^1061 - 1)")
    with anyio.fail_after(GUARD_S):
        while session.current is None:
            await anyio.sleep(0.01)
        await anyio.sleep(1)
    notebook.control_channel.send(notebook.session.msg("interrupt_request", {}))
    assert (await reply_to(notebook, msg_id))["content"]["status"] == "error"
    assert texts((await run(notebook, "kept"))[1]) == "7"


async def test_a_session_shows_its_history_and_asks_its_guest(notebook: AsyncKernelClient) -> None:
    msg_id = notebook.execute("input('degree? ')", allow_stdin=True)
    with anyio.fail_after(GUARD_S):
        asked = await notebook.stdin_channel.get_msg()
    assert asked["content"]["prompt"] == "degree? "
    notebook.input("3")
    assert texts(await outputs_of(notebook, msg_id)).endswith("'3'")
    await reply_to(notebook, msg_id)
    asked_for = notebook.history(hist_access_type="tail", n=1)
    history = (await reply_to(notebook, asked_for))["content"]["history"]
    assert history[-1][2] == "input('degree? ')"
