"""What a model reads of a cell: status, outputs, cuts, exceptions, pages."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ImageContent, TextContent
from PIL import Image

from sagebroker.model import CellFailure, CellStatus, LadderOutcome, RichOutput
from sagebroker.protocol.messages import Message
from sagebroker.protocol.outputs import OutputFold
from sagebroker.server import tracebacks
from sagebroker.server.outline import all_text, outline, stream_text
from sagebroker.server.pages import page
from sagebroker.server.render import PART_KEY, answer, shares
from sagebroker.session.cell import Cell


def make_cell(status: CellStatus = CellStatus.OK, **fields: Any) -> Cell:
    cell = Cell(number=7, code="…", time_limit_s=600.0, outputs=OutputFold(), **fields)
    cell.started_at, cell.ended_at = 100.0, 100.42
    cell.status = status
    return cell


def add(cell: Cell, msg_type: str, **content: Any) -> None:
    assert cell.outputs.add(
        Message(channel="iopub", msg_type=msg_type, msg_id="m", content=content)
    )


def show(cell: Cell, data: dict[str, Any], *, is_result: bool = True) -> None:
    add(cell, "execute_result" if is_result else "display_data", data=data)


def parts_of(result: CallToolResult) -> list[tuple[str, str]]:
    found = []
    for block in result.content:
        assert block.meta is not None
        text = block.text if isinstance(block, TextContent) else "<image>"
        found.append((block.meta[PART_KEY], text))
    return found


def part(result: CallToolResult, kind: str) -> str:
    [text] = [text for found, text in parts_of(result) if found == kind]
    return text


def png(width: int = 4, height: int = 4) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


async def test_the_status_line_names_session_cell_status_and_time() -> None:
    result = await answer("default", make_cell(), max_chars=8000)
    assert parts_of(result) == [("status", "[default #7 ok 0.42 s]")]
    assert not result.is_error
    assert result.structured_content is None


async def test_a_queued_cell_has_no_time_and_is_told_how_to_wait() -> None:
    cell = make_cell(CellStatus.QUEUED)
    cell.started_at = None
    result = await answer("a", cell, max_chars=8000)
    assert part(result, "status") == "[a #7 queued]"
    assert 'sage_wait(session="a", cell=7)' in part(result, "next")


async def test_a_running_cell_shows_what_it_has_and_both_next_calls() -> None:
    cell = make_cell(CellStatus.RUNNING)
    add(cell, "stream", name="stdout", text="so far\n")
    result = await answer("default", cell, max_chars=8000)
    assert part(result, "stdout") == "stdout:\nso far\n"
    assert 'sage_wait(session="default", cell=7)' in part(result, "next")
    assert 'sage_interrupt(session="default")' in part(result, "next")
    assert not result.is_error


@pytest.mark.parametrize("text", ["1/3", "[-5  2]\n[ 3 -1]", "  1   2\n  3   4", "x̂²", "a\n"])
async def test_a_result_comes_through_exactly(text: str) -> None:
    cell = make_cell()
    show(cell, {"text/plain": text})
    assert part(await answer("default", cell, max_chars=8000), "result") == text


async def test_latex_is_added_where_it_says_more_than_the_text() -> None:
    cell = make_cell()
    show(cell, {"text/plain": "1/3", "text/latex": r"$\frac{1}{3}$", "text/html": "<html>…"})
    shown = part(await answer("default", cell, max_chars=8000), "result")
    assert shown == "1/3\nLaTeX: $\\frac{1}{3}$"
    same = make_cell()
    show(same, {"text/plain": "x", "text/latex": "$x$"})
    assert part(await answer("default", same, max_chars=8000), "result") == "x"


async def test_streams_come_before_the_result_and_are_marked() -> None:
    cell = make_cell()
    show(cell, {"text/plain": "7"})
    add(cell, "stream", name="stderr", text="warned")
    add(cell, "stream", name="stdout", text="\x1b[31mred\x1b[0m")
    result = await answer("default", cell, max_chars=8000)
    assert parts_of(result)[1:] == [
        ("stdout", "stdout:\nred"),
        ("stderr", "stderr:\nwarned"),
        ("result", "7"),
    ]


async def test_two_images_are_shown_and_the_others_are_named_with_their_call() -> None:
    cell = make_cell()
    for _ in range(5):
        show(cell, {"image/png": png(), "text/plain": "Graphics object"}, is_result=False)
    result = await answer("default", cell, max_chars=8000)
    assert sum(isinstance(block, ImageContent) for block in result.content) == 2
    assert "3 more images" in part(result, "next")
    assert 'sage_output(session="default", cell=7, stream="images", offset=2)' in part(
        result, "next"
    )
    more = await page("default", cell, "images", offset=4, limit=8000, pattern="")
    assert [kind for kind, _ in parts_of(more)] == ["status", "image"]


async def test_a_damaged_image_becomes_a_sentence() -> None:
    cell = make_cell()
    show(cell, {"image/png": base64.b64encode(b"\x89PNG nothing").decode()})
    result = await answer("default", cell, max_chars=8000)
    assert "cannot be shown" in part(result, "note")


async def test_help_is_shown_without_colours() -> None:
    cell = make_cell(payload_text="\x1b[31mSignature:\x1b[39m factor(n)\n")
    assert part(await answer("s", cell, max_chars=8000), "help") == "Signature: factor(n)"


async def test_a_cut_text_keeps_head_and_tail_and_names_the_exact_next_call() -> None:
    cell = make_cell()
    whole = "".join(f"line {i}\n" for i in range(5000))
    add(cell, "stream", name="stdout", text=whole)
    shown = part(await answer("default", cell, max_chars=1000), "stdout")
    assert shown.startswith("stdout:\nline 0\n")
    assert shown.endswith("line 4999\n")
    assert len(shown) < 1300
    found = re.search(
        r'sage_output\(session="default", cell=7, stream="stdout", offset=(\d+)\)', shown
    )
    assert found
    offset = int(found.group(1))
    [_, (_, paged), _] = parts_of(
        await page("default", cell, "stdout", offset=offset, limit=500, pattern="")
    )
    head = shown.removeprefix("stdout:\n")[:offset]
    assert head + paged == whole[: offset + 500]


async def test_the_offset_of_a_cut_result_counts_the_displays_before_it() -> None:
    cell = make_cell()
    show(cell, {"text/plain": "first"}, is_result=False)
    show(cell, {"text/plain": "0123456789" * 200})
    shown = part(await answer("s", cell, max_chars=400), "result")
    found = re.search(r'stream="result", offset=(\d+)', shown)
    assert found
    offset = int(found.group(1))
    kept = shown.split("\n…")[0]
    assert stream_text(cell, "result")[:offset] == "first\n" + kept


async def test_notices_stand_before_the_outputs() -> None:
    cell = make_cell(CellStatus.DIED)
    cell.notices.append("The kernel ran out of memory.")
    result = await answer("s", cell, max_chars=8000, notes=["While no cell ran: …"])
    assert part(result, "status").splitlines()[1:] == [
        "While no cell ran: …",
        "The kernel ran out of memory.",
    ]
    assert result.is_error
    assert "Run again" in part(result, "next")


async def test_missing_output_is_told() -> None:
    cell = make_cell(output_lost=True)
    cell.outputs.dropped_displays = 3
    status = part(await answer("s", cell, max_chars=8000), "status")
    assert "may be missing" in status
    assert "3 displays are not kept" in status


async def test_a_timed_out_cell_is_an_error_that_says_where_it_was_and_what_to_do() -> None:
    cell = make_cell(
        CellStatus.INTERRUPTED,
        stop_reason="time_limit",
        ladder=LadderOutcome(rung="sigint", elapsed_ms=200.0, variables_kept=True),
    )
    cell.failure = CellFailure(
        ename="KeyboardInterrupt",
        evalue="",
        traceback=("---", "Cell In[3], line 1\n----> 1 while True: pass", "KeyboardInterrupt: "),
    )
    result = await answer("s", cell, max_chars=8000)
    assert result.is_error
    assert (
        part(result, "error") == "KeyboardInterrupt\nCell In[3], line 1\n----> 1 while True: pass"
    )
    assert "time_limit_s" in part(result, "next")


async def test_every_text_is_free_of_lone_surrogates() -> None:
    cell = make_cell(CellStatus.ERROR)
    cell.failure = CellFailure(
        ename="Odd\ud800", evalue="\udfff", traceback=("Cell In[1], line 1 \ud800",)
    )
    cell.notices.append("\ud83d")
    result = await answer("s", cell, max_chars=8000)
    result.model_dump_json(by_alias=True).encode("utf-8")


def test_user_frames_are_kept_and_library_frames_counted() -> None:
    failure = CellFailure(
        ename="ZeroDivisionError",
        evalue="rational division by zero",
        traceback=(
            "\x1b[31m-----\x1b[39m",
            "\x1b[31mZeroDivisionError\x1b[39m   Traceback (most recent call last)",
            "\x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[8]\x1b[39m\x1b[32m, line 1\x1b[39m\n"
            "\x1b[32m----> \x1b[39m\x1b[32m1\x1b[39m f(Integer(\x1b[32m3\x1b[39m), RealNumber('1.50'))",
            "File /files/mine.py:3, in f(n)\n----> 3 g(n)",
            "File sage/rings/integer.pyx:2129, in sage.rings.integer.Integer.__truediv__()\n-> 2129 …",
            "File /opt/sage/lib/python3.11/site-packages/sage/misc/x.py:7, in h()\n----> 7 …",
            "\x1b[31mZeroDivisionError\x1b[39m: rational division by zero",
        ),
    )
    trimmed = tracebacks.trim(failure)
    assert trimmed.title == "ZeroDivisionError: rational division by zero"
    assert trimmed.frames == (
        "Cell In[8], line 1\n----> 1 f(3, 1.50)\nFile /files/mine.py:3, in f(n)\n----> 3 g(n)"
    )
    assert trimmed.omitted == 2
    assert "site-packages" in tracebacks.full_text(failure)
    assert "\x1b" not in tracebacks.full_text(failure)


def test_a_syntax_error_points_into_its_line_and_says_its_message_once() -> None:
    failure = CellFailure(
        ename="SyntaxError",
        evalue="incomplete input (2744281338.py, line 1)",
        traceback=(
            "  Cell In[11], line 1\n    solve(x**Integer(2)\n                       ^\n"
            "SyntaxError: incomplete input\n",
        ),
    )
    trimmed = tracebacks.trim(failure)
    assert trimmed.title == "SyntaxError: incomplete input (line 1)"
    assert trimmed.frames.endswith("solve(x**Integer(2)\n                       ^")


def test_deep_recursion_shows_its_first_and_last_frames() -> None:
    frames = tuple(f"Cell In[1], line {i}, in f(n)" for i in range(300))
    trimmed = tracebacks.trim(CellFailure(ename="RecursionError", evalue="…", traceback=frames))
    lines = trimmed.frames.splitlines()
    assert lines[0].endswith("line 0, in f(n)")
    assert lines[3] == "… 294 frames …"
    assert lines[-1].endswith("line 299, in f(n)")


@pytest.mark.parametrize(
    ("ename", "evalue", "expected"),
    [
        ("NameError", "name 'q' is not defined", "var('q')"),
        ("ModuleNotFoundError", "No module named 'foo'", "no network"),
        ("MemoryError", "", "memory"),
        ("ValueError", "name 'q' is not defined", ""),
    ],
)
def test_hints_come_only_where_the_exception_tells_enough(
    ename: str, evalue: str, expected: str
) -> None:
    found = tracebacks.hint(CellFailure(ename=ename, evalue=evalue))
    assert expected in found
    assert bool(found) == bool(expected)


@given(st.lists(st.integers(0, 5000), max_size=12), st.integers(0, 10_000))
def test_shares_never_exceed_need_or_budget_and_waste_nothing(
    lengths: list[int], budget: int
) -> None:
    given_out = shares(lengths, budget)
    assert all(got <= need for got, need in zip(given_out, lengths, strict=True))
    assert sum(given_out) <= budget
    # Division may leave one character for each part.
    assert sum(given_out) >= min(sum(lengths), budget) - len(lengths)


async def test_pages_cover_the_whole_text_without_gap() -> None:
    cell = make_cell()
    whole = "".join(f"{i}," for i in range(3000))
    add(cell, "stream", name="stdout", text=whole)
    read, offset = "", 0
    while True:
        result = await page("s", cell, "stdout", offset=offset, limit=700, pattern="")
        read += part(result, "page")
        following = [text for kind, text in parts_of(result) if kind == "next"]
        if not following:
            break
        found = re.search(r"offset=(\d+)", following[0])
        assert found
        offset = int(found.group(1))
    assert read == whole


async def test_a_search_gives_matching_lines_with_offsets_that_lead_there() -> None:
    cell = make_cell()
    whole = "".join(f"line {i} {'Odd' if i % 100 == 7 else ''}\n" for i in range(1000))
    add(cell, "stream", name="stdout", text=whole)
    lines: list[str] = []
    offset, calls = 0, 0
    while True:
        calls += 1
        result = await page("s", cell, "stdout", offset=offset, limit=60, pattern="odd")
        lines += part(result, "page").splitlines()
        following = [text for kind, text in parts_of(result) if kind == "next"]
        if not following:
            break
        assert 'pattern="odd"' in following[0]
        found = re.search(r"offset=(\d+)", following[0])
        assert found
        offset = int(found.group(1))
    assert calls > 1
    assert len(lines) == 10
    for line in lines:
        where, text = line.split(": ", 1)
        assert whole[int(where) :].startswith(text)


async def test_reading_behind_the_end_or_an_empty_stream_is_told() -> None:
    cell = make_cell()
    empty = await page("s", cell, "stderr", offset=0, limit=500, pattern="")
    assert part(empty, "status") == "[s #7 ok 0.42 s] stderr: empty."
    add(cell, "stream", name="stdout", text="abc")
    with pytest.raises(ToolError, match="has 3 characters"):
        await page("s", cell, "stdout", offset=3, limit=500, pattern="")
    with pytest.raises(ToolError, match="0 images"):
        await page("s", cell, "images", offset=0, limit=500, pattern="")
    with pytest.raises(ToolError, match="0 or more"):
        await page("s", cell, "stdout", offset=-1, limit=500, pattern="")


def test_all_text_names_each_stream() -> None:
    cell = make_cell(CellStatus.ERROR)
    add(cell, "stream", name="stdout", text="out\n")
    show(cell, {"text/plain": "5"})
    cell.failure = CellFailure(ename="E", evalue="v", traceback=("full",))
    assert all_text(cell) == "stdout:\nout\nresult:\n5\ntraceback:\nfull"


def test_a_display_without_text_has_no_text_part() -> None:
    cell = make_cell()
    cell.outputs.add(
        Message(
            channel="iopub",
            msg_type="display_data",
            msg_id="m",
            content={"data": {"image/png": png()}},
        )
    )
    [only] = outline(cell)
    assert type(only).__name__ == "ImagePart"
    assert RichOutput(data={}).display_id is None
