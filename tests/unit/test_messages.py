from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagebroker.errors import WireError
from sagebroker.protocol.messages import DELIMITER, MAX_FRAMES, Message, parse, sign

KEY = b"key"
HEADER = {"msg_id": "m", "msg_type": "stream", "username": "u", "session": "s"}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def _frames(*body: object, key: bytes = KEY) -> list[bytes]:
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in body]
    return [b"topic", DELIMITER, sign(key, parts), *parts]


def _parse(content: object) -> Message:
    return parse("iopub", _frames(HEADER, {}, {}, content), KEY)


def test_a_whole_message_is_parsed() -> None:
    frames = [*_frames(HEADER, {"msg_id": "p"}, {"a": 1}, {"text": "é"}), b"buffer"]
    message = parse("iopub", frames, KEY)
    assert message == Message(
        channel="iopub",
        msg_type="stream",
        msg_id="m",
        parent_id="p",
        username="u",
        session="s",
        content={"text": "é"},
        metadata={"a": 1},
        buffers=(b"buffer",),
        size=sum(map(len, frames)),
    )


def test_repeating_a_message_is_allowed() -> None:
    frames = _frames(HEADER, {}, {}, {})
    assert parse("shell", frames, KEY) == parse("shell", frames, KEY)


@given(st.lists(st.binary(max_size=80) | st.just(DELIMITER), max_size=12))
def test_any_frames_give_a_message_or_a_wire_error(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        parse("shell", frames, KEY)


@settings(max_examples=40)  # building nested values is slow
@given(st.lists(json_values | st.binary(max_size=40), min_size=4, max_size=4))
def test_signed_nonsense_gives_a_message_or_a_wire_error(body: list[object]) -> None:
    try:
        message = parse("shell", _frames(*body), KEY)
    except WireError:
        return
    assert isinstance(message.content, dict)
    assert message.msg_id


@settings(max_examples=40)  # building nested values is slow
@given(st.dictionaries(st.text(), json_values))
def test_content_arrives_as_it_was_sent(content: dict[str, Any]) -> None:
    assert _parse(content).content == content


def test_a_changed_frame_is_refused() -> None:
    frames = _frames(HEADER, {}, {}, {"a": 1})
    frames[-1] = b'{"a":2}'
    with pytest.raises(WireError, match="not signed"):
        parse("shell", frames, KEY)


def test_another_key_is_refused() -> None:
    with pytest.raises(WireError, match="not signed"):
        parse("shell", _frames(HEADER, {}, {}, {}, key=b"other"), KEY)


@pytest.mark.parametrize("count", [MAX_FRAMES + 1, 10_000])
def test_too_many_frames_are_refused_before_and_after(count: int) -> None:
    good = _frames(HEADER, {}, {}, {})
    with pytest.raises(WireError, match="buffers"):
        parse("shell", [*good, *([b"x"] * count)], KEY)
    with pytest.raises(WireError, match="delimiter"):
        parse("shell", [*([b"x"] * count), *good], KEY)


def test_an_integer_of_5000_digits_keeps_its_digits() -> None:
    digits = "7" * 5000
    message = parse("shell", _frames(HEADER, {}, {}, b'{"n": %s}' % digits.encode()), KEY)
    assert message.content == {"n": digits}


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"[" + b"9" * 5000 + b",["]
)
def test_deep_nesting_is_refused(content: bytes) -> None:
    with pytest.raises(WireError, match=r"nested too deeply|not JSON"):
        parse("shell", _frames(HEADER, {}, {}, content), KEY)


def test_an_integer_of_5000_digits_before_deep_nesting_is_refused() -> None:
    content = b'{"n": ' + b"9" * 5000 + b', "m": ' + b"[" * 100_000
    with pytest.raises(WireError):
        parse("shell", _frames(HEADER, {}, {}, content), KEY)


def test_numbers_that_are_not_finite_become_null() -> None:
    content = b'{"a": NaN, "b": Infinity, "c": -Infinity}'
    assert parse("shell", _frames(HEADER, {}, {}, content), KEY).content == dict.fromkeys("abc")


def test_undecodable_bytes_of_an_honest_stream_are_kept() -> None:
    message = parse("iopub", _frames(HEADER, {}, {}, b'{"text": "a\x80b"}'), KEY)
    assert message.content == {"text": "a\udc80b"}


@pytest.mark.parametrize("parent", [None, [], 3, {"msg_id": 3}, {"msg_id": ["a"]}])
def test_a_parent_of_a_wrong_type_is_no_parent(parent: object) -> None:
    assert parse("iopub", _frames(HEADER, parent, None, {}), KEY).parent_id == ""


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_content_that_is_no_object_is_refused(content: object) -> None:
    with pytest.raises(WireError, match="content"):
        _parse(content)


@pytest.mark.parametrize("msg_type", [None, 3, [], "", "x" * 1000])
def test_a_message_without_a_usable_type_is_refused(msg_type: object) -> None:
    with pytest.raises(WireError, match="msg_type"):
        parse("shell", _frames({**HEADER, "msg_type": msg_type}, {}, {}, {}), KEY)
