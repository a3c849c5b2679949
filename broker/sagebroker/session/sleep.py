"""Bringing a session's variables to its disk before its container goes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from sagebroker.errors import KernelError
from sagebroker.kernel.checkpoints import (
    CheckpointState,
    expression_text,
    parse_state,
    read_checkpoints,
    state_expression,
)

if TYPE_CHECKING:
    from pathlib import Path

    from sagebroker.kernel.kernel import Kernel

POLL_S = 0.05
"""Time between questions whether everything is saved."""

ATTEMPTS = 2
"""A checkpoint that has failed is tried once more: a disk may have been full for a moment."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """How far a session's variables are saved."""

    number: int | None
    """The newest checkpoint; None where there is none."""
    missing: tuple[tuple[str, str], ...] = ()
    """Variables that are not in it, with the reason."""
    error: str = ""
    """Why the last changes are not in it."""

    @property
    def loss(self) -> str:
        """What of the last changes is lost if the kernel ends now; empty for nothing."""
        return f"the last changes could not be saved ({self.error})" if self.error else ""

    @property
    def hindrance(self) -> str:
        """Everything that is lost if the kernel ends now; empty for nothing."""
        if self.missing and not self.error:
            names = ", ".join(f"{name} ({reason})" for name, reason in self.missing)
            return f"some variables cannot be saved: {names}"
        return self.loss


async def save(
    kernel: Kernel, folder: Path, limit_s: float, *, label: str = "", is_wanted: bool = False
) -> Saved:
    """Have every change of the variables saved; nothing else may run in ``kernel`` meanwhile.

    Args:
        kernel: The session's.
        folder: Of its checkpoints.
        limit_s: Seconds it may take.
        label: A name for the checkpoint.
        is_wanted: Write one though nothing may have changed.
    """
    error = f"it took longer than {limit_s:g} s"
    with anyio.move_on_after(limit_s):
        error = await _settle(kernel, label, is_wanted=is_wanted)
    found = await anyio.to_thread.run_sync(partial(read_checkpoints, folder))
    if label and not error and not any(info.label == label for info in found[-1:]):
        error = f"the kernel has not given it the label {label!r}"
    if not found:
        return Saved(number=None, error=error)
    return Saved(number=found[-1].number, missing=found[-1].missing, error=error)


async def _settle(kernel: Kernel, label: str, *, is_wanted: bool) -> str:
    """Return when everything is saved, with nothing; or with why it cannot be."""
    attempts = 0
    state = await _ask(kernel, state_expression(write=True, label=label) if is_wanted else "")
    while True:
        if state is None:
            return "the kernel gives no word on its checkpoints"
        if state.settled:
            return state.error
        if state.error and not state.pending:
            attempts += 1
            if attempts >= ATTEMPTS:
                return state.error
            state = await _ask(kernel, state_expression(write=True, label=label))
            continue
        await anyio.sleep(POLL_S)
        state = await _ask(kernel, "")


async def _ask(kernel: Kernel, expression: str) -> CheckpointState | None:
    try:
        answers = await kernel.ask({"state": expression or state_expression()})
    except KernelError:
        return None
    text = expression_text(answers.get("state"))
    return None if text is None else parse_state(text)
