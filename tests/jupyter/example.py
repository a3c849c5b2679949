"""The notebook that Jupyter's tools run in these tests; Sage and Python read it alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

CELLS: tuple[tuple[str, list[Any]], ...] = (
    ("n = 5", []),
    (
        "print('n is', n)\nsum(range(n + 1))",
        [
            new_output("stream", name="stdout", text="n is 5\n"),
            new_output("execute_result", data={"text/plain": "15"}, execution_count=2),
        ],
    ),
    (
        "from IPython.display import Markdown, display\ndisplay(Markdown('*done*'))",
        [
            new_output(
                "display_data",
                data={
                    "text/markdown": "*done*",
                    "text/plain": "<IPython.core.display.Markdown object>",
                },
            )
        ],
    ),
)


def write(path: Path, kernel_name: str, *, wrong: str = "") -> None:
    """Write it with its outputs; ``wrong`` in place of the sum."""
    notebook = new_notebook(
        metadata={
            "kernelspec": {
                "name": kernel_name,
                "display_name": "SageMath (container)",
                "language": "sage",
            },
            "language_info": {"name": "sage"},
        }
    )
    for number, (source, outputs) in enumerate(CELLS, start=1):
        copies = [output.copy() for output in outputs]
        cell = new_code_cell(source, outputs=copies, execution_count=number)
        notebook.cells.append(cell)
    notebook.cells[0].metadata["tags"] = ["parameters"]
    if wrong:
        notebook.cells[1].outputs[1].data = {"text/plain": wrong}
    path.write_text(nbformat.writes(notebook), encoding="utf-8")


def outputs_in(path: Path) -> list[list[Any]]:
    """What each code cell has, without numbers."""
    notebook = nbformat.read(path, as_version=4)
    return [
        [{k: v for k, v in output.items() if k != "execution_count"} for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
