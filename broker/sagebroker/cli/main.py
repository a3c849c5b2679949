"""The command's entry: common options, and where each command is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagebroker import __version__
from sagebroker.cli.attach import attach
from sagebroker.cli.console import fail, run_async
from sagebroker.cli.doctor import doctor
from sagebroker.cli.export import export
from sagebroker.cli.image import image_app
from sagebroker.cli.kernelspec import kernelspec_app
from sagebroker.cli.run import run
from sagebroker.cli.serve import serve, token_app
from sagebroker.cli.sessions import sessions_app
from sagebroker.cli.state import add_state_commands
from sagebroker.config import BrokerConfig
from sagebroker.errors import BrokerError
from sagebroker.logs import set_up_logging

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Session broker for SageMath kernels: one hardened container each, driven through MCP.",
)
app.command()(run)
app.command()(attach)
app.command()(serve)
app.command()(doctor)
app.command()(export)
add_state_commands(sessions_app)
app.add_typer(sessions_app, name="sessions")
app.add_typer(token_app, name="token")
app.add_typer(kernelspec_app, name="kernelspec")
app.add_typer(image_app, name="image")


def _show_version(*, version: bool) -> None:
    if version:
        typer.echo(f"sagebroker {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="TOML file in place of the default one.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "",
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            # A callback of its own: this function runs only where a command follows.
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Common options; environment variables are SAGEBROKER_…."""
    del version
    try:
        loaded = BrokerConfig.load(config, **({"log": {"level": log_level}} if log_level else {}))
    except BrokerError as error:
        fail(error)
    set_up_logging(loaded.log.level, as_json=loaded.log.as_json)
    context.obj = loaded


@app.command()
def mcp(context: typer.Context) -> None:
    """Serve MCP on stdin and stdout; an MCP client starts this. Joins a server that runs."""
    from sagebroker.server.stdio import serve_stdio

    run_async(serve_stdio, context.obj, heeds_signals=True)


def main() -> None:
    """Entry point of the ``sagebroker`` command."""
    app()
