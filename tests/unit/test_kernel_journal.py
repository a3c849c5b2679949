from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagebroker.inside.journal import TRUNCATED, head_of, record_of
from sagebroker.kernel import journal
from sagebroker.kernel.journal import JournalDecoder, JournalReader, MalformedError, parse_head
from sagebroker.protocol.messages import sign

KEY = b"key of this test"
CELL = "cell-1"


def record(text: str = "x", *, parent: str = CELL, kind: str = "stream", key: bytes = KEY) -> bytes:
    """A message as a kernel writes it."""
    parts: list[dict[str, Any]] = [
        {"msg_id": f"of-{text[:10]}", "msg_type": kind},
        {"msg_id": parent},
        {},
        {"name": "stdout", "text": text},
    ]
    body = [json.dumps(part).encode() for part in parts]
    return b"".join(record_of([sign(key, body), *body]))


THREE = [record("a"), record("b"), record("c", kind="execute_reply")]
WHOLE = head_of(CELL) + THREE[0] + TRUNCATED + THREE[1] + THREE[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def texts(messages: list[Any]) -> list[str]:
    return [message.content["text"] for message in messages]


def read_all(reader: JournalReader) -> list[str]:
    """Texts of all that can be read now."""
    found = texts(reader.read_new())
    for _ in range(1000):
        if reader.is_at_end or reader.is_broken or reader.is_replaced:
            return found
        found += texts(reader.read_new())
    raise AssertionError("reads for ever")


def test_nothing_is_read_while_there_is_no_file(path: Path) -> None:
    reader = JournalReader(path, KEY)
    assert reader.read_new() == []
    assert not reader.is_broken
    path.write_bytes(WHOLE)
    assert texts(reader.read_new()) == ["a", "b", "c"]
    assert reader.msg_id == CELL
    assert reader.is_truncated


def test_what_is_added_is_read_once_and_only_when_it_is_complete(path: Path) -> None:
    reader = JournalReader(path, KEY)
    found = []
    with path.open("ab", buffering=0) as file:
        for at in range(len(WHOLE)):
            file.write(WHOLE[at : at + 1])
            found += texts(reader.read_new())
            assert not reader.is_broken
    assert found == ["a", "b", "c"]


def test_one_look_reads_a_bounded_amount(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "READ_BYTES", len(THREE[0]) + 10)
    path.write_bytes(head_of(CELL) + THREE[0] * 10)
    reader = JournalReader(path, KEY)
    assert texts(reader.read_new()) == ["a"]
    assert not reader.is_at_end
    assert read_all(reader) == ["a"] * 9


def test_a_message_larger_than_one_look_ends_no_reading(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "READ_BYTES", len(THREE[0]) // 3)
    path.write_bytes(WHOLE)
    reader = JournalReader(path, KEY)
    found = []
    while messages := reader.read_new():
        found += texts(messages)
    assert found == ["a", "b", "c"]
    assert reader.is_at_end


def test_a_file_that_is_about_the_next_cell_is_said_to_be_so(path: Path) -> None:
    path.write_bytes(head_of(CELL) + THREE[0])
    reader = JournalReader(path, KEY)
    assert texts(reader.read_new()) == ["a"]
    path.write_bytes(b"")
    assert (reader.read_new(), reader.is_replaced) == ([], False)
    path.write_bytes(head_of("cell-2") + record("d", parent="cell-2") * 3)
    assert reader.read_new() == []
    assert reader.is_replaced
    assert not reader.is_broken
    assert reader.msg_id == CELL
    assert texts(JournalReader(path, KEY).read_new()) == ["d"] * 3


@pytest.mark.parametrize("moment", [1, 2])
def test_a_cell_that_begins_during_a_look_is_not_mixed_with_the_last_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    path.write_bytes(head_of(CELL) + THREE[0])
    reader = JournalReader(path, KEY)
    assert texts(reader.read_new()) == ["a"]
    reads = 0
    pread = os.pread

    def racing(file: int, size: int, offset: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == moment:
            path.write_bytes(head_of("cell-22") + record("d", parent="cell-22") * 9)
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", racing)
    assert reader.read_new() == []
    assert reader.is_replaced
    assert not reader.is_broken


@pytest.mark.parametrize("obstacle", ["link", "fifo", "folder", "device"])
def test_nothing_but_a_regular_file_is_read(path: Path, obstacle: str) -> None:
    if obstacle == "link":
        other = path.with_name("other")
        other.write_bytes(WHOLE)
        path.symlink_to(other)
    elif obstacle == "fifo":
        os.mkfifo(path)
    elif obstacle == "folder":
        path.mkdir()
    reader = JournalReader(Path(os.devnull) if obstacle == "device" else path, KEY)
    assert reader.read_new() == []
    assert reader.is_broken


@pytest.mark.parametrize("change", ["removed", "shortened", "replaced by a folder"])
def test_a_file_that_is_taken_away_is_broken(path: Path, change: str) -> None:
    path.write_bytes(WHOLE)
    reader = JournalReader(path, KEY)
    reader.read_new()
    if change == "shortened":
        os.truncate(path, len(WHOLE) - 1)
    else:
        path.unlink()
    if change == "replaced by a folder":
        path.mkdir()
    assert reader.read_new() == []
    assert reader.is_broken


def test_a_kernel_that_could_not_write_on_is_believed_after_all_that_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "READ_BYTES", len(THREE[0]))
    path.write_bytes(head_of(CELL).replace(b".", b"!") + THREE[0] + THREE[1] + THREE[2][:9])
    reader = JournalReader(path, KEY)
    assert read_all(reader) == ["a", "b"]
    assert reader.is_broken


@pytest.mark.parametrize(
    "junk",
    [
        b"\0" * 100,
        b"m" + b"\xff" * 100,
        record(key=b"another key"),
        record(parent="another cell"),
        b"".join(record_of([b"0" * 64, b"{}", b"{}", b"{}", b"{}"])),
    ],
    ids=["zeros", "lengths", "signature", "parent", "empty"],
)
def test_junk_ends_the_reading_and_keeps_what_came_before(path: Path, junk: bytes) -> None:
    path.write_bytes(head_of(CELL) + THREE[0] + junk + THREE[1])
    reader = JournalReader(path, KEY)
    assert texts(reader.read_new()) == ["a"]
    assert reader.is_broken
    assert reader.read_new() == []


def test_a_file_larger_than_any_kernel_writes_is_not_read_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "JOURNAL_LIMIT_BYTES", 10 * len(THREE[0]))
    monkeypatch.setattr(journal, "READ_BYTES", len(THREE[0]))
    path.write_bytes(head_of(CELL) + THREE[0] * 100)
    reader = JournalReader(path, KEY)
    assert read_all(reader) == ["a"] * 10
    assert reader.is_broken


def test_a_sparse_giant_is_broken_at_once(path: Path) -> None:
    path.write_bytes(head_of(CELL))
    os.truncate(path, 2**40)
    reader = JournalReader(path, KEY)
    assert reader.read_new() == []
    assert reader.is_broken


PIECES = st.lists(
    st.one_of(
        st.sampled_from([*THREE, TRUNCATED, b"m", head_of(CELL), record(parent="other")]),
        st.binary(max_size=40),
    ),
    max_size=8,
)


@given(pieces=PIECES, cut=st.integers(1, 200))
def test_whatever_the_bytes_and_however_they_come_the_decoder_says_the_same(
    pieces: list[bytes], cut: int
) -> None:
    data = b"".join(pieces)
    once = JournalDecoder(CELL, KEY)
    expected = texts(once.feed(data))
    slowly = JournalDecoder(CELL, KEY)
    found = []
    for at in range(0, len(data), cut):
        found += texts(slowly.feed(data[at : at + cut]))
    assert (found, slowly.is_broken, slowly.is_truncated) == (
        expected,
        once.is_broken,
        once.is_truncated,
    )


@given(data=st.one_of(st.binary(max_size=60), PIECES.map(b"".join), st.just(WHOLE)), at=st.data())
def test_no_file_makes_the_reader_raise(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: st.DataObject
) -> None:
    content = bytearray(data)
    for _ in range(at.draw(st.integers(0, 3)) if content else 0):
        content[at.draw(st.integers(0, len(content) - 1))] = at.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_bytes(content)
    reader = JournalReader(path, KEY)
    for _ in range(3):
        reader.read_new()


@given(data=st.binary(max_size=40))
def test_a_head_is_found_or_refused(data: bytes) -> None:
    try:
        head = parse_head(b"SBJ1" + data)
    except (MalformedError, UnicodeDecodeError):
        return
    assert head is None or head.msg_id
