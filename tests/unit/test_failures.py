"""How errors reach a model."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, ValidationError

from sagebroker.errors import (
    ContainerError,
    QueueFullError,
    RuntimeUnavailableError,
    SessionNotFoundError,
    TooManySessionsError,
    WireError,
)
from sagebroker.server import limits
from sagebroker.server.app import make_server
from sagebroker.server.argument_check import check_names, explain, unknown_tool
from sagebroker.server.failures import answering


def test_an_unknown_session_is_told_with_the_known_ones() -> None:
    with pytest.raises(ToolError) as caught, answering("sage_run"):
        raise SessionNotFoundError("nope", ["a", "b"])
    assert "'a', 'b'" in str(caught.value)
    assert "sage_open(name='nope')" in str(caught.value)
    assert isinstance(caught.value.__cause__, SessionNotFoundError)


def test_an_engine_that_does_not_answer_is_told_with_its_hint() -> None:
    with pytest.raises(ToolError, match=r"not answer.*Start it"), answering("sage_run"):
        raise RuntimeUnavailableError("The engine does not answer.", hint="Start it.")


def test_a_full_broker_says_when_to_try_again() -> None:
    with pytest.raises(ToolError, match="retry_after: 30 s"), answering("sage_open"):
        raise TooManySessionsError("8 sessions are open.", retry_after_s=30.0)


@pytest.mark.parametrize(
    "error", [ContainerError("open /run/x/7f3a: EPERM"), WireError("frame 3 of /run/x")]
)
def test_what_a_model_cannot_act_on_keeps_its_internals_in_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with pytest.raises(ToolError) as caught, answering("sage_run"):
        raise error
    assert "/run/x" not in str(caught.value)
    assert "sagebroker doctor" in str(caught.value)
    assert "/run/x" in caplog.text


def test_an_unforeseen_exception_becomes_one_sentence_and_a_logged_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ToolError) as caught, answering("sage_run"):
        raise RuntimeError("secret detail")
    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


def test_a_broker_error_bundled_by_a_task_group_is_found() -> None:
    with pytest.raises(ToolError, match="16 cells"), answering("sage_run"):
        raise ExceptionGroup("tg", [ExceptionGroup("tg", [QueueFullError("16 cells wait.")])])
    with pytest.raises(ToolError, match="did not foresee"), answering("sage_run"):
        raise ExceptionGroup("tg", [QueueFullError("16 cells wait."), ValueError("x")])


def test_a_tool_error_passes_unchanged() -> None:
    error = ToolError("as it is")
    with pytest.raises(ToolError) as caught, answering("sage_run"):
        raise error
    assert caught.value is error


def test_wrong_arguments_are_told_without_jargon() -> None:
    class Arguments(BaseModel):
        code: str
        wait_s: float = 1.0

    with pytest.raises(ValidationError) as caught:
        Arguments.model_validate({"wait_s": "soon"})
    text = explain(
        "sage_run",
        {"properties": {"code": {"type": "string"}, "wait_s": {"type": "number", "default": 45}}},
        caught.value,
    )
    assert text.startswith(
        "The arguments of sage_run do not fit: code is missing; it must be text; wait_s must be a number, for instance 45. Nothing was done."
    )
    assert "pydantic" not in text


@pytest.mark.parametrize(
    ("tool", "given", "said"),
    [
        ("sage_run", {"code": "1", "timeout": 5}, "Did you mean 'time_limit_s' for 'timeout'?"),
        ("sage_wait", {"cell": 1, "timeout": 5}, "Did you mean 'wait_s' for 'timeout'?"),
        ("sage_run", {"code": "1", "session_id": "a"}, "Did you mean 'session' for 'session_id'?"),
        ("sage_run", {"code": "1", "max_char": 5}, "Did you mean 'max_chars' for 'max_char'?"),
        (
            "sage_run",
            {"code": "1", "zzzz": 5},
            "no argument 'zzzz'. Nothing was done. It has: code,",
        ),
    ],
)
async def test_an_argument_that_the_tool_does_not_have_is_refused_with_what_was_meant(
    tool: str, given: dict[str, object], said: str
) -> None:
    tools = {one.name: one for one in await make_server(never).list_tools()}
    with pytest.raises(ToolError) as caught:
        check_names(tool, tools[tool].input_schema, given)
    assert said in str(caught.value)


async def test_every_argument_of_every_tool_is_let_through() -> None:
    for tool in await make_server(never).list_tools():
        check_names(tool.name, tool.input_schema, dict.fromkeys(tool.input_schema["properties"]))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sage_execute", "sage_run"),
        ("run_python", "sage_run"),
        ("sage_session", "sage_sessions"),
        ("zzzzzzzz", ""),
    ],
)
def test_a_tool_that_is_not_there_is_told_with_the_one_that_was_meant(
    name: str, meant: str
) -> None:
    text = unknown_tool(name, ["sage_run", "sage_sessions", "sage_files"])
    assert (f"Did you mean '{meant}'?" in text) is bool(meant)
    assert "There are: sage_files, sage_run, sage_sessions." in text


def never() -> Any:
    raise AssertionError("listing tools opens no broker")


def test_numbers_out_of_range_are_lowered_with_a_sentence_or_refused() -> None:
    assert limits.wait_limit(45.0) == (45.0, "")
    assert limits.wait_limit(0.0) == (0.0, "")
    seconds, said = limits.wait_limit(float("inf"))
    assert seconds == 3600.0
    assert "lowered to 3600 s" in said
    for nonsense in (-1.0, float("nan")):
        with pytest.raises(ToolError, match="wait_s"):
            limits.wait_limit(nonsense)
    assert limits.time_limit(1e9, 86_400.0)[0] == 86_400.0
    with pytest.raises(ToolError, match="time_limit_s"):
        limits.time_limit(0.0, 86_400.0)
    assert limits.char_limit("max_chars", 8000) == (8000, "")
    assert limits.char_limit("max_chars", 10**9)[0] == limits.MAX_CHARS
    with pytest.raises(ToolError, match="max_chars"):
        limits.char_limit("max_chars", 3)


def test_empty_code_is_refused_with_an_example() -> None:
    with pytest.raises(ToolError, match="factor"):
        limits.code_text(" \n\t")
