"""The tools about what a session holds: its variables, and their checkpoints."""

from typing import Annotated, Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from sagebroker.kernel.checkpoints import CheckpointInfo, Variable
from sagebroker.model import utcnow
from sagebroker.protocol.text import clean
from sagebroker.server.arguments import SessionName
from sagebroker.server.failures import answering
from sagebroker.server.news import news
from sagebroker.server.product import DEFAULT_SESSION
from sagebroker.server.render import block
from sagebroker.server.waiting import awake, with_progress
from sagebroker.session.sleep import Saved
from sagebroker.users import Users

MOST_VARIABLES: Final = 100
"""Variables in one answer."""

_VARIABLES: Final = """\
List a session's variables: name, type, size, short value. Nothing is run; no cell may be running.
Example: pattern="f*" """

_CHECKPOINT: Final = """\
Save a session's variables now, and list its checkpoints. After each cell this happens by itself; a label \
(a name of your own, at most 5) keeps this state for sage_restart(restore=label). The answer names variables \
that cannot be saved. Example: label="before-reduction" """


def add_state_tools(server: MCPServer[Users]) -> None:
    """Register the tools."""
    server.add_tool(
        sage_variables,
        title="List variables",
        description=_VARIABLES.rstrip(),
        annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        structured_output=False,
    )
    server.add_tool(
        sage_checkpoint,
        title="Save the variables",
        description=_CHECKPOINT.rstrip(),
        annotations=ToolAnnotations(
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=True,
            open_world_hint=False,
        ),
        structured_output=False,
    )


async def sage_variables(
    ctx: Context[Users],
    session: SessionName = DEFAULT_SESSION,
    pattern: Annotated[str, Field(description="Names, with * and ?")] = "*",
    limit: Annotated[int, Field(description="Most variables", ge=1, le=500)] = MOST_VARIABLES,
) -> CallToolResult:
    """List variables; see `_VARIABLES`."""
    with answering("sage_variables"):
        found = await awake(ctx, session)
        listed = await found.variables(pattern, limit)
        shown = len(listed.variables)
        head = f"Session {found.name!r} has {listed.total} variables"
        head += "" if pattern == "*" else f" like {pattern!r}"
        head += f"; {shown} are shown." if shown < listed.total else "."
        lines = [head, *news(found), *(_variable_line(v) for v in listed.variables)]
        return CallToolResult(content=[block("status", clean("\n".join(lines)))])


async def sage_checkpoint(
    ctx: Context[Users],
    session: SessionName = DEFAULT_SESSION,
    label: Annotated[str, Field(description="Name that keeps this state")] = "",
) -> CallToolResult:
    """Save variables; see `_CHECKPOINT`."""
    with answering("sage_checkpoint"):
        found = await awake(ctx, session)
        saved = await with_progress(
            ctx, lambda: "saving the variables,", lambda: found.checkpoint(label)
        )
        known = await found.checkpoints()
        lines = [saved_line(found.name, saved), *news(found)]
        lines += [checkpoint_line(info) for info in reversed(known)]
        return CallToolResult(
            content=[block("status", clean("\n".join(lines)))], is_error=bool(saved.error)
        )


def saved_line(session: str, saved: Saved) -> str:
    """What came of saving a session's variables."""
    if saved.error:
        return f"Session {session!r}: {saved.loss}. What was saved before is still there."
    if saved.number is None:
        return f"Session {session!r} has nothing to save."
    missing = f" But {saved.hindrance}." if saved.missing else " Everything is in it."
    return f"Session {session!r} is saved as checkpoint {saved.number}.{missing}"


def checkpoint_line(info: CheckpointInfo) -> str:
    """A checkpoint in one line."""
    age_s = max(0.0, utcnow().timestamp() - info.saved_at)
    label = f" ({info.label})" if info.label else ""
    return (
        f"checkpoint {info.number}{label}: {info.names} variables after In[{info.cell}], "
        f"{info.bytes / 2**20:.1f} MiB, {age_s:.0f} s old"
    )


def _variable_line(variable: Variable) -> str:
    size = "" if variable.bytes is None else f", {variable.bytes} bytes"
    value = "(does not let itself be shown)" if variable.repr is None else variable.repr
    return f"{variable.name}: {variable.type}{size}: {value}"
