"""Reasons as one short line of text, whatever the objects they come from do."""

from __future__ import annotations

from typing import Any

REASON_CHARACTERS = 200
"""Most characters of one reason."""

TYPE_CHARACTERS = 80
"""Most characters of a type's name."""

HARM = "saving it "
"""Begins the reason where the attempt itself cost time or a process."""
TAKES_TOO_LONG = HARM + "takes too long"


class TooSlowError(BaseException):
    """Time for one variable is over; no error that the user's code would take for its own."""


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line.

    Raises:
        TooSlowError: The time was over meanwhile.
    """
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return "it is nested too deeply"
    try:
        text = str(error)
    except TooSlowError:
        raise
    except BaseException:  # noqa: BLE001 - somebody's __str__ fails: the type must do
        text = ""
    kind = type(error).__name__
    if kind in ("PicklingError", "TypeError", "UnsavableError", "StorageError") and text:
        return one_line(text)
    return one_line(f"{kind}: {text}" if text else kind)


def type_name(value: Any) -> str:
    """The name of a value's type; runs nothing of the user's."""
    # Not as an attribute, which a metaclass can make a property; and as no subclass of str.
    name = type.__dict__["__name__"].__get__(type(value))
    return one_line(str.__str__(name), TYPE_CHARACTERS)


def one_line(text: str, limit: int = REASON_CHARACTERS) -> str:
    """A text without control characters, cut to a limit."""
    cleaned = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    joined = " ".join(cleaned.split())
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"
