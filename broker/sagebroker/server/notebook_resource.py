"""A session's notebook as a resource: what ``sagebroker export`` writes, in a size that clients take."""

from typing import Final

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from sagebroker.notebook.export import export
from sagebroker.server.callers import broker_of
from sagebroker.server.resource_pages import answering
from sagebroker.server.uris import NOTEBOOK
from sagebroker.users import Users

NOTEBOOK_TYPE: Final = "application/x-ipynb+json"

NOTEBOOK_BYTES: Final = 500_000
"""Of the notebook's cells: inside the message every quote is escaped, which doubles them at worst, and at
1 MiB clients cut an event off."""


def add_notebook_resource(server: MCPServer[Users]) -> None:
    """Register the resource."""
    server.resource(
        NOTEBOOK,
        name="notebook",
        title="A session as a notebook",
        description="All cells with their outputs, and which of them a replay cannot repeat. Of a large "
        "session the largest outputs are left out, and the cells say so; sagebroker export has them.",
        mime_type=NOTEBOOK_TYPE,
    )(notebook)


async def notebook(ctx: Context[Users], session: str) -> str:
    """The session's notebook, as JSON."""
    with answering():
        exported = await export(await broker_of(ctx), session, limit_bytes=NOTEBOOK_BYTES)
    return exported.compact_text()
