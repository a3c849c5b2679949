"""`news`: what has happened in a session since its caller was last answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sagebroker.errors import CellNotFoundError
from sagebroker.notebook.source import statements
from sagebroker.server.render import call_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagebroker.session.session import Session

MOST_NAMES: Final = 12
"""Names of variables that are told; more are counted."""


def news(session: Session) -> list[str]:
    """Sentences, each given once: what people have run in Jupyter, what became of the kernel."""
    numbers = session.take_guest_cells()
    return [*([guests_sentence(session, numbers)] if numbers else ()), *session.take_notices()]


def guests_sentence(session: Session, numbers: Sequence[int]) -> str:
    """Which cells a Jupyter user has run, and which variables they set, as far as reading them tells."""
    names: dict[str, None] = {}
    for number in numbers:
        try:
            code = session.cell(number).code
        except CellNotFoundError:
            continue
        for statement in statements(code):
            names |= dict.fromkeys(sorted(statement.binds | statement.changes))
    told = [f"`{name}`" for name in names][:MOST_NAMES]
    told += [f"{len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    changed = f" ({', '.join(told)} changed)" if told else ""
    read = call_text("sage_output", session=session.name, cell=numbers[-1])
    return (
        f"Since your last call the user ran {cells_text(numbers)} in Jupyter{changed}; "
        f"{read} reads what came of it."
    )


def cells_text(numbers: Sequence[int]) -> str:
    """Numbers in words: ``cells 3, 7-9``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
    return f"cell {text}" if len(numbers) == 1 else f"cells {text}"
