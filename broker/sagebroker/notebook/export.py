"""`export`: a session's transcript as a notebook, whoever serves the session, and also while it sleeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import nbformat
from nbformat.v4 import new_notebook

from sagebroker import __version__
from sagebroker.errors import CellNotFoundError, ConfigError, NotebookTooLargeError
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.model import utcnow
from sagebroker.notebook.cells import notebook_cell
from sagebroker.notebook.limit import shrink, size_of
from sagebroker.notebook.repeat import judge

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from sagebroker.broker import Broker
    from sagebroker.session.directory import SessionRecord

LIMIT_BYTES: Final = 100 * 2**20
"""Size of a notebook's cells: about what JupyterLab still opens. A transcript may have more."""

SURPLUS_BYTES: Final = 16 * 2**20
"""More than the limit that may be in memory while cells are read, so that they are looked through seldom."""

_LANGUAGE: Final = {
    "name": "python",
    "mimetype": "text/x-python",
    "file_extension": ".py",
    "pygments_lexer": "ipython3",
    "codemirror_mode": {"name": "ipython", "version": 3},
    "nbconvert_exporter": "python",
}
"""What a Sage kernel says of its language: editors know Python, and colour Sage by that."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A session's notebook."""

    notebook: NotebookNode
    """Valid by nbformat's own check."""

    @property
    def problems(self) -> list[dict[str, Any]]:
        """The cells that a replay does not repeat: ``cell``, ``mode`` and ``reasons`` of each."""
        return [
            {"cell": ours.number, **ours.replay}
            for cell in self.notebook.cells
            if "replay" in (ours := cell.metadata.sagebroker)
        ]

    @property
    def missing(self) -> str:
        """A sentence about cells that are not in the notebook; empty where all are."""
        return str(self.notebook.metadata.sagebroker.get("missing", ""))

    def text(self) -> str:
        """The notebook as a file has it: a line of JSON for each line of text, good to compare."""
        return f"{nbformat.writes(self.notebook)}\n"

    def compact_text(self) -> str:
        """The same in as few bytes as can be."""
        return json.dumps(self.notebook, ensure_ascii=False, separators=(",", ":"))


async def export(broker: Broker, name: str, *, limit_bytes: int = LIMIT_BYTES) -> Exported:
    """A session's notebook, as its transcript is now; nothing is woken for it.

    Args:
        broker: Whose sessions are looked at; it need not serve this one.
        name: The session's.
        limit_bytes: Of all cells as JSON text. What does not fit is left out, and they say so.

    Raises:
        SessionNotFoundError: There is none; tells the ones there are.
        NotebookTooLargeError: Not even the newest cell fits.
        StorageError: The store cannot be read.
    """
    record = await broker.directory.record(name)
    listed = await broker.directory.list_cells(name, most=broker.config.transcript.kept_cells)
    cells: list[NotebookNode] = []
    size = 0
    for one in listed:
        try:
            cell = await broker.read_cell(name, one.number)
        except CellNotFoundError:
            # Forgotten meanwhile, as old ones are.
            continue
        cells.append(notebook_cell(record.row.id, cell, record.cells.get(one.number)))
        size += await anyio.to_thread.run_sync(size_of, cells[-1])
        if size > limit_bytes + SURPLUS_BYTES:
            cells, size = await anyio.to_thread.run_sync(shrink, cells, limit_bytes, size)
    return await anyio.to_thread.run_sync(partial(_finished, record, cells, limit_bytes))


def _finished(record: SessionRecord, cells: list[NotebookNode], limit_bytes: int) -> Exported:
    judge(cells)
    kept, size = shrink(cells, limit_bytes, sum(map(size_of, cells)))
    if size > limit_bytes:
        raise NotebookTooLargeError(
            f"The newest cell alone would make a notebook of {size} bytes; {limit_bytes} are allowed.",
            hint=f"sagebroker export {record.row.name} FILE.ipynb writes 100 MiB, and with --limit-mib more.",
        )
    notebook = new_notebook(cells=kept, metadata=_metadata(record, kept))
    nbformat.validate(notebook)
    return Exported(notebook=notebook)


def _metadata(record: SessionRecord, cells: list[NotebookNode]) -> dict[str, Any]:
    row = record.row
    about: dict[str, Any] = {
        "session": row.name,
        "exported": utcnow().isoformat(timespec="seconds"),
        "version": __version__,
        "image": row.image,
        "kernels": list(record.kernels),
    }
    first = cells[0].metadata.sagebroker.number if cells else 1
    if first > 1:
        about["missing"] = (
            f"The cells before number {first} are not in the notebook: the session keeps no more, or they "
            "did not fit. A replay lacks what they did."
        )
    return {
        "kernelspec": _kernelspec(row.kernelspec),
        "language_info": _LANGUAGE,
        "sagebroker": about,
    }


def _kernelspec(name: str) -> dict[str, str]:
    try:
        spec = KernelSpec.load(name)
    except ConfigError:
        # It was removed since; its name is what a reader can still look for.
        return {"name": name, "display_name": name, "language": "sage"}
    return {"name": name, "display_name": spec.display_name, "language": spec.language}
