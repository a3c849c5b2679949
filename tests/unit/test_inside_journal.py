from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.session import Session

from sagebroker.inside import journal as inside
from sagebroker.inside.journal import Journal, JournalFile, Selection, Step, head_of, install
from sagebroker.inside.shelf import Shelf
from sagebroker.kernel import journal as outside
from sagebroker.kernel.journal import JournalReader

KEY = b"key of this test"


class Pipe:
    """Where a forked child's messages come in."""

    def on_recv(self, handle: Any) -> None:
        self.handle = handle


class Iopub:
    """What of ipykernel's thread for iopub the journal uses."""

    def __init__(self) -> None:
        self._pipe_in = Pipe()
        self.io_loop = self
        self.handled: list[list[bytes]] = []

    def add_callback(self, call: Any, *arguments: Any) -> None:
        call(*arguments)

    def _handle_pipe_msg(self, message: list[bytes]) -> None:
        self.handled.append(message)


class Socket:
    """Notes whom something was sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send_multipart(self, frames: list[bytes], **_: Any) -> None:
        self.sent.append(frames[0])


class App:
    """What of ipykernel's application the journal uses."""

    def __init__(self, path: Path) -> None:
        self.session = Session(key=KEY)
        self.kernel = self
        self.iopub_thread = Iopub()
        self.stdin_socket = Socket()
        self.error: type[BaseException] | None = None
        self.parent: dict[str, Any] = {}
        install(self, str(path))

    def _input_request(self, prompt: str, *_: Any) -> str:
        if self.error is not None:
            raise self.error
        return prompt

    def get_parent(self, channel: str) -> dict[str, Any]:
        assert channel == "shell"
        return self.parent

    def request(self, **content: Any) -> str:
        """Begin with a request as ipykernel does; its id."""
        self.parent = self.session.msg("execute_request", {"code": "1", **content})
        self.send("status", {"execution_state": "busy"})
        return str(self.parent["header"]["msg_id"])

    def send(self, kind: str, content: dict[str, Any], **more: Any) -> None:
        self.session.send(None, kind, content, parent=self.parent, **more)

    def say(self, text: str) -> None:
        self.send("stream", {"name": "stdout", "text": text})

    def end(self) -> None:
        self.send("execute_reply", {"status": "ok"}, ident=[b"client"])
        self.send("status", {"execution_state": "idle"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def app(path: Path) -> App:
    return App(path)


def told(path: Path) -> list[str]:
    """Types of the messages in the journal; a stream's text instead."""
    reader = JournalReader(path, KEY)
    messages = reader.read_new()
    assert reader.is_at_end
    return [message.content.get("text", message.msg_type) for message in messages]


def test_a_cell_is_kept_from_busy_to_idle(app: App, path: Path) -> None:
    cell = app.request()
    app.say("a")
    app.send("display_data", {"data": {}}, buffers=[b"left out"])
    app.end()
    reader = JournalReader(path, KEY)
    messages = reader.read_new()
    assert [(m.channel, m.msg_type) for m in messages] == [
        ("iopub", "status"),
        ("iopub", "stream"),
        ("iopub", "display_data"),
        ("shell", "execute_reply"),
        ("iopub", "status"),
    ]
    assert reader.msg_id == cell
    assert {m.parent_id for m in messages} == {cell}
    assert not any((reader.is_truncated, reader.is_broken, reader.is_replaced))


def test_the_next_cell_begins_anew(app: App, path: Path) -> None:
    app.request()
    app.say("first")
    app.end()
    app.request()
    app.say("second")
    assert told(path) == ["status", "second"]


@pytest.mark.parametrize(
    "content", [{"silent": True}, {"store_history": False}, {"silent": True, "store_history": True}]
)
def test_silent_requests_leave_the_last_cell_alone(
    app: App, path: Path, content: dict[str, Any]
) -> None:
    app.request()
    app.say("kept")
    app.end()
    before = path.read_bytes()
    app.request(**content)
    app.say("unheard")
    app.end()
    assert path.read_bytes() == before


def test_other_requests_and_types_are_not_kept(app: App, path: Path) -> None:
    app.request()
    app.send("comm_msg", {})
    app.parent = app.session.msg("kernel_info_request", {})
    app.send("status", {"execution_state": "busy"})
    assert told(path) == ["status"]


def test_what_a_thread_of_a_cell_says_during_a_silent_request_is_kept(app: App, path: Path) -> None:
    app.request()
    cell = app.parent
    app.end()
    app.request(silent=True)
    app.parent = cell
    app.say("late")
    assert told(path)[-1] == "late"


def test_an_earlier_kernels_journal_stays_until_a_cell_comes(path: Path) -> None:
    path.write_bytes(b"of an earlier kernel")
    app = App(path)
    app.request(silent=True)
    assert path.read_bytes() == b"of an earlier kernel"
    app.request()
    assert told(path) == ["status"]


@pytest.mark.parametrize("obstacle", ["link", "fifo", "file"])
def test_what_the_users_code_has_put_there_is_replaced_and_not_written_to(
    app: App, path: Path, obstacle: str
) -> None:
    app.request()
    path.unlink()
    other = path.with_name("other")
    other.write_text("untouched")
    if obstacle == "link":
        path.symlink_to(other)
    elif obstacle == "fifo":
        os.mkfifo(path)
    else:
        os.link(other, path)
    app.request()
    assert told(path) == ["status"]
    assert other.read_text() == "untouched"


def test_a_folder_in_its_place_costs_the_journal_and_nothing_else(app: App, path: Path) -> None:
    path.mkdir()
    (path / "file").touch()
    app.request()
    app.say("sent all the same")
    (path / "file").unlink()
    path.rmdir()
    app.request()
    assert told(path) == ["status"]


def test_a_failed_write_stops_the_cells_journal_and_says_so(
    app: App, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.request()
    app.say("kept")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        app.say("lost")
    app.say("lost, too")
    reader = JournalReader(path, KEY)
    assert [m.content.get("text") for m in reader.read_new()] == [None, "kept"]
    assert reader.is_broken
    app.request()
    assert told(path) == ["status"]


def test_a_disk_that_takes_half_a_message_breaks_the_journal(
    app: App, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.writev
    app.request()
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda file, pieces: write(file, pieces[:2]))
        app.say("half")
    reader = JournalReader(path, KEY)
    assert [m.msg_type for m in reader.read_new()] == ["status"]
    assert reader.is_broken


def test_a_forked_child_writes_nothing_itself(app: App, path: Path) -> None:
    app.request()
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        try:
            app.session.pid = os.getpid()  # as ipykernel's streams do
            app.say("by the child")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert path.read_bytes() == before


def test_what_a_child_publishes_is_kept_when_it_reaches_the_kernel(app: App, path: Path) -> None:
    app.request()
    theirs = Session(key=KEY)
    message = theirs.msg("stream", {"name": "stdout", "text": "child"}, parent=app.parent)
    iopub = app.iopub_thread
    for sent in ([b"uuid", *theirs.serialize(message)], [b"uuid"], [b"<IDS|MSG>", b"", b"{", b"["]):
        iopub._pipe_in.handle(sent)
    assert len(iopub.handled) == 3
    assert told(path) == ["status", "child"]


def test_no_program_inherits_the_file(app: App, path: Path) -> None:
    app.request()
    (mine,) = [
        int(entry.name)
        for entry in Path("/proc/self/fd").iterdir()
        if entry.is_symlink() and str(entry.readlink()) == str(path)
    ]
    assert not os.get_inheritable(mine)


def test_beyond_the_limit_only_the_end_is_kept(path: Path) -> None:
    journal = Journal(JournalFile(str(path)), lambda _: True, Selection(4000, 1000))
    session = Session(key=KEY)
    parent = session.msg_header("execute_request")

    def take(kind: str, content: dict[str, Any]) -> None:
        message = session.msg(kind, content, parent={"header": parent})
        journal.take(kind, parent, session.serialize(message)[-inside.FRAMES :])

    take("status", {"execution_state": "busy"})
    for size in (100, 5000, 100):
        take("stream", {"name": "stdout", "text": "x" * size})
    take("execute_reply", {"status": "ok"})
    take("execute_reply", {"status": "x" * 5000})
    take("status", {"execution_state": "idle"})
    reader = JournalReader(path, KEY)
    kinds = [message.msg_type for message in reader.read_new()]
    assert kinds == ["status", "stream", "execute_reply", "status"]
    assert reader.is_truncated
    assert not reader.is_broken


def test_the_limits_leave_room_for_the_end_of_a_cell() -> None:
    selection = Selection(limit_bytes=1000, reserve_bytes=100)
    assert selection.choose("status", "", 1) is Step.SKIP
    head = len(head_of("a"))
    assert selection.begin("a", 500) is Step.BEGIN
    assert selection.choose("stream", "b", 1) is Step.SKIP
    assert selection.choose("stream", "a", 500 - head) is Step.APPEND
    assert selection.choose("stream", "a", 1) is Step.MARK
    assert selection.choose("stream", "a", 0) is Step.SKIP
    assert selection.choose("status", "a", 99) is Step.APPEND
    assert selection.choose("status", "a", 1) is Step.SKIP
    assert selection.begin("b" * 5000, 1) is Step.SKIP
    assert selection.choose("stream", "b" * 5000, 1) is Step.SKIP


def test_questions_beyond_the_limit_leave_half_of_the_reserve_to_the_end() -> None:
    selection = Selection(limit_bytes=1000, reserve_bytes=100)
    selection.begin("a", 1000 - len(head_of("a")))
    assert selection.choose("input_request", "a", 30) is Step.APPEND
    assert selection.choose("stream", "a", 1) is Step.MARK
    assert selection.choose("input_reply", "a", 19) is Step.APPEND
    assert selection.choose("input_request", "a", 1) is Step.SKIP
    assert selection.choose("execute_reply", "a", 50) is Step.APPEND


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_question_that_is_over_is_told_to_the_broker_that_asked_and_to_the_journal(
    app: App, path: Path, error: type[BaseException] | None
) -> None:
    app.error = error
    for username in ("sagebroker", "somebody"):
        app.request()
        app.parent["header"]["username"] = username
        with contextlib.suppress(KeyboardInterrupt):
            app.kernel._input_request("?", [b"them"], app.parent)
        assert told(path) == ["status", "input_reply"]
    assert app.stdin_socket.sent == [b"them"]


def test_the_checkpoints_beside_it_leave_it_alone(app: App, path: Path) -> None:
    app.request()
    shelf = Shelf(path.parent)
    shelf.place(1).mkdir()
    shelf.place(2).mkdir()
    shelf.prune(keep=1)
    assert shelf.numbers() == [2]
    assert told(path) == ["status"]


def test_both_sides_know_the_same_file() -> None:
    assert head_of("id") == b"SBJ1.\x00\x02id"
    assert outside.parse_head(head_of("id")) == outside.JournalHead("id", False, 9)
    assert inside.ID_BYTES == outside.ID_BYTES
    assert inside.JOURNAL_BYTES + inside.RESERVE_BYTES <= outside.JOURNAL_LIMIT_BYTES
