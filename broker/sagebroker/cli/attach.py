"""``sagebroker attach``: a person joins a session, beside whoever uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sagebroker.cli.console import (
    Json,
    err,
    exits,
    out,
    print_json,
    refuse,
    run_async,
)
from sagebroker.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from sagebroker.config import BrokerConfig
    from sagebroker.jupyter.link import Connection


def attach(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A session; opened if need be.")],
    console: Annotated[
        bool, typer.Option("--console", help="Jupyter's console in this terminal.")
    ] = False,
    connection_file: Annotated[
        bool, typer.Option("--connection-file", help="Print the path of its connection file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Use a session that an agent uses, from a terminal or any Jupyter tool; leaving does not end it."""
    if sum((console, connection_file)) != 1:
        refuse("give --console or --connection-file, one of them.")
    connection, is_new = run_async(_open, context.obj, name)
    place = _place(context.obj, connection)
    if is_new:
        err.print(f"Session {name!r} is new.", style="yellow", markup=False)
    if console:
        with exits():
            _have_console(place)
    elif as_json:
        print_json({"connection_file": str(place)} | connection)
    else:
        out.print(str(place), markup=False)


async def _open(config: BrokerConfig, name: str) -> tuple[Connection, bool]:
    from sagebroker.jupyter.link import Link

    return await Link(config).open(name)


def _place(config: BrokerConfig, connection: Connection) -> Path:
    from sagebroker.jupyter.link import connection_file

    return connection_file(config, connection)


def _have_console(place: Path) -> None:
    try:
        from sagebroker.jupyter.console import run_console
    except ImportError as error:
        raise ConfigError(
            "Jupyter's console is not installed.",
            hint="Install it: pip install 'sagebroker[console]'.",
        ) from error
    run_console(place)
