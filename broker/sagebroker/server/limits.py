"""The ranges of the tools' numbers: what is too much is lowered and said, nonsense is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from mcp.server.mcpserver.exceptions import ToolError

if TYPE_CHECKING:
    from sagebroker.session.cell import Cell

MAX_WAIT_S: Final = 3600.0
"""Longest wait of one call; clients give up long before."""
MIN_CHARS: Final = 200
"""Fewest characters of an answer: less leaves no room for an error and its cause."""
MAX_CHARS: Final = 100_000
"""Most characters of an answer; one message of 1 MiB is a hard limit of some clients."""

MAX_REQUEST_CHARS: Final = 200
"""Most characters of a client's name for a request; a UUID has 36."""

MAX_NAME_CHARS: Final = 200
"""Most characters of a name or words to look up."""

MAX_CODE_CHARS: Final = 1_000_000
"""Most characters of a cell's code: far more than a person or a model writes, and parsed within seconds."""


def wait_limit(wait_s: float) -> tuple[float, str]:
    """Seconds to wait, and a sentence if that is less than was asked for.

    Raises:
        ToolError: Negative or not a number.
    """
    return _at_most("wait_s", wait_s, MAX_WAIT_S, lowest=0.0)


def time_limit(time_limit_s: float, most_s: float) -> tuple[float, str]:
    """Seconds a cell may run, and a sentence if that is less than was asked for.

    Raises:
        ToolError: Not above zero, or not a number.
    """
    if time_limit_s == 0:
        raise ToolError(f"time_limit_s must be above 0 s and at most {most_s:g} s.")
    return _at_most("time_limit_s", time_limit_s, most_s, lowest=0.0)


def char_limit(name: str, value: int) -> tuple[int, str]:
    """Characters to answer, and a sentence if that is less than was asked for.

    Raises:
        ToolError: Fewer than `MIN_CHARS`.
    """
    if value < MIN_CHARS:
        raise ToolError(f"{name} must be between {MIN_CHARS} and {MAX_CHARS}, not {value}.")
    if value > MAX_CHARS:
        return MAX_CHARS, f"{name} was lowered to {MAX_CHARS}, the most there is."
    return value, ""


def code_text(code: str) -> str:
    """The code of a cell.

    Raises:
        ToolError: There is none, or too much.
    """
    if len(code) > MAX_CODE_CHARS:
        raise ToolError(
            f"The code has {len(code)} characters, more than the {MAX_CODE_CHARS} a cell may have. Run it as "
            "several cells: variables persist, and data can be written to /files piece by piece."
        )
    if not code.strip():
        raise ToolError('The code is empty. Give Sage code, for instance code="factor(2^64 + 1)".')
    return code


def check_start(offset: int) -> None:
    """Raise `ToolError` for an offset that no page begins at."""
    if offset < 0:
        raise ToolError("offset must be 0 or more, for instance offset=0.")


def check_within(offset: int, total: int, there_is: str) -> None:
    """Raise `ToolError` for an offset behind the end.

    Args:
        offset: First of what is asked for.
        total: How many there are.
        there_is: That in words, as a clause.
    """
    if offset >= total:
        raise ToolError(
            f"offset {offset} is behind the end: {there_is}. offset=0 is the beginning."
        )


def name_text(name: str) -> str:
    """A name or words to look up.

    Raises:
        ToolError: There is none, or too much.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME_CHARS:
        raise ToolError(
            f'name must have 1 to {MAX_NAME_CHARS} characters, for instance name="factor"; with '
            'detail="search" it is words, for instance "elliptic curve rank".'
        )
    return name


def request_name(request_id: str) -> str:
    """The caller's name for a request.

    Raises:
        ToolError: It is too long.
    """
    if len(request_id) > MAX_REQUEST_CHARS:
        raise ToolError(f"request_id may have {MAX_REQUEST_CHARS} characters, not more.")
    return request_id


def repeated_request(cell: Cell, code: str) -> str:
    """What is said of a request whose name an earlier one had.

    Raises:
        ToolError: That one had other code.
    """
    if cell.code != code:
        raise ToolError(
            f"The request_id {cell.request_id!r} belongs to cell {cell.number}, which has other code. "
            "Nothing was run; use another request_id for other code."
        )
    return f"This request was made before: cell {cell.number} has its result, the code was not run again."


def _at_most(name: str, value: float, most: float, *, lowest: float) -> tuple[float, str]:
    if math.isnan(value) or value < lowest:
        raise ToolError(f"{name} must be between {lowest:g} and {most:g} seconds, not {value:g}.")
    if value > most:
        return most, f"{name} was lowered to {most:g} s, the most there is."
    return value, ""
