"""Names of sessions."""

from __future__ import annotations

import re
from typing import Final

from sagebroker.errors import SessionNameError

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}"
"""What the whole of a session's name matches."""


def like(text: str) -> str:
    """Something that can name a session or a checkpoint, and is as near to ``text`` as that allows."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:40] or "second"


def check_session_name(name: str) -> str:
    """Return ``name`` if it can name a session.

    Raises:
        SessionNameError: Not 1 to 40 characters of letters, digits, ``_``, ``.`` and ``-``.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        shown = name if len(name) <= 60 else name[:60] + "…"
        raise SessionNameError(
            f"{shown!r} cannot name a session.",
            hint="Use 1 to 40 letters, digits, '_', '.' or '-', beginning with a letter or digit, for instance "
            f'name="{like(name)}".',
        )
    return name
