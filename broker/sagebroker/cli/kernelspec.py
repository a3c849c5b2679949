"""``sagebroker kernelspec``: sessions among the kernels that Jupyter offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sagebroker.cli.console import Json, exits, out, print_json, refuse
from sagebroker.session.names import check_session_name

if TYPE_CHECKING:
    from sagebroker.jupyter.specs import Installed

kernelspec_app = typer.Typer(
    no_args_is_help=True, help="Install, list and remove kernelspecs for Jupyter."
)


@kernelspec_app.command("install")
def install(
    context: typer.Context,
    session: Annotated[
        str, typer.Option(help="Session that its kernels join; without, each has a new one.")
    ] = "",
    user: Annotated[bool, typer.Option("--user", help="For any Jupyter that you run.")] = False,
    prefix: Annotated[str, typer.Option(help="Below this folder, such as /usr/local.")] = "",
    as_json: Json = False,
) -> None:
    """Let Jupyter offer SageMath in a container as a kernel; by default in this Python environment."""
    import sys

    from sagebroker.jupyter import specs

    if user and prefix:
        refuse("give --user or --prefix, not both.")
    with exits():
        if session:
            check_session_name(session)
        where = "" if user else prefix or sys.prefix
        done = specs.install(context.obj, session=session, user=user, prefix=where)
    if as_json:
        print_json(_view(done))
        return
    out.print(f"Installed {done.name} in {done.folder}.", markup=False)
    out.print(
        f"Jupyter offers it as {done.display_name!r}; try: jupyter console --kernel {done.name}",
        markup=False,
    )


@kernelspec_app.command("list")
def list_kernelspecs(as_json: Json = False) -> None:
    """Those of sagebroker that Jupyter finds."""
    from sagebroker.jupyter import specs

    with exits():
        found = specs.installed()
    if as_json:
        print_json([_view(one) for one in found])
        return
    if not found:
        out.print("None is installed. That is done by: sagebroker kernelspec install")
        return
    table = Table("name", "shown as", "session", "folder")
    for one in found:
        table.add_row(one.name, one.display_name, one.session or "a new one", str(one.folder))
    out.print(table)


@kernelspec_app.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Its name, as listed.")], as_json: Json = False
) -> None:
    """Remove one; sessions stay as they are."""
    from sagebroker.jupyter import specs

    with exits():
        gone = specs.remove(name)
    if as_json:
        print_json(_view(gone))
        return
    out.print(f"Removed {gone.name} from {gone.folder}.", markup=False)


def _view(one: Installed) -> dict[str, Any]:
    return {
        "name": one.name,
        "display_name": one.display_name,
        "session": one.session or None,
        "folder": str(one.folder),
    }
