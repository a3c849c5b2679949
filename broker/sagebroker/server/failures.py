"""The only place where a broker's error becomes an MCP error.

A model can act on what `ToolError` says: it arrives as a tool result with ``is_error``. What it
cannot act on (a fault of the engine or of this program) is logged here and told in one sentence.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from mcp import MCPError
from mcp.server.mcpserver.exceptions import ToolError

from sagebroker.errors import (
    BrokerError,
    CapacityError,
    ConfigError,
    ImageError,
    KernelDiedError,
    KernelStartError,
    RuntimeUnavailableError,
    SessionError,
    StorageError,
)
from sagebroker.protocol.text import clean

_ACTIONABLE = (
    CapacityError,
    ConfigError,
    ImageError,
    KernelDiedError,
    KernelStartError,
    RuntimeUnavailableError,
    SessionError,
    StorageError,
)
"""Errors whose text was written for the caller; the others may tell of paths and wires."""

_log = logging.getLogger(__name__)


def sentence(error: BrokerError) -> str:
    """What a caller is told of ``error``: what happened and what to do next."""
    if not isinstance(error, _ACTIONABLE):
        return (
            f"The broker could not do this ({error.code.replace('_', ' ')}). "
            "Try again; if it stays, sage_restart makes a new kernel, and the command "
            "'sagebroker doctor' says what is wrong."
        )
    text = clean(str(error))
    if isinstance(error, CapacityError) and error.retry_after_s is not None:
        text += f" retry_after: {math.ceil(error.retry_after_s)} s."
    return text


@contextmanager
def answering(tool: str) -> Iterator[None]:
    """Run a tool's body; whatever it raises leaves as a `ToolError` with a sentence.

    Args:
        tool: The tool's name, for the log.

    Raises:
        ToolError: In place of any exception but cancellation and protocol errors.
    """
    try:
        yield
    except (ToolError, MCPError):
        raise
    except BrokerError as error:
        raise _tool_error(tool, error) from error
    except Exception as error:
        known = _broker_error_in(error)
        if known is not None:
            raise _tool_error(tool, known) from error
        _log.exception("The tool %s failed unexpectedly", tool)
        raise ToolError(
            "The broker failed in a way it did not foresee; its log has the details. "
            "sage_sessions() shows which sessions still work."
        ) from error


def _tool_error(tool: str, error: BrokerError) -> ToolError:
    if not isinstance(error, _ACTIONABLE):
        _log.warning("The tool %s failed: %s", tool, error)
    return ToolError(sentence(error))


def _broker_error_in(error: BaseException) -> BrokerError | None:
    """The broker's error in a task group's bundle, if the bundle holds nothing else."""
    if isinstance(error, BrokerError):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [_broker_error_in(one) for one in error.exceptions]
    return found[0] if all(one is not None for one in found) else None
