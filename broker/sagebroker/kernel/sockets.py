"""`PinnedSocket`: connect to the very unix socket that was checked, and to no other.

The folder of a kernel's sockets is writable by the kernel. ZeroMQ follows symlinks there, so a
symlink could lead the broker to another session's socket or to the engine's. A descriptor opened
with ``O_PATH | O_NOFOLLOW`` names one inode; connecting to ``/proc/self/fd/N`` reaches that inode
whatever the kernel does to the path afterwards. It also ties the connection to one incarnation of
the kernel: a later one binds a new inode, and a reconnecting ZeroMQ never finds it (measured with
libzmq 4.3.5).
"""

from __future__ import annotations

import os
import stat

from sagebroker.errors import KernelStartError, WireError


class PinnedSocket:
    """A unix socket's inode, held by a descriptor until `close`.

    Args:
        path: The socket's path on this machine.

    Raises:
        KernelStartError: Nothing is at ``path`` (yet).
        WireError: What is there is not a socket, for instance a symlink to one.
    """

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise KernelStartError(f"The kernel has no socket at {path}.") from error
        except OSError as error:
            raise WireError(f"The kernel's socket {path} cannot be opened: {error}.") from error
        if not stat.S_ISSOCK(os.fstat(self._descriptor).st_mode):
            self.close()
            raise WireError(f"{path} is not a socket; the kernel has put something else there.")

    @property
    def endpoint(self) -> str:
        """The ZeroMQ address; good until `close`."""
        return f"ipc:///proc/self/fd/{self._descriptor}"

    def close(self) -> None:
        """Let the inode go; only after the ZeroMQ sockets that connect to it are closed."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
