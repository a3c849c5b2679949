"""The tools about sessions: open, list, restart, close."""

import math
from functools import partial
from typing import Annotated, Final, Literal

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import BaseModel, Field

from sagebroker.broker import Broker
from sagebroker.errors import BrokerError, SessionNotFoundError
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.model import utcnow
from sagebroker.server.arguments import SessionName
from sagebroker.server.callers import broker_of
from sagebroker.server.failures import answering
from sagebroker.server.news import news
from sagebroker.server.product import DEFAULT_SESSION
from sagebroker.server.render import block
from sagebroker.server.waiting import awake, with_progress
from sagebroker.session.info import SessionInfo
from sagebroker.session.session import Session
from sagebroker.store.records import SessionRow
from sagebroker.users import Users

MEASURE_LIMIT_S: Final = 2.0
"""For the engine to tell what all sessions use; without it the list has no memory figures."""

ASLEEP: Final = "asleep"
ELSEWHERE: Final = "elsewhere"
"""States of sessions that are not open here."""

_OPEN = """\
Open a further session: a Sage kernel of its own, with its own variables and files. Takes some seconds. \
Opening a name that is open, or was left earlier, returns that session with its variables. When idle \
for long, and when its server ends (over stdio: with the connection), it sleeps: variables and files are \
saved, and it wakes by its name. With keep=true its kernel runs on then, a computation too. hibernate="never" \
keeps it awake while idle; "always" lets it sleep even if some variables cannot be saved.
Names: 1 to 40 letters, digits, '_', '.', '-'. Example: name="curves" """

_SESSIONS = """\
List all sessions, open or asleep: state, running cell, queue, memory, idle time."""

_RESTART = """\
Replace a session's kernel by a fresh one: all variables are lost (restore=true brings back those of the \
newest checkpoint, a number or label those of that one: sage_checkpoint lists them), files in /files stay, running and queued cells are stopped. To stop a computation use sage_interrupt instead: it keeps the variables."""

_CLOSE = """\
End a session, open or asleep: its kernel, variables and files are deleted."""


class SessionView(BaseModel):
    """A session as clients see it."""

    name: str
    state: str
    keep: bool
    at_end: str
    """What becomes of it without a client, in words."""
    hibernate: str
    running_cell: int | None
    running_s: float
    awaits_input: bool
    queued_cells: int
    last_cell: int
    idle_s: float
    memory_mib: int | None
    memory_limit_mib: int
    note: str


class SessionList(BaseModel):
    """Every session."""

    sessions: list[SessionView]
    most: int


def add_session_tools(server: MCPServer[Users]) -> None:
    """Register the tools."""
    server.add_tool(
        sage_open,
        title="Open a session",
        description=_OPEN.rstrip(),
        annotations=ToolAnnotations(
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
        structured_output=False,
    )
    server.add_tool(
        sage_sessions,
        title="List sessions",
        description=_SESSIONS,
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        # It answers structured content, but a published schema costs 1.2 kB of every tools/list.
        structured_output=False,
    )
    ends = ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False
    )
    server.add_tool(
        sage_restart,
        title="Restart a kernel",
        description=_RESTART,
        annotations=ends,
        structured_output=False,
    )
    server.add_tool(
        sage_close,
        title="Close a session",
        description=_CLOSE,
        annotations=ends,
        structured_output=False,
    )


async def sage_open(
    ctx: Context[Users],
    name: Annotated[str, Field(description="Name of the session")],
    keep: Annotated[bool, Field(description="Run on after the server")] = False,  # noqa: FBT002
    hibernate: Annotated[
        Literal["auto", "never", "always"],
        Field(description="When idle: sleep if nothing is lost by it"),
    ] = "auto",
) -> CallToolResult:
    """Open a session; see `_OPEN`."""
    with answering("sage_open"):
        broker = await broker_of(ctx)
        session, created = await with_progress(
            ctx,
            lambda: "starting the Sage kernel,",
            lambda: broker.open_session(name, keep=keep, hibernate=hibernate),
        )
        info = session.info()
        lines = [_opened(info, broker, created=created), *news(session)]
        if keep and not info.keep:
            lines.append(f"It was opened without keep, and {_rest(broker)}.")
        lines.append(f'Use it with sage_run(code=…, session="{name}").')
        return CallToolResult(content=[block("status", "\n".join(lines))])


async def sage_sessions(ctx: Context[Users]) -> CallToolResult:
    """List the sessions; see `_SESSIONS`."""
    with answering("sage_sessions"):
        listed = await list_sessions(await broker_of(ctx))
        opened = [view for view in listed.sessions if view.state not in (ASLEEP, ELSEWHERE)]
        lines = [f"{len(opened)} of at most {listed.most} sessions are open."]
        if not opened:
            lines.append(f'sage_run opens "{DEFAULT_SESSION}"; sage_open opens others.')
        lines += [_line(view) for view in listed.sessions]
        return CallToolResult(
            content=[block("status", "\n".join(lines))],
            structured_content=listed.model_dump(mode="json"),
        )


async def list_sessions(broker: Broker) -> SessionList:
    """Every session, those that are open here first."""
    rest = _rest(broker)
    views = [_view(info, rest) for info in await _measured(broker)]
    opened = {view.name for view in views}
    views += [_stored_view(row) for row in await broker.stored_sessions() if row.name not in opened]
    return SessionList(sessions=views, most=broker.config.session.max_sessions)


