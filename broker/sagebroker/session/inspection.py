"""Asking a session's kernel what a name means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from sagebroker.errors import InspectionError, KernelError, SessionBusyError
from sagebroker.kernel.checkpoints import expression_text
from sagebroker.kernel.inspection import Inspected, Problem, inspect_expression, parse_inspected
from sagebroker.session.namespace import idle_kernel

if TYPE_CHECKING:
    from sagebroker.kernel.inspection import Question
    from sagebroker.session.desk import Desk

ASK_LIMIT_S = 40.0
"""Time for the kernel to look; a search takes 30 s at most by itself, all else 5 s."""


async def inspect(desk: Desk, question: Question, start_limit_s: float) -> Inspected:
    """What a session's kernel says of a name; see `Session.inspect`.

    Args:
        desk: The session's.
        question: What is asked.
        start_limit_s: Seconds the kernel has to start.

    Raises:
        SessionBusyError: A cell runs.
        InspectionError: There is nothing to say of the name; says why, and what to do.
        KernelError: The kernel gives no answer.
    """
    try:
        kernel = await idle_kernel(desk, "names can be looked up", start_limit_s)
        answers = {}
        with anyio.move_on_after(ASK_LIMIT_S):
            answers = await kernel.ask({"said": inspect_expression(question)})
        text = expression_text(answers.get("said"))
        said = None if text is None else parse_inspected(text, question.limit)
        if said is None:
            # A cell that came first is the reason, if there is one.
            await idle_kernel(desk, "names can be looked up", start_limit_s)
    except SessionBusyError as error:
        hint = (
            f"{error.hint} Another session, of sage_open, can tell of Sage's own names meanwhile."
        )
        raise SessionBusyError(error.message, hint=hint) from error
    if isinstance(said, Problem):
        raise problem_error(question, said)
    if said is None:
        raise KernelError(f"The kernel of session {desk.name!r} does not tell of names.")
    return said


def problem_error(question: Question, problem: Problem) -> InspectionError:
    """Why there is nothing to say, as an error with the next step."""
    shown = repr(question.name[:100])
    words = 'detail="search" finds names by words, for instance name="elliptic curve rank".'
    match problem.kind:
        case "call":
            return InspectionError(
                f"{shown} is not a name; calls, indices and operators are not evaluated here.",
                hint="Assign it to a variable with sage_run and give that, for instance "
                f'name="E.rank" after E = EllipticCurve("37a"). {words}',
            )
        case "unknown":
            like = f"Close matches: {', '.join(problem.close)}. " if problem.close else ""
            return InspectionError(f"There is no {shown} here.", hint=like + words)
        case "raised":
            return InspectionError(
                f"Looking at {shown} failed: {problem.reason}.",
                hint="Its class can be looked at instead.",
            )
        case "slow":
            return InspectionError(
                f"Looking at {shown} took too long and was given up; nothing has changed.",
                hint="Its class can be looked at instead, or try again when less runs on the machine.",
            )
        case "nothing" if question.detail == "search":
            return InspectionError(
                f"Nothing fits {shown}.", hint="Use fewer or other words, in English."
            )
        case "nothing":
            return InspectionError(
                f"There is no source of {shown}: it is compiled, or built in.",
                hint='detail="doc" shows its documentation.',
            )
