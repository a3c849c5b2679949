"""``sagebroker run``: one cell from the command line."""

from __future__ import annotations

import base64
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.markup import escape

from sagebroker.broker import Broker
from sagebroker.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Json,
    OutputLostError,
    complain,
    ending_signals,
    err,
    exits,
    print_json,
    refuse,
    run_async,
    write,
)
from sagebroker.cli.terminal import read_answer
from sagebroker.config import BrokerConfig
from sagebroker.errors import alone
from sagebroker.model import CellStatus
from sagebroker.protocol.text import clean, strip_ansi
from sagebroker.session.cell import Cell

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

    from sagebroker.container.runtime import ContainerRuntime
    from sagebroker.session.session import Session

PRIVATE_SESSION = "run"
"""Name of the session that lives as long as one command; private to its process."""

_POLL_S = 0.1


def run(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="A file with Sage code; - for stdin.")] = None,
    code: Annotated[str, typer.Option("--code", "-c", help="Sage code.")] = "",
    session: Annotated[
        str, typer.Option("--session", "-s", help="A session that stays; opened if need be.")
    ] = "",
    time_limit: Annotated[float, typer.Option(help="Seconds the code may take.", min=0.1)] = 600.0,
    images: Annotated[
        Path | None, typer.Option(help="Folder for the images that are shown.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run Sage code in a container and print what it prints.

    Without -s the session ends with the command. With -s its variables are there the next time.
    """
    if bool(code) == bool(file):
        refuse("give either a file or -c CODE.")
    if file is not None:
        code = _read(file)
    if images is not None:
        _make_folder(images)
    cell = run_async(
        partial(compute, quiet=as_json),
        context.obj,
        code,
        session,
        time_limit,
        heeds_signals=True,
    )
    if cell is None:
        raise typer.Exit(EXIT_INTERRUPTED)
    with exits():
        unsaved = _print_json_end(cell, images) if as_json else _print_end(cell, images)
    for problem in unsaved:
        complain(problem)
    if cell.status is not CellStatus.OK:
        raise typer.Exit(EXIT_INTERRUPTED if cell.stop_reason == "request" else EXIT_FAILED)
    if unsaved:
        raise typer.Exit(EXIT_FAILED)


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(f"{file} cannot be read: {error}")


def _make_folder(path: Path) -> None:
    """Before the computation: hours of it are not to end at a folder that cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"The folder {path} cannot be made: {error}")
    if not os.access(path, os.W_OK | os.X_OK):
        refuse(f"The folder {path} cannot be written.")


class _Interruption:
    """What signals do: the first one stops the cell, if it runs; any other ends the command."""

    def __init__(self) -> None:
        self.work = anyio.CancelScope()
        self._running: tuple[Session, Cell] | None = None

    def concern(self, session: Session, cell: Cell) -> None:
        """From now on a signal means this cell."""
        self._running = session, cell

    async def watch(self, *, task_status: TaskStatus[None]) -> None:
        """Heed signals, also while the broker closes: they must not cut that short."""
        with anyio.open_signal_receiver(*ending_signals()) as signals:
            async with anyio.create_task_group() as tg:
                task_status.started()
                async for _ in signals:
                    if self._running is None:
                        self.work.cancel()
                        continue
                    session, cell = self._running
                    self._running = None
                    tg.start_soon(session.cancel, cell, "request")


async def compute(
    config: BrokerConfig,
    code: str,
    name: str,
    time_limit_s: float,
    *,
    quiet: bool = False,
    runtime: ContainerRuntime | None = None,
) -> Cell | None:
    """Run one cell and show its streams while it runs; signals stop it.

    Args:
        config: The broker's configuration.
        code: The cell's code.
        name: A session that stays, opened if need be; empty for one that ends with this call.
        time_limit_s: Seconds the cell may take.
        quiet: Show nothing.
        runtime: An engine to use in place of the one that would be found.

    Returns:
        The cell at its end; None where a signal came before that.

    Raises:
        BrokerError: There is no kernel; says why. In a group, as all that is raised here.
        OutputLostError: Nobody reads what is shown; the cell has been stopped.
    """
    interruption = _Interruption()
    cell = None
    async with anyio.create_task_group() as tg:
        await tg.start(interruption.watch)
        with interruption.work:
            async with Broker(config, runtime) as broker:
                session, _ = await broker.open_session(
                    name or PRIVATE_SESSION, keep=bool(name), private=not name
                )
                for notice in session.take_notices():
                    err.print(notice, style="yellow", markup=False)
                cell = session.submit(code, time_limit_s=time_limit_s, author="cli")
                interruption.concern(session, cell)
                await _follow(session, cell, quiet=quiet)
        tg.cancel_scope.cancel()
    return cell if cell is not None and cell.told else None


async def _follow(session: Session, cell: Cell, *, quiet: bool) -> None:
    """Show the cell's streams until it has ended."""
    shown = {"stdout": 0, "stderr": 0}
    try:
        while not await cell.wait(_POLL_S):
            if not quiet:
                _print_new(cell, shown)
            await _have_answered(session, cell)
        if not quiet:
            _print_new(cell, shown)
    except OutputLostError:
        # As a pipe's end stops any other program.
        await session.cancel(cell, "request")
        raise
    cell.tell()


async def _have_answered(session: Session, cell: Cell) -> None:
    """Put what the cell asks to the person at the terminal, while it asks that."""
    asked = cell.asks
    if asked is None:
        return
    text = None
    with alone():
        async with anyio.create_task_group() as tg:

            async def give_up() -> None:
                await cell.wait_moved_on()
                tg.cancel_scope.cancel()

            tg.start_soon(give_up)
            text = await read_answer(asked)
            tg.cancel_scope.cancel()
    if text is not None and cell.asks is asked:
        await session.answer(cell, text)


def _print_new(cell: Cell, shown: dict[str, int]) -> None:
    """Print what the streams have got since the last time; the middle of a flood is left out."""
    for name, stream, target in (
        ("stdout", cell.outputs.stdout, sys.stdout),
        ("stderr", cell.outputs.stderr, sys.stderr),
    ):
        text = stream.kept
        if len(text) > shown[name] and not stream.omitted:
            write(clean(text[shown[name] :]), target)
            shown[name] = len(text)
        elif stream.omitted and cell.status.is_final and shown[name] >= 0:
            write(f"\n… {stream.omitted} characters left out …\n{clean(stream.tail)}", target)
            shown[name] = -1


def _print_end(cell: Cell, images: Path | None) -> list[str]:
    """Print what the cell left beside its streams, then save its images; returns what failed."""
    for output in cell.outputs.displays:
        text = output.data.get("text/plain")
        if isinstance(text, str):
            write(clean(text) + "\n", sys.stdout)
    if cell.payload_text:
        write(strip_ansi(clean(cell.payload_text)) + "\n", sys.stdout)
    if cell.failure is not None:
        trace = clean(
            "\n".join(cell.failure.traceback) or f"{cell.failure.ename}: {cell.failure.evalue}"
        )
        write((trace if sys.stderr.isatty() else strip_ansi(trace)) + "\n", sys.stderr)
    for notice in cell.notices:
        err.print(notice, style="yellow", markup=False)
    saved, unsaved = _save_images(cell, images)
    for path in saved:
        err.print(f"[green]image[/] {escape(path)}")
    return unsaved


def _print_json_end(cell: Cell, images: Path | None) -> list[str]:
    """Save the images, whose paths the document tells, and print it whatever became of them."""
    saved, unsaved = _save_images(cell, images)
    print_json(_as_json(cell, saved))
    return unsaved


def _save_images(cell: Cell, folder: Path | None) -> tuple[list[str], list[str]]:
    """Paths of the images that were saved, and sentences about those that could not be."""
    saved: list[str] = []
    unsaved: list[str] = []
    for number, output in enumerate(cell.outputs.displays if folder else (), start=1):
        for kind, suffix in (("image/png", "png"), ("image/jpeg", "jpg"), ("image/svg+xml", "svg")):
            content = output.data.get(kind)
            if folder is None or not isinstance(content, str):
                continue
            path = folder / f"output-{number}.{suffix}"
            try:
                path.write_bytes(_image_bytes(kind, content))
            except (OSError, ValueError) as error:
                unsaved.append(f"The image {path} could not be saved: {error}.")
            else:
                saved.append(str(path))
    return saved, unsaved


def _image_bytes(kind: str, content: str) -> bytes:
    """Raises `ValueError` where the kernel sent something else."""
    if kind.endswith("xml"):
        return content.encode()
    return base64.b64decode("".join(content.split()), validate=True)


def _as_json(cell: Cell, saved: list[str]) -> dict[str, Any]:
    failure = cell.failure
    return {
        "status": cell.word,
        "elapsed_s": round(cell.elapsed_s, 4),
        "stdout": clean(cell.outputs.stdout.kept),
        "stderr": clean(cell.outputs.stderr.kept),
        "omitted": cell.outputs.stdout.omitted + cell.outputs.stderr.omitted,
        "outputs": [
            {"result": output.is_result, "data": {k: _text(v) for k, v in output.data.items()}}
            for output in cell.outputs.displays
        ],
        "images": saved,
        "error": None
        if failure is None
        else {
            "name": clean(failure.ename),
            "message": clean(failure.evalue),
            "traceback": [strip_ansi(clean(line)) for line in failure.traceback],
        },
        "notices": cell.notices,
    }


def _text(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value