async def look_at(broker: Broker, name: str) -> SessionView:
    """One session, without its memory, which takes the engine a second to tell.

    Raises:
        SessionNotFoundError: There is none.
    """
    session = broker.open_one(name)
    if session is not None:
        return _view(session.info(), _rest(broker))
    rows = await broker.stored_sessions()
    for row in rows:
        if row.name == name:
            return _stored_view(row)
    raise SessionNotFoundError(name, [row.name for row in rows])


async def sage_restart(
    ctx: Context[Users],
    session: SessionName = DEFAULT_SESSION,
    restore: Annotated[  # noqa: FBT002 - a tool's argument
        bool | int | str, Field(description="Checkpoint whose variables come back")
    ] = False,
) -> CallToolResult:
    """A new kernel; see `_RESTART`."""
    with answering("sage_restart"):
        found = await awake(ctx, session)
        order = await found.restore_order(restore)
        said = await with_progress(
            ctx, lambda: "restarting the kernel,", partial(found.restart, restore=order)
        )
        return CallToolResult(content=[block("status", "\n".join([said, *news(found)]))])


async def sage_close(ctx: Context[Users], session: SessionName) -> CallToolResult:
    """End a session; see `_CLOSE`."""
    with answering("sage_close"):
        broker = await broker_of(ctx)
        said = await with_progress(
            ctx, lambda: "closing the session,", lambda: broker.close_session(session)
        )
        return CallToolResult(content=[block("status", said)])


async def _measured(broker: Broker) -> list[SessionInfo]:
    """What there is to know of each session; with memory where the engine tells it in time."""
    sessions = broker.sessions()
    infos = [session.info() for session in sessions]
    if not sessions:
        return infos

    async def measure(index: int, session: Session) -> None:
        infos[index] = await session.measure(runtime)

    with anyio.move_on_after(MEASURE_LIMIT_S):
        try:
            runtime = await broker.runtime()
        except BrokerError:
            # The engine is away; running sessions go on without it, and so does their list.
            return infos
        async with anyio.create_task_group() as tg:
            for index, session in enumerate(sessions):
                tg.start_soon(measure, index, session)
    return infos


def _view(info: SessionInfo, rest: str) -> SessionView:
    mib = 2**20
    return SessionView(
        name=info.name,
        state=info.state.value,
        keep=info.keep,
        at_end="runs on" if info.keep else rest,
        hibernate=info.hibernate,
        running_cell=info.running,
        running_s=round(info.running_s, 1),
        awaits_input=info.is_asking,
        queued_cells=info.queued,
        last_cell=info.cells,
        idle_s=round(info.idle_s, 1),
        memory_mib=None if info.memory_bytes is None else math.ceil(info.memory_bytes / mib),
        memory_limit_mib=info.memory_limit_bytes // mib,
        note=info.note,
    )


def _stored_view(row: SessionRow) -> SessionView:
    """A session that is not open here."""
    return SessionView(
        name=row.name,
        state=ASLEEP if row.state == "hibernated" else ELSEWHERE,
        keep=row.on_end == "stay",
        at_end="",
        hibernate=row.hibernate,
        running_cell=None,
        running_s=0.0,
        awaits_input=False,
        queued_cells=0,
        last_cell=0,
        idle_s=round(max(0.0, utcnow().timestamp() - row.active_at), 1),
        memory_mib=None,
        memory_limit_mib=row.memory_bytes // 2**20,
        note=row.note,
    )


def _line(view: SessionView) -> str:
    """The facts of a `SessionView` in one line."""
    facts = [f"{view.name}: {view.state}"]
    if view.state == ASLEEP:
        return f"{view.name}: asleep for {_duration(view.idle_s)}; its next cell wakes it"
    if view.state == ELSEWHERE:
        return f"{view.name}: not open here; another process serves it, or its kernel waits"
    if view.running_cell is not None:
        word = "awaiting_input" if view.awaits_input else "running"
        facts.append(f"cell {view.running_cell} {word} {view.running_s:g} s")
    else:
        facts.append(f"idle {view.idle_s:g} s")
    facts.append(f"{view.queued_cells} queued")
    facts.append(f"last cell {view.last_cell}")
    used = "?" if view.memory_mib is None else str(view.memory_mib)
    facts.append(f"memory {used} of {view.memory_limit_mib} MiB")
    facts.append(view.at_end)
    if view.note:
        facts.append(view.note)
    return ", ".join(facts)


def _opened(info: SessionInfo, broker: Broker, *, created: bool) -> str:
    what = "is open" if created else "was open already"
    life = f"until sage_close; it {_rest(broker)}"
    if info.on_end == "close":
        life = "until sage_close or the end of this connection"
    elif info.keep:
        life = (
            f"until sage_close, and its kernel at most {_duration(_hard_life_s(broker))} in one go: what "
            "cannot be saved is lost then"
        )
    memory = info.memory_limit_bytes / 2**30
    return (
        f"Session {info.name!r} {what}, with {memory:.3g} GiB of memory; it lives {life}. "
        f"Its files are in /files."
    )


def _rest(broker: Broker) -> str:
    """When a session that is not kept goes to sleep, beside long idleness where its client is not all."""
    if broker.outlives_clients:
        return f"sleeps when idle for {_duration(broker.config.hibernation.idle_s)}"
    return "sleeps with its connection"


def _hard_life_s(broker: Broker) -> float:
    """Age at which a container of this broker ends."""
    config = broker.config
    return KernelSpec.load(config.kernel.kernelspec).container(config.container).hard_life_s


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h" if seconds >= 3600 else f"{seconds:.0f} s"
