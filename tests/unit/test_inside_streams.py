from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from ipykernel.iostream import IOPubThread
from jupyter_client.session import Session

from sagebroker.inside.streams import (
    BoundedOutStream,
    CellBudget,
    StreamLimits,
    cost,
    fit,
    fit_end,
    pieces,
    utf8,
)

CHUNK = 100
LIMIT = 1000


def wire_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")) - 2


@given(st.text())
def test_the_cost_is_that_of_the_json_text(text: str) -> None:
    assert cost(text) == wire_bytes(text)


@given(st.text(), st.integers(6, 40))
def test_pieces_are_small_and_give_the_whole(text: str, limit: int) -> None:
    parts = list(pieces(text, limit))
    assert "".join(parts) == text
    assert all(cost(part) <= limit for part in parts)


@given(st.text(), st.integers(0, 40))
def test_what_fits_fits(text: str, limit: int) -> None:
    assert cost(text[: fit(text, limit)]) <= limit
    end = fit_end(text, limit)
    assert cost(text[len(text) - end :]) <= limit


@given(st.text())
def test_no_surrogate_is_left(text: str) -> None:
    utf8(text + "\ud800").encode("utf-8")
    assert utf8(text) == text


def test_output_within_the_budget_flows_whole() -> None:
    budget = CellBudget(LIMIT)
    assert [budget.take("a" * 250), budget.take("b" * 250), budget.finish()] == [
        "a" * 250,
        "b" * 250,
        "",
    ]


def test_a_little_more_than_the_head_comes_whole_at_the_end() -> None:
    budget = CellBudget(LIMIT)
    text = "".join(chr(97 + at % 26) for at in range(LIMIT))
    assert budget.take(text) + budget.finish() == text


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=60)), st.integers(12, 200))
def test_head_cut_and_tail_make_the_whole(texts: list[str], limit: int) -> None:
    budget = CellBudget(limit)
    live = "".join(budget.take(text) for text in texts)
    rest = budget.finish()
    whole = "".join(texts)
    assert whole.startswith(live)
    assert wire_bytes(live) <= limit // 2
    before, mark, after = rest.partition(" bytes of output left out here …\n")
    if mark:
        left_out = int(before.removeprefix("\n… "))
        assert whole.endswith(after)
        assert len((live + after).encode()) + left_out == len(whole.encode())
        assert wire_bytes(after) <= limit - limit // 2
    else:
        assert live + rest == whole


def test_a_cell_within_the_cell_does_not_renew_the_budget() -> None:
    budget = CellBudget(LIMIT)
    sent = 0
    for _ in range(20):
        sent += len(budget.take("x" * LIMIT * 3))
        rest = budget.finish()
        sent += rest.count("x")
    assert sent <= LIMIT


