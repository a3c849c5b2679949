"""What the server says about itself: name, icon, instructions. Product text, read by models."""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from mcp_types import Icon

SERVER_NAME: Final = "sagebroker"
DEFAULT_SESSION: Final = "default"
"""The session that opens by itself."""
SERVER_TITLE: Final = "SageMath"
DESCRIPTION: Final = "SageMath kernels that keep their variables, one hardened container each."

INSTRUCTIONS: Final = """\
Computes with real SageMath in a sandbox. Use it for exact mathematics: integers, algebra, calculus, \
number theory, geometry, combinatorics, graphs, plots.

sage_run(code) runs a cell in session "default", which opens by itself. Variables, functions and files \
persist from cell to cell, as in a notebook. The last expression's value is the result; print() works \
anywhere; plots come back as images.

The language is Sage: ^ is power, 2/3 is exact, R.<x,y> = QQ[] makes a ring, x is a symbolic variable, \
others need var('y'). `factor?` shows help. verify("sqrt(x^2) == abs(x)", x=RR) says whether a claim is \
proved, refuted, supported or undecided, and how. All of Python with numpy, scipy, sympy, matplotlib is there. \
There is no network: nothing can be downloaded or installed. Files live in the working directory /files.

Long computations: after wait_s seconds sage_run answers "running" with the cell's number, and the cell \
goes on. Then call sage_wait to wait further, or sage_interrupt to stop it. Interrupting keeps the \
variables whenever the code can be stopped; if it cannot, the kernel is replaced and the answer says \
what became of the variables. time_limit_s stops a cell by itself.

Every answer begins with a status line such as [default #7 ok 0.42 s]: session, cell number, status, \
time. Status words: ok, error, interrupted, died, running, queued, awaiting_input. Long output is cut; the answer names \
the sage_output call that shows the rest.

For independent work open further sessions with sage_open(name); each has its own kernel. Sessions that \
are left fall asleep; they are found again by name, with their variables and files. \
sage_variables lists variables; sage_inspect shows documentation, and finds functions by words; \
sage_files reads and writes files.
"""
"""Shown to models by most clients, which cut it at 2 kB."""

_SVG: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    '<rect width="32" height="32" rx="6" fill="#2b5fb4"/>'
    '<path d="M9 9h14l-8 7 8 7H9" fill="none" stroke="#fff" stroke-width="3" '
    'stroke-linejoin="round"/></svg>'
)

ICON: Final = Icon(
    src="data:image/svg+xml;base64," + b64encode(_SVG.encode()).decode(),
    mime_type="image/svg+xml",
    sizes=["any"],
)
"""A white sigma on blue."""
