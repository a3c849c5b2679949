"""Checkpoints of which nothing but the manifest is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MANIFEST: dict[str, Any] = {
    "version": 1,
    "number": 7,
    "cell": 4,
    "generation": 2,
    "saved_at": 1000.5,
    "seconds": 0.1,
    "bytes": 2000,
    "count": 2,
    "names": ["a", "b"],
    "types": ["int", "list"],
    "missing": [{"name": "g", "type": "generator", "reason": "why"}],
    "files": {},
}


def write(folder: Path, number: int, **changes: Any) -> Path:
    """A checkpoint in ``folder`` whose manifest differs from `MANIFEST` by ``changes``; its path."""
    place = folder / str(number)
    place.mkdir()
    (place / "manifest.json").write_text(json.dumps({**MANIFEST, **changes}))
    return place / "manifest.json"
