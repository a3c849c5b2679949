"""Every exception the broker raises.

``str(error)`` is a whole sentence: what happened and, after it, what to do next. ``code`` is the
stable word that tests, logs and clients use. What the user's code raises in a kernel is a result
(`model.CellFailure`), never one of these.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagebroker.model import ExitReport


class BrokerError(Exception):
    """Root of every error the broker raises on purpose.

    Args:
        message: What happened, one sentence.
        hint: What to do next, one sentence; appended to the text.
    """

    code: ClassVar[str] = "broker_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class ConfigError(BrokerError):
    """A setting, a kernelspec or a path is wrong."""

    code = "config"


class StorageError(BrokerError):
    """The disk refused to write, read or remove a session's record or files."""

    code = "storage"


class ServerError(BrokerError):
    """The server of this state folder has refused something; its sentence says what to do."""

    code = "server"


class CapacityError(BrokerError):
    """A limit of the broker is reached; the same call can succeed later.

    Args:
        retry_after_s: Seconds after which trying again is sensible.
    """

    code = "capacity"
    retryable = True

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class TooManySessionsError(CapacityError):
    """No further session may be opened."""

    code = "too_many_sessions"


class TooManyCallsError(CapacityError):
    """A user calls more often than is allowed."""

    code = "too_many_calls"


class QueueFullError(CapacityError):
    """A session's queue of cells is full."""

    code = "queue_full"


class FilesFullError(CapacityError):
    """A session's files would be over their limit."""

    code = "files_full"


class SessionError(BrokerError):
    """Something about one session."""

    code = "session"


class SessionNotFoundError(SessionError, LookupError):
    """No session has this name."""

    code = "session_not_found"

    def __init__(self, name: str, known: list[str]) -> None:
        listed = ", ".join(repr(k) for k in known) if known else "none"
        super().__init__(
            f"There is no session named {name!r}; open sessions: {listed}.",
            hint=f"Open it first with sage_open(name={name!r}), or use one of the open ones.",
        )
        self.name = name
        self.known = known


class SessionNameError(SessionError, ValueError):
    """A session's name is not one that can be used."""

    code = "session_name"


class NameTakenError(SessionError):
    """Another session has this name already."""

    code = "name_taken"


class StaleError(SessionError):
    """What is stored about a session was changed by somebody else since it was read."""

    code = "stale"


class SessionClosedError(SessionError):
    """The session has ended."""

    code = "session_closed"


class SessionBusyError(SessionError):
    """A cell runs in the session; the same call can succeed when it has ended."""

    code = "session_busy"
    retryable = True


class SessionInUseError(SessionError):
    """Another broker process holds this session."""

    code = "session_in_use"


class SessionGoneError(SessionError, FileNotFoundError):
    """The session's folder has been removed meanwhile, by whoever had its lock."""

    code = "session_gone"


class CellNotFoundError(SessionError, LookupError):
    """The session has no cell with this number."""

    code = "cell_not_found"


class NoInputWantedError(SessionError):
    """An answer was given to a cell that asks nothing."""

    code = "no_input_wanted"


class NoEndpointError(SessionError):
    """A session has no endpoint for such Jupyter clients."""

    code = "no_endpoint"


class CheckpointLabelError(SessionError, ValueError):
    """A label is not one that a checkpoint can have."""

    code = "checkpoint_label"


class CheckpointNotFoundError(SessionError, LookupError):
    """The session has no such checkpoint."""

    code = "checkpoint_not_found"


class FileRefusedError(SessionError):
    """A path leads out of a session's folder, or what stands there cannot be used so."""

    code = "file_refused"


class NoSuchFileError(SessionError, LookupError):
    """Nothing stands at a path in a session's folder."""

    code = "no_such_file"


class NotebookTooLargeError(SessionError):
    """A session's transcript does not fit into a notebook of the size that was asked for."""

    code = "notebook_too_large"


class InspectionError(SessionError):
    """There is nothing to say of a name: unknown, none at all, or its object does not let itself be looked at."""

    code = "inspection"


class KernelError(BrokerError):
    """Something about one kernel."""

    code = "kernel"


class KernelStartError(KernelError):
    """A kernel did not come up.

    Args:
        report: How it ended, where it came as far as that.
    """

    code = "kernel_start"

    def __init__(
        self, message: str, *, hint: str | None = None, report: ExitReport | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.report = report


class KernelDiedError(KernelError):
    """The kernel ended while it was needed."""

    code = "kernel_died"


class WireError(KernelError):
    """A message from a kernel is malformed, unsigned or too large."""

    code = "wire"


class ContainerError(BrokerError):
    """The engine refused or failed an operation on a container."""

    code = "container"


class RuntimeUnavailableError(ContainerError):
    """The container engine does not answer."""

    code = "engine_unavailable"
    retryable = True


class ContainerNotFoundError(ContainerError, LookupError):
    """The engine knows no such container (its 404, nothing else)."""

    code = "container_not_found"


class ContainerConflictError(ContainerError):
    """The engine's state forbids the operation, for instance a name already in use (its 409)."""

    code = "container_conflict"


class ImageError(ContainerError):
    """An image could not be found, built or checked."""

    code = "image"


class ImageNotFoundError(ImageError):
    """The engine does not have the image."""

    code = "image_not_found"


@contextmanager
def alone() -> Iterator[None]:
    """Around a task group that is not the caller's business: one error leaves as itself, not in a bundle."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__
