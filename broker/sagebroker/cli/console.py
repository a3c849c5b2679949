"""Where commands print, and how their errors become exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from sagebroker.errors import (
    BrokerError,
    CheckpointLabelError,
    CheckpointNotFoundError,
    ConfigError,
    SessionNameError,
    SessionNotFoundError,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNSERVED = 3
EXIT_INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
"""The option of every command that prints data."""

out = Console(highlight=False, soft_wrap=True)
"""Results; stdout."""

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Everything else."""


class OutputLostError(Exception):
    """What a command prints cannot be written; ``str(error)`` is why, empty where nobody reads any more."""


def write(text: str, stream: TextIO) -> None:
    """Write out at once.

    Raises:
        OutputLostError: It cannot be; the stream goes nowhere from now on.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # What is buffered still is written when the interpreter ends, which would complain once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        reason = "" if isinstance(error, BrokenPipeError) else str(error.strerror or error)
        raise OutputLostError(reason) from error


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    with exits():
        write(json.dumps(value, indent=2, default=str) + "\n", sys.stdout)


def complain(text: str) -> None:
    """Say on stderr what is wrong."""
    err.print(f"[red]error:[/] {escape(text)}")


def refuse(text: str) -> NoReturn:
    """Say what is wrong with the command as it was typed, and leave."""
    complain(text)
    raise typer.Exit(EXIT_USAGE)


_USAGE = (
    CheckpointLabelError,
    CheckpointNotFoundError,
    ConfigError,
    SessionNameError,
    SessionNotFoundError,
)
"""Errors of whoever typed the command."""


def fail(error: BrokerError) -> NoReturn:
    """Say what went wrong and leave with its exit code."""
    complain(str(error))
    raise typer.Exit(EXIT_USAGE if isinstance(error, _USAGE) else EXIT_UNSERVED)


@contextmanager
def exits() -> Iterator[None]:
    """Errors of the broker, Ctrl-C and lost output leave as exit codes; any other error as itself."""
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        leaves = _leaves(error)
        if all(
            isinstance(leaf, BrokerError | OutputLostError | KeyboardInterrupt | SystemExit)
            for leaf in leaves
        ):
            _leave(leaves)
        raise


def run_async(function: Callable[..., Any], *args: Any, heeds_signals: bool = False) -> Any:
    """Run an async function to its end; errors and Ctrl-C become exit codes.

    Args:
        function: What to run; a signal that ends processes cancels it, and it is waited for.
        args: Its arguments.
        heeds_signals: Whether ``function`` takes care of signals itself.
    """
    import anyio

    with exits():
        if heeds_signals:
            return anyio.run(function, *args)
        return anyio.run(_until_signal, function, *args)


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a command to end. A hangup that ``nohup`` has it ignore is none."""
    asked = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    return asked


async def _until_signal(function: Callable[..., Any], *args: Any) -> Any:
    import anyio

    result = None
    work = anyio.CancelScope()
    async with anyio.create_task_group() as tg:

        async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            # Catches further signals, too: they must not cut the cleaning up short.
            with anyio.open_signal_receiver(*ending_signals()) as signals:
                task_status.started()
                async for _ in signals:
                    work.cancel()

        await tg.start(watch)
        with work:
            result = await function(*args)
        tg.cancel_scope.cancel()
    if work.cancelled_caught:
        raise KeyboardInterrupt
    return result


def _leaves(error: BaseException) -> list[BaseException]:
    """The errors in a task group's bundle, or the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for one in error.exceptions for leaf in _leaves(one)]


def _leave(leaves: list[BaseException]) -> NoReturn:
    """Leave with the exit code of errors that all have one; a person's wish goes first."""
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in leaves):
        raise typer.Exit(EXIT_INTERRUPTED) from None
    for leaf in leaves:
        if isinstance(leaf, BrokerError):
            fail(leaf)
    for leaf in leaves:
        if isinstance(leaf, SystemExit):
            # Rich ends the process so when nobody reads its output.
            raise leaf
    if str(leaves[0]):
        complain(f"The output cannot be written: {leaves[0]}.")
    raise typer.Exit(EXIT_FAILED) from None
