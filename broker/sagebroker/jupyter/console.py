"""`run_console`: Jupyter's terminal console on a session. Importing this takes jupyter_console.

jupyter_console is made for kernels that it has started. It cannot interrupt another one, and leaves ``exit``
and ``quit`` to the kernel, which stays here since others use it, too.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

from jupyter_client.consoleapp import JupyterConsoleApp
from jupyter_console.app import ZMQTerminalIPythonApp
from jupyter_console.ptshell import ZMQTerminalInteractiveShell

if TYPE_CHECKING:
    from pathlib import Path

LEAVING: Final = frozenset(
    f"{sign}{word}{call}"
    for word in ("exit", "quit")
    for sign, call in (("", ""), ("%", ""), ("", "()"))
)
"""What people type to leave."""


class SessionShell(ZMQTerminalInteractiveShell):  # type: ignore[misc]
    """Leaves where people say so."""

    def run_cell(self, cell: str, store_history: bool = True) -> None:  # noqa: FBT001, FBT002 - its signature
        """Run a cell, unless it says to leave."""
        if cell.strip() in LEAVING:
            self.ask_exit()
        else:
            super().run_cell(cell, store_history)


class SessionConsoleApp(ZMQTerminalIPythonApp):  # type: ignore[misc]
    """Has the broker interrupt."""

    def init_shell(self) -> None:
        """Connect, and make the shell."""
        JupyterConsoleApp.initialize(self)
        signal.signal(signal.SIGINT, self.handle_sigint)
        self.shell = SessionShell.instance(
            parent=self, client=self.kernel_client, confirm_exit=self.confirm_exit
        )
        self.shell.own_kernel = False

    def handle_sigint(self, *_: Any) -> None:
        """Stop the cell that runs, or give up the line that is typed."""
        if not self.shell._executing:  # noqa: SLF001 - as the class itself asks
            raise KeyboardInterrupt
        client = self.kernel_client
        client.control_channel.send(client.session.msg("interrupt_request", {}))


def run_console(connection_file: Path) -> None:
    """Let whoever sits at the terminal use a session until he leaves it; it goes on.

    Args:
        connection_file: Of the session.
    """
    # Leaving does no harm, so that nobody is asked whether he means it.
    SessionConsoleApp.launch_instance(["--existing", str(connection_file), "--no-confirm-exit"])
