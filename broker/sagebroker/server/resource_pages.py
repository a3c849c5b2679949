"""What all resources of a cell share: how it is read, how a text becomes a page, what an error becomes."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError
from pydantic import Field

from sagebroker.errors import (
    BrokerError,
    CellNotFoundError,
    NoSuchFileError,
    SessionNotFoundError,
)
from sagebroker.protocol.text import clean
from sagebroker.server.callers import broker_of
from sagebroker.server.failures import sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp.server.mcpserver import Context

    from sagebroker.session.cell import Cell
    from sagebroker.users import Users

Number = Annotated[int, Field(ge=0)]
Offset = Annotated[int, Field(ge=0)]


async def read(ctx: Context[Users], session: str, number: int) -> Cell:
    """A cell of a session.

    Raises:
        ResourceError: There is none, or it cannot be read.
    """
    with answering():
        return await (await broker_of(ctx)).read_cell(session, number)


@contextmanager
def answering() -> Iterator[None]:
    """What `failures.answering` is for tools: a broker's error leaves as a resource's."""
    try:
        yield
    except (SessionNotFoundError, CellNotFoundError, NoSuchFileError) as error:
        raise ResourceNotFoundError(sentence(error)) from error
    except BrokerError as error:
        raise ResourceError(sentence(error)) from error


def page(text: str, offset: int, limit: int, more: str) -> str:
    """Part of a text; where it is not the end, with a line that names what has more."""
    end = offset + limit
    left = f"\n… {len(text) - end} characters left out; {more} has more …\n"
    return clean(text[offset:end]) + (left if end < len(text) else "")
