"""``sagebroker sessions``: sessions of this installation, whichever process serves them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_thread
import typer
from rich.table import Table

from sagebroker.cli.console import Json, err, out, print_json, run_async
from sagebroker.client import ask_server, is_server
from sagebroker.config import BrokerConfig
from sagebroker.model import utcnow
from sagebroker.session.catalogue import Catalogue, CatalogueEntry
from sagebroker.store.records import EventRow

sessions_app = typer.Typer(no_args_is_help=True, help="List, open and end sessions.")

Name = Annotated[str, typer.Argument(help="A session's name or id.")]


@sessions_app.command("list")
def list_sessions(context: typer.Context, as_json: Json = False) -> None:
    """Every session: who serves it and how its kernel is."""
    entries = run_async(_with_catalogue, context.obj, _list)
    if as_json:
        print_json([_as_json(entry) for entry in entries])
        return
    if not entries:
        out.print(
            "No sessions. An MCP client opens some, and so does: sagebroker sessions open NAME"
        )
        return
    table = Table("name", "id", "state", "process", "at its end", "age", "memory limit")
    for entry in entries:
        table.add_row(
            entry.row.name,
            entry.row.id,
            entry.state,
            str(entry.owner or "-"),
            entry.row.on_end,
            _age(entry),
            f"{entry.row.memory_bytes / 2**30:.3g} GiB",
        )
    out.print(table)


@sessions_app.command("show")
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """One session in full, with what has happened to it."""

    async def act(
        catalogue: Catalogue, _: BrokerConfig
    ) -> tuple[CatalogueEntry, Sequence[EventRow]]:
        entry = await catalogue.find(name)
        return entry, await catalogue.events(entry)

    entry, events = run_async(_with_catalogue, context.obj, act)
    values = _as_json(entry)
    if as_json:
        print_json(values | {"events": [asdict(happened) for happened in events]})
        return
    for key, value in values.items():
        out.print(f"{key:15} {value}", markup=False)
    for happened in events:
        at = datetime.fromtimestamp(happened.at, UTC).isoformat(timespec="seconds")
        detail = " ".join(f"{key}={value}" for key, value in happened.detail.items())
        out.print(f"{at} {happened.word} {detail}", markup=False)


@sessions_app.command("open")
def open_session(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Open a session whose kernel runs on; it waits for the next client."""

    async def act(config: BrokerConfig) -> dict[str, Any]:
        from sagebroker.broker import Broker

        if served := await ask_server(config, "PUT", f"/sessions/{name}", {"keep": True}):
            return {key: served[key] for key in ("name", "created", "notices")}
        async with Broker(config) as broker:
            session, created = await broker.open_session(name, keep=True)
            notices = session.take_notices()
            return {"name": name, "id": session.id, "created": created, "notices": notices}

    opened = run_async(act, context.obj)
    if as_json:
        print_json(opened)
        return
    for notice in opened["notices"]:
        err.print(notice, style="yellow", markup=False)
    out.print(f"Session {name!r} runs. Use it with: sagebroker run -s {name} -c '…'", markup=False)


@sessions_app.command("close")
def close(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Remove a session, also one that sleeps, with its variables and files."""
    run = partial(_do, name, method="DELETE", what="", here=Catalogue.close)
    _report(run_async(_with_catalogue, context.obj, run), "closed", as_json=as_json)


@sessions_app.command("interrupt")
def interrupt(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Send one SIGINT to the kernel, as Ctrl-C does; variables stay."""
    run = partial(_do, name, method="POST", what="/interrupt", here=Catalogue.interrupt)
    _report(run_async(_with_catalogue, context.obj, run), "interrupted", as_json=as_json)


@sessions_app.command("restart")
def restart(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """Put a new kernel in place of the session's; its variables are gone, its files stay."""
    run = partial(_do, name, method="POST", what="/restart", here=Catalogue.restart)
    _report(run_async(_with_catalogue, context.obj, run), "restarted", as_json=as_json)


async def _list(catalogue: Catalogue, _: BrokerConfig) -> list[CatalogueEntry]:
    return await catalogue.list()


async def _do(
    name: str,
    catalogue: Catalogue,
    config: BrokerConfig,
    *,
    method: str,
    what: str,
    here: Callable[[Catalogue, CatalogueEntry], Awaitable[None]],
) -> CatalogueEntry:
    """Have the server of this state folder do it where that serves the session; else do it here."""
    entry = await catalogue.find(name)
    if await anyio.to_thread.run_sync(is_server, config, entry.owner):
        path = f"/sessions/{entry.row.name}{what}"
        if await ask_server(config, method, path) is not None:
            return entry
    await here(catalogue, entry)
    return entry


async def _with_catalogue(
    config: BrokerConfig, act: Callable[[Catalogue, BrokerConfig], Awaitable[Any]]
) -> Any:
    async with _catalogue(config) as catalogue:
        return await act(catalogue, config)


@asynccontextmanager
async def _catalogue(config: BrokerConfig) -> AsyncIterator[Catalogue]:
    from sagebroker.broker import Broker

    async with Broker(config) as broker:
        yield await broker.catalogue()


def _report(entry: CatalogueEntry, done: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"name": entry.row.name, "id": entry.row.id, "done": done})
    else:
        out.print(f"Session {entry.row.name!r} {done}.", markup=False)


def _as_json(entry: CatalogueEntry) -> dict[str, Any]:
    container = entry.container
    return {
        "name": entry.row.name,
        "id": entry.row.id,
        "state": entry.state,
        "process": entry.owner,
        "on_end": entry.row.on_end,
        "hibernate": entry.row.hibernate,
        "created": entry.row.created,
        "kernelspec": entry.row.kernelspec,
        "image": entry.row.image,
        "memory_bytes": entry.row.memory_bytes,
        "container": container.name if container else None,
        "container_state": container.state if container else None,
        "files": str(entry.folder.files),
    }


def _age(entry: CatalogueEntry) -> str:
    seconds = (utcnow() - datetime.fromisoformat(entry.row.created)).total_seconds()
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
