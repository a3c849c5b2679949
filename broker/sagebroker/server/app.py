"""`make_server`: the MCP server around a broker, for any transport."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.auth.provider import TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, RequestStateSecurity
from mcp.server.mcpserver.exceptions import ResourceError, ToolError, UnexpectedToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, GetPromptResult, InputRequiredResult
from pydantic import AnyUrl, ValidationError

from sagebroker import __version__
from sagebroker.broker import Broker
from sagebroker.errors import BrokerError
from sagebroker.server import product
from sagebroker.server.argument_check import check_names, explain, unknown_tool
from sagebroker.server.asking import ANSWER_LIMIT_S
from sagebroker.server.callers import current_user, missing_scope
from sagebroker.server.cell_tools import TIME_LIMIT_S, add_cell_tools
from sagebroker.server.failures import sentence
from sagebroker.server.file_tools import add_file_tools
from sagebroker.server.inspect_tools import add_inspect_tools
from sagebroker.server.prompts import add_prompts
from sagebroker.server.resources import add_resources
from sagebroker.server.session_tools import add_session_tools
from sagebroker.server.state_tools import add_state_tools
from sagebroker.server.tasks import Tasks
from sagebroker.server.updates import Updates
from sagebroker.users import SoleUser, Users

BrokerOpener = Callable[[], AbstractAsyncContextManager[Broker | Users]]
"""Gives the broker, or those of all users, for the life of the server; entered once, by the server."""


def _uncounted(_: str) -> AbstractContextManager[list[str]]:
    return nullcontext([])


class SageServer(MCPServer[Users]):
    """An MCP server whose tool errors read as the tools wrote them."""

    users: Users | None = None
    """Whose brokers serve now; None unless the server serves."""

    on_call: Callable[[str], AbstractContextManager[list[str]]] = staticmethod(_uncounted)
    """Entered around each call of a tool; is told its outcome."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Users, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; the SDK's prefix and the validator's jargon are taken off its errors."""
        tool = self._tool_manager.get_tool(name)
        with self.on_call("unknown" if tool is None else name) as outcome:
            if tool is None:
                known = [one.name for one in self._tool_manager.list_tools()]
                raise ToolError(unknown_tool(name, known))
            answer = await self._call_tool(tool, arguments, context)
            is_error = isinstance(answer, CallToolResult) and answer.is_error
            outcome.append("error" if is_error else "ok")
        return answer

    async def _call_tool(
        self, tool: Tool, arguments: dict[str, Any], context: Context[Users, Any] | None
    ) -> CallToolResult | InputRequiredResult:
        self._admit(tool)
        check_names(tool.name, tool.parameters, arguments)
        try:
            return await super().call_tool(tool.name, arguments, context)
        except UnexpectedToolError:
            raise
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, ValidationError):
                raise ToolError(explain(tool.name, tool.parameters, cause)) from cause
            if isinstance(cause, ToolError):
                raise cause from cause.__cause__
            raise

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Users, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        """Read a resource, if its reader has not asked for too much lately."""
        try:
            self._count_call()
        except BrokerError as error:
            raise ResourceError(sentence(error)) from error
        return await super().read_resource(uri, context)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Context[Users, Any] | None = None,
    ) -> GetPromptResult | InputRequiredResult:
        """Fill a prompt; the SDK takes a wrong name or a missing argument for a fault of the server."""
        try:
            return await super().get_prompt(name, arguments, context)
        except ValueError as error:
            words = f"{error}. prompts/list tells the prompts and their arguments."
            raise MCPError(INVALID_PARAMS, words) from error

    def drop_titles(self) -> None:
        """Take the titles out of the tools' schemas: pydantic makes them of the names, at 1 kB in all."""
        for tool in self._tool_manager.list_tools():
            tool.parameters.pop("title", None)
            for argument in tool.parameters["properties"].values():
                argument.pop("title", None)

    def _admit(self, tool: Tool) -> None:
        """Raise `ToolError` where the caller may not call the tool, or not now."""
        reads_only = tool.annotations is not None and tool.annotations.read_only_hint
        if lacking := missing_scope(reads_only=reads_only is True):
            raise ToolError(
                f"Your token does not allow {tool.name}: it lacks the scope {lacking}. Nothing was done. Ask "
                f"the server's operator for another: sagebroker token create USER --scope {lacking}"
            )
        try:
            self._count_call()
        except BrokerError as error:
            raise ToolError(sentence(error)) from error

    def _count_call(self) -> None:
        if self.users is not None:
            self.users.count_call(current_user())


def make_server(
    open_broker: BrokerOpener,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    verifier: TokenVerifier | None = None,
    auth: AuthSettings | None = None,
    on_call: Callable[[str], AbstractContextManager[list[str]]] = _uncounted,
) -> SageServer:
    """The server with all its tools; its lifespan is the broker's.

    Args:
        open_broker: Called once, when the server starts to serve. Opening a broker is quick and
            touches no engine: clients give a server little time to answer.
        time_limit_s: Default time limit of a cell, told in ``tools/list``.
        verifier: Says whose a bearer token is, over HTTP.
        auth: What is asked of tokens; together with ``verifier``.
        on_call: Entered around each call of a tool; is told its outcome.
    """
    updates = Updates()

    @asynccontextmanager
    async def lifespan(_: MCPServer[Users]) -> AsyncIterator[Users]:
        async with open_broker() as opened:
            server.users = SoleUser(opened) if isinstance(opened, Broker) else opened
            async with anyio.create_task_group() as tg:
                tg.start_soon(updates.run)
                with server.users.watching(updates.changed):
                    yield server.users
                tg.cancel_scope.cancel()
            server.users = None

    server = SageServer(
        product.SERVER_NAME,
        title=product.SERVER_TITLE,
        description=product.DESCRIPTION,
        instructions=product.INSTRUCTIONS,
        icons=[product.ICON],
        version=__version__,
        request_state_security=RequestStateSecurity.ephemeral(ttl=ANSWER_LIMIT_S),
        lifespan=lifespan,
        log_level="WARNING",
        token_verifier=verifier,
        auth=auth,
        subscriptions=updates.bus,
        extensions=[Tasks()],
    )
    server.on_call = on_call
    updates.add_to(server)
    add_cell_tools(server, time_limit_s=time_limit_s)
    add_session_tools(server)
    add_state_tools(server)
    add_file_tools(server)
    add_inspect_tools(server)
    server.drop_titles()
    add_resources(server, lambda: server.users)
    add_prompts(server)
    return server
