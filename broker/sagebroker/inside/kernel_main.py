"""What the keeper's forked child becomes: an ordinary ipykernel on the given connection file."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Config

from . import checkpoint, interrupts, journal, pictures, reviving, verifying
from .restore import restore
from .streams import BoundedOutStream, StreamLimits

if TYPE_CHECKING:
    from .settings import CheckpointConfig, KeeperConfig

CONTROL_END_LIMIT_S = 2.0
"""For the last steps of the control thread, which take a few ms."""

EXIT_NOTE = (
    "exit and quit do not end the kernel here; restart or close the session from outside instead."
)


def prepare() -> None:
    """Load ipykernel's debugger as if debugpy were not installed; done once, before the fork.

    Nobody can debug here, and the debugger would cost memory, listen on a port and warn at its
    import. The user's own ``import debugpy`` works.
    """
    if "debugpy" in sys.modules:
        return
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        import_module("ipykernel.debugger")
    finally:
        del sys.modules["debugpy"]


def run(config: KeeperConfig, generation: int) -> None:
    """Serve until a client asks the kernel to shut down.

    Args:
        config: What the broker wants.
        generation: Which incarnation of the kernel this is.

    Raises:
        Exception: The kernel could not be started; told on the original standard error.
    """
    # The one way left to the container's log while the streams are redirected already.
    log = os.dup(2)
    try:
        app = _make_app(config)
        interrupts.install(app.kernel)
        if config.journal_file:
            journal.install(app, config.journal_file)
        reviving.bind(app.shell.user_ns)
        if "sage.all" in sys.modules:
            verifying.install()
        if config.checkpoint is not None:
            _make_lasting(app.kernel, config.checkpoint, generation)
    except BaseException:
        os.write(log, traceback.format_exc().encode("utf-8", "backslashreplace"))
        raise
    finally:
        os.close(log)
    try:
        app.start()
    finally:
        _let_control_end(app)
        # os._exit follows: what libraries registered runs as it would at an interpreter's end.
        atexit._run_exitfuncs()  # noqa: SLF001 - no public way


def _make_app(config: KeeperConfig) -> Any:
    BoundedOutStream.limits = StreamLimits(
        chunk_bytes=config.stream_chunk_bytes, cell_bytes=config.stream_limit_bytes
    )
    _import_from_working_directory()
    module, _, name = config.kernel_class.rpartition(".")
    app = IPKernelApp.instance(
        connection_file=config.connection_file,
        kernel_class=getattr(import_module(module), name),
        outstream_class=f"{BoundedOutStream.__module__}.{BoundedOutStream.__qualname__}",
        parent_handle=1,  # the keeper; an orphan would print advice on Ctrl-C
        config=Config({"HistoryManager": {"hist_file": ":memory:"}}),
    )
    app.initialize([])
    shell: Any = app.shell
    shell.ask_exit = _refuse_to_exit
    # IPython keeps a copy of all that cells print, without a bound; only %notebook would use it.
    shell._tee = _keep_no_copy  # noqa: SLF001 - there is no option
    shell.events.register("post_execute", _finish_cell)
    pictures.install()
    return app


def _let_control_end(app: Any) -> None:
    """Wait for the thread that has answered the request to shut down.

    It ends by itself a moment later. ipykernel takes its sockets away at once instead, and then waits
    for it, while it waits for them: three of a hundred shutdowns hung for ten seconds or for ever.
    """
    app.control_thread.join(CONTROL_END_LIMIT_S)
    if app.control_thread.is_alive():
        atexit.unregister(app.close)


def _make_lasting(kernel: Any, config: CheckpointConfig, generation: int) -> None:
    """Restore the namespace if wanted, and have it saved from now on."""
    report = restore(kernel.shell.user_ns, config, generation)
    checkpointer = checkpoint.install(kernel, config, generation, reviving.baseline())
    if report.leaves_newest:
        checkpointer.owe()


def _import_from_working_directory() -> None:
    """Put the working directory before site-packages, where IPython has it in common mode.

    Isolated mode, in which the keeper runs, makes IPython leave it out.
    """
    places = [at for at, path in enumerate(sys.path) if path.endswith("-packages")]
    if "" not in sys.path:
        sys.path.insert(places[0] if places else 0, "")


def _refuse_to_exit() -> None:
    print(EXIT_NOTE)  # noqa: T201 - this is the cell's output


def _keep_no_copy(channel: str) -> contextlib.AbstractContextManager[None]:
    del channel
    return contextlib.nullcontext()


def _finish_cell() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, BoundedOutStream):
            stream.finish_cell()
