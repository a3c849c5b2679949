"""``sagebroker export``: a session as a notebook."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagebroker.cli.console import (
    EXIT_FAILED,
    Json,
    complain,
    err,
    exits,
    out,
    print_json,
    refuse,
    run_async,
    write,
)

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig
    from sagebroker.notebook.export import Exported

STDOUT = "-"


def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A session's name.")],
    file: Annotated[Path, typer.Argument(metavar="OUT.ipynb", help="A new file; - for stdout.")],
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    limit_mib: Annotated[
        float,
        typer.Option(
            help="Size of the notebook; the largest outputs beyond it are left out.", min=0.01
        ),
    ] = 100.0,
    as_json: Json = False,
) -> None:
    """Write a session's cells and outputs as a Jupyter notebook.

    Says which cells a replay in a new kernel cannot repeat, and why. The session may sleep, or be used
    by another process: nothing is woken or disturbed.
    """
    is_stdout = str(file) == STDOUT
    if is_stdout and as_json:
        refuse("--json prints on stdout itself: give a file for the notebook.")
    if file.is_dir():
        refuse(f"{file} is a folder: give the name of a file in it.")
    if not is_stdout and file.exists() and not force:
        refuse(f"{file} is there already. --force replaces it.")
    exported: Exported = run_async(_export, context.obj, name, int(limit_mib * 2**20))
    with exits():
        if is_stdout:
            write(exported.text(), sys.stdout)
        else:
            _put(file, exported.text())
    if as_json:
        print_json(_as_json(exported, file))
        return
    _tell(exported, None if is_stdout else file)


async def _export(config: BrokerConfig, name: str, limit_bytes: int) -> Exported:
    from sagebroker.broker import Broker
    from sagebroker.notebook.export import export as export_session

    async with Broker(config) as broker:
        return await export_session(broker, name, limit_bytes=limit_bytes)


def _put(file: Path, text: str) -> None:
    """Write the file in one step: whoever looks sees the old one or the new one, whole."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        try:
            draft.write_text(text, encoding="utf-8")
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        complain(f"{file} cannot be written: {error.strerror or error}.")
        raise typer.Exit(EXIT_FAILED) from None


def _tell(exported: Exported, file: Path | None) -> None:
    """Say on stderr, where the notebook may be on stdout, what a replay of it cannot repeat."""
    cells, problems = len(exported.notebook.cells), exported.problems
    if file is not None:
        out.print(f"{cells} cells are in {file}.", markup=False)
    if exported.missing:
        err.print(exported.missing, style="yellow", markup=False)
    if problems:
        err.print(f"A replay does not repeat {len(problems)} of the {cells} cells:", markup=False)
    for problem in problems:
        done = "not run" if problem["mode"] == "skip" else "not compared"
        reasons = "; ".join(problem["reasons"])
        err.print(f"  cell {problem['cell']}, {done}: {reasons}", markup=False)


def _as_json(exported: Exported, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "cells": len(exported.notebook.cells),
        "missing": exported.missing,
        "not_repeated": exported.problems,
    }
