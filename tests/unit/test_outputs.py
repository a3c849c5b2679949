from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagebroker.protocol import outputs
from sagebroker.protocol.messages import Message
from sagebroker.protocol.outputs import LEFT_OUT, OutputFold, json_value

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet=st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet=st.characters()), inner),
    max_leaves=10,
)


def _message(msg_type: str, **content: Any) -> Message:
    return Message(channel="iopub", msg_type=msg_type, msg_id="m", parent_id="p", content=content)


def _stream(text: str, name: str = "stdout") -> Message:
    return _message("stream", name=name, text=text)


def _display(text: str, msg_type: str = "display_data", **more: Any) -> Message:
    return _message(msg_type, data={"text/plain": text}, metadata={}, **more)


def _texts(fold: OutputFold) -> list[str]:
    return [output.data["text/plain"] for output in fold.displays]


def test_streams_are_kept_apart_and_in_order_with_displays() -> None:
    fold = OutputFold()
    for message in (
        _stream("a"),
        _stream("b"),
        _stream("e", "stderr"),
        _display("d"),
        _stream("c"),
    ):
        assert fold.add(message)
    assert (fold.stdout.text(), fold.stderr.text()) == ("abc", "e")
    assert fold.order == ["stdout", "stderr", "display", "stdout"]
    assert [segment.chars for segment in fold.segments] == [2, 1, 0, 1]
    assert fold.segments[2].display is fold.displays[0]


def test_the_value_of_a_cell_is_told_from_a_display() -> None:
    fold = OutputFold()
    fold.add(_display("shown"))
    fold.add(_display("value", "execute_result", execution_count=1))
    assert [output.is_result for output in fold.displays] == [False, True]


def test_clear_output_clears_at_once_or_with_the_next_output() -> None:
    fold = OutputFold()
    fold.add(_stream("one"))
    fold.add(_message("clear_output", wait=True))
    assert fold.stdout.text() == "one"
    fold.add(_stream("two"))
    assert fold.stdout.text() == "two"
    fold.add(_message("clear_output", wait=False))
    assert fold.is_empty
    assert fold.stdout.text() == ""


def test_updating_a_display_replaces_every_one_with_its_id() -> None:
    fold = OutputFold()
    fold.add(_display("old", transient={"display_id": "x"}))
    fold.add(_display("other", transient={"display_id": "y"}))
    fold.add(_display("old", transient={"display_id": "x"}))
    fold.add(_display("new", "update_display_data", transient={"display_id": "x"}))
    assert _texts(fold) == ["new", "other", "new"]


def test_updating_an_unknown_display_changes_nothing() -> None:
    fold = OutputFold()
    fold.add(_display("new", "update_display_data", transient={"display_id": "x"}))
    assert fold.displays == []


def test_displays_beyond_the_limit_are_counted_and_the_result_still_has_a_place() -> None:
    fold = OutputFold(max_displays=3)
    for number in range(5):
        fold.add(_display(str(number)))
    fold.add(_display("value", "execute_result"))
    assert _texts(fold) == ["0", "1", "value"]
    assert fold.dropped_displays == 3
    assert len(fold.segments) == 3


def test_displays_beyond_their_bytes_are_counted() -> None:
    fold = OutputFold(display_bytes=100)
    for _ in range(3):
        fold.add(_display("x" * 40))
    assert len(fold.displays) == 2
    assert fold.dropped_displays == 1


@pytest.mark.parametrize("is_update", [False, True])
def test_of_a_display_too_large_the_smaller_types_are_kept_and_the_others_noted(
    is_update: bool,
) -> None:
    fold = OutputFold(display_bytes=100)
    transient = {"display_id": "x"}
    if is_update:
        fold.add(_display("small", transient=transient))
    data = {"text/html": "x" * 200, "image/png": "y" * 50, "text/plain": "Graphics"}
    kind = "update_display_data" if is_update else "display_data"
    fold.add(_message(kind, data=data, transient=transient))
    assert fold.displays[0].data == {"image/png": "y" * 50, "text/plain": "Graphics"}
    assert fold.displays[0].metadata == {LEFT_OUT: {"text/html": 200}}
    assert fold.dropped_displays == 0


