"""Who calls, what they may do, and which broker serves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp.server.auth.middleware.auth_context import get_access_token

from sagebroker.server.auth import READ, RUN
from sagebroker.users import LOCAL_USER, Users

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from sagebroker.broker import Broker


def current_user() -> str:
    """The user of the request that is being served, by its token; `LOCAL_USER` without one."""
    token = get_access_token()
    return LOCAL_USER if token is None else token.subject or token.client_id


def missing_scope(*, reads_only: bool) -> str:
    """The scope that the request's token lacks; empty where it has it, or none is needed.

    Args:
        reads_only: Whether what it wants changes nothing.
    """
    token = get_access_token()
    wanted = READ if reads_only else RUN
    return "" if token is None or wanted in token.scopes else wanted


async def broker_of(ctx: Context[Users]) -> Broker:
    """The broker of whoever makes this call. Raises `BrokerError`."""
    return await ctx.request_context.lifespan_context.broker_of(current_user())