class Recorder:
    """Collects the stream messages that a kernel's session would send."""

    def __init__(self) -> None:
        self.session = Session(key=b"k")
        self.sent: list[dict[str, Any]] = []
        # The thread is not run, so that its messages come when a test flushes.
        vars(self.session)["send"] = self._send

    def _send(self, _: object, message: dict[str, Any], **__: object) -> None:
        self.sent.append(message)

    def text(self, cell: str) -> str:
        return "".join(
            m["content"]["text"] for m in self.sent if m["parent_header"]["msg_id"] == cell
        )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def stream(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(BoundedOutStream, "limits", StreamLimits(CHUNK, LIMIT))
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    thread: Any = IOPubThread(socket, session=recorder.session)  # type: ignore[no-untyped-call]
    made: Any = BoundedOutStream(recorder.session, thread, "stdout", watchfd=False)
    made.set_parent({"header": {"msg_id": "one"}})
    yield made
    made.close()
    thread._event_puller.close()
    for pipe in getattr(thread, "_event_pipes", {}).values():
        pipe.close()
    thread.io_loop.close(all_fds=True)
    thread.close()
    context.term()


def test_messages_are_small(stream: Any, recorder: Recorder) -> None:
    print("y" * 333, file=stream)
    stream.flush()
    assert recorder.text("one") == "y" * 333 + "\n"
    assert max(len(m["content"]["text"]) for m in recorder.sent) <= CHUNK


def test_a_flood_shows_head_and_tail(stream: Any, recorder: Recorder) -> None:
    for at in range(10_000):
        print(at, file=stream)
    stream.flush()
    assert recorder.text("one").startswith("0\n1\n2\n")
    stream.finish_cell()
    stream.flush()
    text = recorder.text("one")
    assert "bytes of output left out here" in text
    assert text.endswith("\n9998\n9999\n")
    assert len(text) < LIMIT + 100


def test_each_cell_has_its_own_budget(stream: Any, recorder: Recorder) -> None:
    stream.write("z" * LIMIT * 2)
    stream.finish_cell()
    stream.set_parent({"header": {"msg_id": "two"}})
    stream.write("short")
    stream.finish_cell()
    stream.flush()
    assert recorder.text("two") == "short"


def test_text_that_no_message_can_carry_is_escaped(stream: Any, recorder: Recorder) -> None:
    stream.write("a\ud800b\udcff")
    stream.flush()
    assert recorder.text("one") == "a\\ud800b\\udcff"


def test_what_was_flushed_has_been_sent() -> None:
    context = zmq.Context()
    session: Any = Session(key=b"k")
    thread: Any = IOPubThread(context.socket(zmq.PUB), session=session)  # type: ignore[no-untyped-call]
    sent: list[Any] = []

    def handle_and_rest(message: Any) -> None:
        thread._handle_event(message)
        # As if C code had taken the global lock between two rounds of the thread.
        time.sleep(0.3)

    thread._event_puller.on_recv(handle_and_rest)
    thread._really_send = lambda message, **_: sent.append(message)
    thread.start()
    stream: Any = BoundedOutStream(session, thread, "stdout", watchfd=False)
    try:
        stream.set_parent({"header": {"msg_id": "one"}})
        stream.write("go")
        while thread._events:
            time.sleep(0.01)
        stream.flush()
        assert len(sent) == 1
    finally:
        thread.stop()
        thread.close()
        context.term()


def test_only_text_can_be_written(stream: Any) -> None:
    with pytest.raises(TypeError):
        stream.write(b"bytes")


def test_threads_print_into_the_same_budget(stream: Any, recorder: Recorder) -> None:
    threads = [
        threading.Thread(target=lambda: [stream.write("w" * 50) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.finish_cell()
    stream.flush()
    assert recorder.text("one").count("w") <= LIMIT


def test_a_watched_descriptor_is_drained_at_the_end_of_a_cell() -> None:
    # In a process of its own, for the stream takes over file descriptor 1.
    script = """
import os, sys, zmq
from ipykernel.iostream import IOPubThread
from jupyter_client.session import Session
from sagebroker.inside.streams import BoundedOutStream
socket = zmq.Context().socket(zmq.PUB)
session = Session(key=b"k")
sent = []
session.send = lambda stream, message, **_: sent.append(message["content"]["text"])
thread = IOPubThread(socket, session=session)
thread.start()
stream = BoundedOutStream(session, thread, "stdout")
stream.set_parent({"header": {"msg_id": "one"}})
os.write(1, "h\\u00e9".encode())
os.system("echo from a shell")
os.write(1, b"x" * 500_000)
stream.finish_cell()
stream.flush()
text = "".join(sent)
assert text == "h\\u00e9from a shell\\n" + "x" * 500_000, text[:200]
assert stream.fileno() == 1
sys.stderr.write("done")
sys.stderr.flush()
os._exit(0)
"""
    # ipykernel leaves the descriptors alone where it finds pytest's variable.
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=env,
    )
    assert ended.stderr.endswith("done")
    assert ended.stdout == ""
