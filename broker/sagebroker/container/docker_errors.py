"""What docker-py, requests and urllib3 raise, as the broker's own errors. Nothing else maps them."""

from __future__ import annotations

import requests
import urllib3
from docker import errors

from sagebroker.errors import (
    ContainerConflictError,
    ContainerError,
    ContainerNotFoundError,
    ImageNotFoundError,
    RuntimeUnavailableError,
)

FOREIGN_ERRORS = (
    errors.DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    # A reply that is no JSON, or a stream that was closed by another thread.
    ValueError,
    OSError,
)
"""Everything a call of docker-py raises for reasons outside this program."""

_CONFLICTS = ("is not running", "name is already in use", "container state improper")
"""Conflicts that come with status 500: Docker's first words, Podman's others."""

MAX_TEXT_CHARS = 400
"""Longest text of an engine that is passed on; runc's can fill pages."""

_GATEWAY_STATUSES = (502, 503, 504)
"""A proxy in front of the engine saying that it is not there."""


def mapped(error: Exception, operation: str, subject: str) -> ContainerError:
    """The broker's error for a foreign one.

    Args:
        error: One of `FOREIGN_ERRORS`.
        operation: What was being done, for instance ``start``.
        subject: The container or image it was done to; may be empty.
    """
    if not isinstance(error, errors.APIError):
        return _without_answer(error)
    text = trimmed(error.explanation or str(error))
    status = error.status_code
    if status in _GATEWAY_STATUSES:
        return RuntimeUnavailableError(f"The container engine does not answer: {text}.")
    if isinstance(error, errors.ImageNotFound):
        return ImageNotFoundError(
            f"The engine has no image for {operation} {subject!r}: {text}.",
            hint="Make it with `sagebroker image build`.",
        )
    # A failed start is a 404 too when the program is missing in the image.
    if status == 404 and not _is_runtime_failure(text):
        return ContainerNotFoundError(f"There is no container {subject!r}.")
    if status == 409 or any(words in text for words in _CONFLICTS):
        return ContainerConflictError(f"The engine refused to {operation} {subject!r}: {text}.")
    return ContainerError(
        f"The engine failed to {operation} {subject!r}: {text}.",
        hint="`sagebroker doctor` checks the engine.",
    )


def reason(error: BaseException) -> str:
    """In a few words, why there was no answer."""
    cause = root_cause(error)
    if isinstance(cause, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return "it took too long"
    if isinstance(cause, OSError) and isinstance(cause.strerror, str):
        return cause.strerror.lower()
    return trimmed(str(cause) or type(cause).__name__)


def root_cause(error: BaseException) -> BaseException:
    """The system's own error below the wrappers of three libraries, or the innermost one."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop(0)
        if any(current is earlier for earlier in seen):
            continue
        seen.append(current)
        # A number: the errors of requests are OSErrors too, with anything in that place.
        if isinstance(current, OSError) and isinstance(current.errno, int):
            return current
        inner = [
            current.__cause__,
            current.__context__,
            *current.args,
            getattr(current, "reason", None),
        ]
        queue += [item for item in inner if isinstance(item, BaseException)]
    return seen[-1]


def trimmed(text: str) -> str:
    """``text`` on one line, at most `MAX_TEXT_CHARS` characters, without its full stop."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= MAX_TEXT_CHARS else line[:MAX_TEXT_CHARS] + "…"


def _is_runtime_failure(text: str) -> bool:
    return any(
        word in text.lower() for word in ("oci runtime", "executable file", "failed to create")
    )


def _without_answer(error: Exception) -> ContainerError:
    if isinstance(error, errors.InvalidVersion):
        return ContainerError(
            f"The container engine is too old: {trimmed(str(error))}.",
            hint="Docker 20.10 or newer is needed.",
        )
    cause = root_cause(error)
    hint = "`sagebroker doctor` says what to do."
    if isinstance(cause, PermissionError):
        hint = "Add your user to the group of the engine's socket: `sudo usermod -aG docker $USER`, then log in anew."
    return RuntimeUnavailableError(
        f"The container engine does not answer: {reason(error)}.", hint=hint
    )
