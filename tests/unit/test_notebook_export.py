"""A session's transcript as a notebook: outputs and their order, metadata, size, validity."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import nbformat
import pytest
from tests.unit.store_rows import cell_row, session_row
from tests.unit.transcripts import message

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.errors import NotebookTooLargeError, SessionNotFoundError
from sagebroker.model import CellFailure, CellStatus, ExitCause, ExitReport
from sagebroker.notebook.cells import notebook_cell, notebook_outputs
from sagebroker.notebook.export import LIMIT_BYTES, Exported, export
from sagebroker.protocol.outputs import MAX_SEGMENTS, OutputFold
from sagebroker.session.cell import Cell
from sagebroker.store.database import Database
from sagebroker.store.folders import StateFolder
from sagebroker.testing.fake_runtime import FakeRuntime

Shown = Sequence[tuple[str, dict[str, Any]]]
Fill = Callable[[Database], None]

ID = "aaaaaaaaaa"
NAME = f"name-{ID}"
PNG = "iVBORw0KGgo="


def out(text: str, name: str = "stdout") -> tuple[str, dict[str, Any]]:
    return "stream", {"name": name, "text": text}


def shows(kind: str = "display_data", **data: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"data": {name.replace("_", "/"): value for name, value in data.items()}}


def cell_showing(*shown: tuple[str, dict[str, Any]], stream_bytes: int = 2**20) -> Cell:
    fold = OutputFold(stream_bytes=stream_bytes)
    for msg_type, content in shown:
        fold.add(message(msg_type, content))
    return Cell(number=1, code="1", time_limit_s=1, outputs=fold, execution_count=7)


def kinds(cell: Cell) -> list[tuple[str, str]]:
    """What each output is, and its text."""
    return [
        (o.get("name") or o.output_type, o.get("text") or o.get("data", {}).get("text/plain", ""))
        for o in notebook_outputs(cell)
    ]


@pytest.fixture
def filled(config: BrokerConfig) -> Callable[..., Any]:
    """Exports the session ``aaaaaaaaaa`` from a store with what a test puts there; no engine is asked."""

    async def exported(fill: Fill, limit_bytes: int = LIMIT_BYTES) -> Exported:
        state = StateFolder(config.state_dir)
        state.open()
        store = Database.open(state.database, lambda session: state.folder(session).outputs)
        state.folder(ID).path.mkdir(parents=True)
        store.add_session(session_row())
        fill(store)
        store.close()
        async with Broker(config, FakeRuntime()) as broker:
            return await export(broker, NAME, limit_bytes=limit_bytes)

    return exported


def test_streams_and_displays_come_in_the_order_in_which_they_were_shown() -> None:
    cell = cell_showing(
        out("a\n"),
        out("warn\n", "stderr"),
        shows(text_plain="<plot>", image_png=PNG),
        out("b"),
        out("c\n"),
        shows("execute_result", text_plain="42", text_latex="$42$", text_html="<b>42</b>"),
        out("late"),
    )
    assert kinds(cell) == [
        ("stdout", "a\n"),
        ("stderr", "warn\n"),
        ("display_data", "<plot>"),
        ("stdout", "bc\n"),
        ("execute_result", "42"),
        ("stdout", "late"),
    ]
    outputs = notebook_outputs(cell)
    assert outputs[2].data == {"text/plain": "<plot>", "image/png": PNG}
    assert outputs[4].data.keys() == {"text/plain", "text/latex", "text/html"}
    assert outputs[4].execution_count == 7


def test_the_middle_that_was_not_kept_is_told_where_it_is_missing() -> None:
    cell = cell_showing(
        out("h" * 60), shows(text_plain="1"), out("m" * 900 + "t" * 50), stream_bytes=100
    )
    assert kinds(cell) == [
        ("stdout", "h" * 50 + "\n… [910 characters omitted] …\n"),
        ("display_data", "1"),
        ("stdout", "t" * 50),
    ]
    assert notebook_cell(ID, cell).metadata.sagebroker.is_incomplete


def test_all_text_is_there_even_where_its_order_is_not_known() -> None:
    shown = [out(f"{n};", "stdout" if n % 2 else "stderr") for n in range(MAX_SEGMENTS + 50)]
    cell = cell_showing(*shown, shows(text_plain="last"))
    texts = {"stdout": "", "stderr": "", "display_data": ""}
    for kind, text in kinds(cell):
        texts[kind] += text
    every = range(MAX_SEGMENTS + 50)
    assert texts["stdout"] == "".join(f"{n};" for n in every if n % 2)
    assert texts["stderr"] == "".join(f"{n};" for n in every if not n % 2)
    assert texts["display_data"] == "last"


def test_an_exception_comes_last_with_its_traceback() -> None:
    cell = cell_showing(out("before"))
    cell.failure = CellFailure(ename="E", evalue="v\ud800", traceback=("\x1b[31mline\x1b[0m",))
    error = notebook_outputs(cell)[-1]
    assert (error.output_type, error.ename, error.evalue) == ("error", "E", "v\\ud800")
    assert error.traceback == ["\x1b[31mline\x1b[0m"]


def test_a_cell_tells_who_sent_it_when_and_how_it_ended() -> None:
    cell = cell_showing()
    cell.author, cell.payload_text = "mcp", "help"
    cell.start("m", 1)
    cell.stop_reason = "time_limit"
    cell.notices.append("It took too long.")
    cell.exit = ExitReport(cause=ExitCause.SIGNAL, generation=1, signal=9)
    cell.finish(CellStatus.DIED)
    made = notebook_cell(ID, cell)
    about = made.metadata.sagebroker
    assert made.id == f"{ID}-1"
    assert (about.number, about.author, about.status) == (1, "mcp", "died")
    assert about.started <= about.ended
    assert about.started.endswith("+00:00")
    assert (about.stop_reason, about.notices) == ("time_limit", ["It took too long."])
    assert about.pager == "help"
    assert about.variables_kept is False


async def test_whatever_a_kernel_sends_makes_a_valid_notebook(
    filled: Callable[..., Any],
) -> None:
    bundle = {
        "text/plain": ["a", "b"],
        "image/png": PNG + "\n",
        "application/json": {"a": [1, float("nan"), 10**40], "b\ud800": "\ud800"},
        "application/vnd.x.v1+json": {"x": None},
        "text/x-json": {"not": "text"},
        "application/octet-stream": "AAECAw==",
    }
    shown: Shown = [
        out("\ud83d\0\x1b[1mé"),
        ("display_data", {"data": bundle, "metadata": {"w": float("inf")}}),
        ("execute_result", {"data": {"text/plain": "1"}, "metadata": {}, "execution_count": 3}),
        ("error", {"ename": "E", "evalue": 1, "traceback": ["x", 2]}),
    ]

    def fill(store: Database) -> None:
        first = cell_row(1, code="'\ud800'", author="mcp", started_at=1.0, ended_at=2.5)
        rest = [cell_row(2, status=CellStatus.QUEUED), cell_row(3, code="", execution_count=0)]
        store.save(cells=[first, *rest], outputs={(ID, 1): shown})

    exported = await filled(fill)
    for text in (exported.text(), exported.compact_text()):
        read = nbformat.reads(text.encode().decode(), as_version=4)
        nbformat.validate(read)
        assert (read.nbformat, read.nbformat_minor) == (4, 5)
        assert [cell.id for cell in read.cells] == [f"{ID}-{n}" for n in (1, 2, 3)]
        assert read.cells[0].source == "'\\ud800'"
        displayed = read.cells[0].outputs[1].data
        assert displayed["text/plain"] == "ab"
        assert displayed["application/json"]["a"] == [1, None, 10**40]
        assert displayed["application/vnd.x.v1+json"] == {"x": None}
        assert json.loads(displayed["text/x-json"]) == {"not": "text"}
    about = exported.notebook.cells[0].metadata.sagebroker
    assert (about.started, about.ended) == (
        "1970-01-01T00:00:01.000+00:00",
        "1970-01-01T00:00:02.500+00:00",
    )


async def test_the_notebook_tells_its_kernel_session_and_versions(
    filled: Callable[..., Any],
) -> None:
    def fill(store: Database) -> None:
        for software in ("sage 10.7", "sage 10.8", "sage 10.8"):
            store.add_event("kernel.ready", ID, {"software": software})
        store.save(cells=[cell_row(5)])

    exported = await filled(fill)
    told = exported.notebook.metadata
    assert told.kernelspec == {
        "name": "sagemath",
        "display_name": "SageMath (container)",
        "language": "sage",
    }
    assert told.language_info.name == "python"
    assert (told.sagebroker.session, told.sagebroker.image) == (NAME, "i:1")
    assert told.sagebroker.kernels == ["sage 10.7", "sage 10.8"]
    assert "before number 5" in exported.missing


def large_cells(store: Database) -> None:
    shown: Shown = [
        out("x" * 30_000),
        shows(text_plain="small", image_png="A" * 400_000),
        shows(image_png="B" * 200_000),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["t" * 20_000]}),
    ]
    store.save(
        cells=[cell_row(n, execution_count=n, started_at=1.0) for n in (1, 2)],
        outputs={(ID, 1): shown, (ID, 2): [out("y" * 10), shows(image_png="C" * 100_000)]},
    )


@pytest.mark.parametrize(
    ("limit", "left_out", "first"),
    [
        (LIMIT_BYTES, {}, 1),
        (500_000, {1: ["image/png"]}, 1),
        (200_000, {1: ["image/png", "image/png"]}, 1),
        (20_000, {1: ["image/png", "image/png", "stdout", "traceback"], 2: ["image/png"]}, 1),
        (2_000, {2: ["image/png"]}, 2),
    ],
)
async def test_what_does_not_fit_is_left_out_the_largest_first_and_told(
    filled: Callable[..., Any], limit: int, left_out: dict[int, list[str]], first: int
) -> None:
    exported = await filled(large_cells, limit)
    cells = exported.notebook.cells
    text = exported.compact_text()
    nbformat.validate(nbformat.reads(text, as_version=4))
    assert sum(len(json.dumps(cell)) for cell in cells) <= limit + 2_000
    abouts = [cell.metadata.sagebroker for cell in cells]
    told = {a.number: [one["kind"] for one in a.left_out] for a in abouts if "left_out" in a}
    assert told == left_out
    assert cells[0].metadata.sagebroker.number == first
    assert bool(exported.missing) is (first > 1)
    assert text.count("was left out of this notebook") >= len(left_out)
    for cell in cells:
        if cell.metadata.sagebroker.number in left_out:
            assert "nbval-ignore-output" in cell.metadata.tags
    if len(left_out.get(1, [])) == 4:
        stream, first_image, second_image, error = cells[0].outputs
        assert "characters was left out" in stream.text
        assert first_image.data == {"text/plain": "small"}
        assert second_image.data["text/plain"].startswith("[image/png of 200000 bytes")
        assert error.traceback == []


async def test_pictures_go_before_any_cell_does(filled: Callable[..., Any]) -> None:
    def fill(store: Database) -> None:
        numbers = range(1, 201)
        store.save(
            cells=[cell_row(n, execution_count=n, started_at=1.0) for n in numbers],
            outputs={(ID, n): [shows(text_plain="p", image_png="A" * 5_000)] for n in numbers},
        )

    exported = await filled(fill, 500_000)
    cells = exported.notebook.cells
    assert len(cells) == 200
    assert 300_000 < len(exported.compact_text()) < 502_000
    assert 0 < len(exported.problems) < 200


async def test_a_cell_that_alone_is_too_large_is_told(filled: Callable[..., Any]) -> None:
    with pytest.raises(NotebookTooLargeError, match="sagebroker export"):
        await filled(lambda store: store.save(cells=[cell_row(1, code="1" * 5000)]), 4000)


async def test_a_session_that_is_not_there_is_told(config: BrokerConfig) -> None:
    async with Broker(config, FakeRuntime()) as broker:
        with pytest.raises(SessionNotFoundError, match="'nowhere'"):
            await export(broker, "nowhere")
