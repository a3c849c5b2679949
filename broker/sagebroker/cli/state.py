"""``sagebroker sessions variables|checkpoints|save|restore``: what a session holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sagebroker.cli.console import EXIT_FAILED, Json, complain, err, out, print_json, run_async
from sagebroker.model import utcnow

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig
    from sagebroker.kernel.checkpoints import CheckpointInfo, VariableList
    from sagebroker.session.session import Session
    from sagebroker.session.sleep import Saved

Name = Annotated[str, typer.Argument(help="A session's name.")]


def add_state_commands(sessions: typer.Typer) -> None:
    """Register the commands."""
    sessions.command("variables")(variables)
    sessions.command("checkpoints")(checkpoints)
    sessions.command("save")(save)
    sessions.command("restore")(restore)


def variables(
    context: typer.Context,
    name: Name,
    pattern: Annotated[str, typer.Argument(help="Of the names, with * and ?.")] = "*",
    as_json: Json = False,
) -> None:
    """List a session's variables; one that sleeps is woken for it."""

    async def act(session: Session) -> VariableList:
        return await session.variables(pattern, 500)

    listed = run_async(_in_session, context.obj, name, act)
    if as_json:
        print_json(asdict(listed))
        return
    table = Table("name", "type", "bytes", "value")
    for variable in listed.variables:
        size = "?" if variable.bytes is None else str(variable.bytes)
        table.add_row(variable.name, variable.type, size, variable.repr or "?")
    out.print(table)


def checkpoints(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """List a session's saved states, whoever serves it."""

    async def act(config: BrokerConfig) -> Sequence[CheckpointInfo]:
        from sagebroker.broker import Broker

        async with Broker(config) as broker:
            catalogue = await broker.catalogue()
            return await catalogue.checkpoints(await catalogue.find(name))

    found = run_async(act, context.obj)
    if as_json:
        print_json([asdict(info) for info in found])
        return
    table = Table("number", "label", "variables", "after", "MiB", "age", "missing")
    for info in found:
        table.add_row(
            str(info.number),
            info.label,
            str(info.names),
            f"In[{info.cell}]",
            f"{info.bytes / 2**20:.1f}",
            f"{max(0.0, utcnow().timestamp() - info.saved_at):.0f} s",
            ", ".join(name for name, _ in info.missing),
        )
    out.print(table)


def save(
    context: typer.Context,
    name: Name,
    label: Annotated[str, typer.Option(help="A name that keeps this state.")] = "",
    as_json: Json = False,
) -> None:
    """Save a session's variables now."""

    async def act(session: Session) -> Saved:
        return await session.checkpoint(label)

    saved = run_async(_in_session, context.obj, name, act)
    if as_json:
        print_json(asdict(saved))
    elif not saved.error:
        out.print(f"Session {name!r} is saved as checkpoint {saved.number}.", markup=False)
    for missing, reason in saved.missing:
        err.print(f"not saved: {missing}: {reason}", style="yellow", markup=False)
    if saved.error:
        complain(f"Session {name!r}: {saved.loss}.")
        raise typer.Exit(EXIT_FAILED)


def restore(
    context: typer.Context,
    name: Name,
    checkpoint: Annotated[str, typer.Argument(help="Number or label.")],
    as_json: Json = False,
) -> None:
    """Put a new kernel with a saved state's variables in place of the session's."""

    async def act(session: Session) -> str:
        return await session.restart(restore=await session.restore_order(checkpoint))

    said = run_async(_in_session, context.obj, name, act)
    if as_json:
        print_json({"name": name, "restored": checkpoint, "told": said})
    else:
        out.print(said, markup=False)


async def _in_session(
    config: BrokerConfig, name: str, act: Callable[[Session], Awaitable[Any]]
) -> Any:
    """What ``act`` returns for the session, which is left afterwards as its owner wants it."""
    from sagebroker.broker import Broker

    async with Broker(config) as broker:
        # Whoever looks and leaves must not end a computation by that.
        await broker.directory.check_idle(name)
        session = await broker.awake(name)
        for notice in session.take_notices():
            err.print(notice, style="yellow", markup=False)
        return await act(session)