def test_updates_cannot_grow_displays_beyond_their_bytes() -> None:
    fold = OutputFold(display_bytes=100)
    fold.add(_display("small", transient={"display_id": "x"}))
    fold.add(_display("x" * 200, "update_display_data", transient={"display_id": "x"}))
    assert _texts(fold) == ["small"]
    assert fold.dropped_displays == 1


def test_an_error_becomes_a_failure() -> None:
    fold = OutputFold()
    fold.add(_message("error", ename="ValueError", evalue="no\udc80", traceback=["a", 3, "b"]))
    assert fold.failure is not None
    assert (fold.failure.ename, fold.failure.evalue) == ("ValueError", "no\\udc80")
    assert fold.failure.traceback == ("a", "b")


def test_an_endless_traceback_is_cut_in_the_middle() -> None:
    fold = OutputFold()
    fold.add(_message("error", ename="E", evalue="v", traceback=[str(i) for i in range(10_000)]))
    assert fold.failure is not None
    assert len(fold.failure.traceback) == outputs.MAX_TRACEBACK_FRAMES
    assert (fold.failure.traceback[0], fold.failure.traceback[-1]) == ("0", "9999")


@pytest.mark.parametrize(
    "message",
    [
        _message("stream"),
        _message("stream", name="stdout", text=["a"]),
        _message("stream", name="stdin", text="a"),
        _message("stream", name=[], text="a"),
        _message("display_data", data=None),
        _message("display_data", data=[1]),
        _message("display_data", data={}),
        _message("display_data", data={"text/plain": None}),
        _message("update_display_data", data={"text/plain": "x"}, transient={"display_id": []}),
        _message("comm_open", data={}),
    ],
)
def test_what_is_no_output_is_refused(message: Message) -> None:
    fold = OutputFold()
    assert not fold.add(message)
    assert fold.is_empty


def test_values_of_text_types_become_text() -> None:
    fold = OutputFold()
    data = {"text/html": ["<b>", "x"], "text/plain": {"a": 1}, "application/json": {"a": [1]}}
    fold.add(_message("display_data", data=data))
    assert fold.displays[0].data == {
        "text/html": "<b>x",
        "text/plain": '{"a": 1}',
        "application/json": {"a": [1]},
    }


def test_the_order_is_kept_for_a_bounded_number_of_changes() -> None:
    fold = OutputFold()
    for _ in range(outputs.MAX_SEGMENTS):
        fold.add(_stream("o"))
        fold.add(_stream("e", "stderr"))
    assert len(fold.segments) == outputs.MAX_SEGMENTS
    assert fold.stdout.total == fold.stderr.total == outputs.MAX_SEGMENTS


@settings(max_examples=40)  # building nested values is slow
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "stream",
                    "display_data",
                    "execute_result",
                    "update_display_data",
                    "clear_output",
                    "error",
                ]
            ),
            st.fixed_dictionaries(
                {},
                optional={
                    "name": st.sampled_from(["stdout", "stderr"]) | json_values,
                    "text": json_values,
                    "data": st.dictionaries(st.sampled_from(["text/plain", "a/json"]), json_values)
                    | json_values,
                    "metadata": json_values,
                    "transient": st.just({"display_id": "x"}) | json_values,
                    "wait": json_values,
                    "ename": json_values,
                    "evalue": json_values,
                    "traceback": json_values,
                },
            ),
        ),
        max_size=8,
    )
)
def test_whatever_a_kernel_sends_comes_out_as_json_within_the_limits(
    messages: list[tuple[str, dict[str, Any]]],
) -> None:
    fold = OutputFold(stream_bytes=20, display_bytes=60, max_displays=3)
    for msg_type, content in messages:
        fold.add(_message(msg_type, **content))
    for output in fold.displays:
        json.dumps([output.data, output.metadata], allow_nan=False, ensure_ascii=False).encode()
    assert len(fold.displays) <= 3
    assert len(fold.stdout.kept.encode()) <= 20
    shown = [segment.display for segment in fold.segments if segment.kind == "display"]
    assert [id(output) for output in shown] == [id(output) for output in fold.displays]


def test_json_nested_deeper_than_the_limit_is_cut() -> None:
    value: Any = "end"
    for _ in range(900):
        value = [value]
    assert len(json.dumps(json_value(value))) < 3 * outputs.MAX_JSON_DEPTH
