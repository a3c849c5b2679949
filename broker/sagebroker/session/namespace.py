"""What callers ask about a session's variables and their checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from sagebroker.errors import (
    CheckpointLabelError,
    CheckpointNotFoundError,
    KernelError,
    KernelStartError,
    SessionBusyError,
)
from sagebroker.kernel.checkpoints import (
    VariableList,
    expression_text,
    is_label,
    parse_variables,
    variables_expression,
)
from sagebroker.model import SessionState
from sagebroker.session.names import like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagebroker.kernel.checkpoints import CheckpointInfo
    from sagebroker.kernel.folders import RestoreOrder
    from sagebroker.kernel.kernel import Kernel
    from sagebroker.session.desk import Desk

_POLL_S = 0.02

ASK_LIMIT_S = 10.0
"""Time for the kernel to look at its variables; it takes 3 s at most by itself."""


def check_not_failed(desk: Desk) -> None:
    """Raise `KernelStartError` where a session waits, without a kernel, for somebody to restart it."""
    if desk.state is SessionState.FAILED:
        raise KernelStartError(
            f"The session {desk.name!r} has no kernel. {desk.note}",
            hint=f"sage_restart(session={desk.name!r}) starts a new one; with restore=true it brings the "
            "variables of the newest checkpoint back.",
        )


async def idle_kernel(desk: Desk, what: str, limit_s: float) -> Kernel:
    """The kernel of a session in which no cell runs, waited for while it starts.

    Args:
        desk: The session's.
        what: What is possible only then, as a clause.
        limit_s: Seconds it has to start.

    Raises:
        SessionBusyError: A cell runs.
        KernelStartError: There is no kernel.
    """
    with anyio.move_on_after(limit_s):
        while desk.state is SessionState.STARTING:  # noqa: ASYNC110 - a state, which many change
            await anyio.sleep(_POLL_S)
    kernel, cell = desk.kernel, desk.current
    if cell is not None:
        raise SessionBusyError(
            f"Cell {cell.number} runs in session {desk.name!r}; {what} when it has ended.",
            hint="Wait for it with sage_wait, or stop it with sage_interrupt.",
        )
    if kernel is None:
        raise KernelStartError(f"The session {desk.name!r} has no kernel. {desk.note}")
    return kernel


async def list_variables(kernel: Kernel, session: str, pattern: str, limit: int) -> VariableList:
    """The variables in a kernel that runs nothing; see `Session.variables`.

    Raises:
        KernelError: The kernel gives no answer.
    """
    with anyio.move_on_after(ASK_LIMIT_S):
        answers = await kernel.ask({"variables": variables_expression(pattern, limit)})
        text = expression_text(answers.get("variables"))
        listed = None if text is None else parse_variables(text)
        if listed is not None:
            return listed
    raise KernelError(
        f"The kernel of session {session!r} does not tell its variables.",
        hint="Try again; if it stays, sage_restart(restore=true) makes a new kernel.",
    )


def check_label(label: str) -> None:
    """Raise `CheckpointLabelError` for what can be no label of a checkpoint; none is one."""
    if label and not is_label(label):
        raise CheckpointLabelError(
            f"{label[:60]!r} cannot be a checkpoint's label.",
            hint="Use 1 to 40 letters, digits, '_', '.' or '-', beginning with a letter or digit, for instance "
            f'label="{like(label)}".',
        )


def restore_order(
    session: str,
    wanted: bool | int | str,  # noqa: FBT001 - a tool's argument
    known: Sequence[CheckpointInfo],
) -> RestoreOrder:
    """What a caller means by ``restore``: none, the newest checkpoint, or one by number or label.

    Args:
        session: The session's name.
        wanted: What the caller gave.
        known: The session's checkpoints.

    Raises:
        CheckpointNotFoundError: There is no such checkpoint; tells the ones there are.
    """
    if isinstance(wanted, bool):
        return "newest" if wanted else "none"
    for info in known:
        if str(wanted) in (str(info.number), info.label):
            return info.number
    listed = ", ".join(f"{i.number}" + (f" ({i.label})" if i.label else "") for i in known)
    raise CheckpointNotFoundError(
        f"Session {session!r} has no checkpoint {wanted}.",
        hint=f"There are: {listed or 'none'}.",
    )
