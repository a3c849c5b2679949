"""Session broker for SageMath kernels: one hardened container each, driven through MCP.

A map of the package, from the top down (imports point down only):

* ``cli``: the ``sagebroker`` command.
* ``server``: the MCP server: tools, rendering, stdio front end.
* ``broker``: composition root; owns the task group and wires the rest.
* ``session``: a client's named workspace: its queue of cells, its kernel, its recovery.
* ``kernel``: one running kernel: connection file, channels, router, heartbeat, interrupt ladder.
* ``protocol``: Jupyter's messages and what they mean; no I/O.
* ``container``: engines, container specifications, images.
* ``store``: what must outlive the process.
* ``inside``: what runs in the container; imported by nobody here.
* ``logs``, ``config``, ``model``, ``errors``: shared by all.
* ``testing``: verified fakes for code that uses the broker.
"""

from sagebroker.errors import BrokerError

__all__ = ["BrokerError", "__version__"]

__version__ = "0.1.0"
