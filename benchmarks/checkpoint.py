"""What checkpoints cost: the delay of the next cell, and the time in the child.

Usage: ``PYTHONPATH=. python benchmarks/checkpoint.py [cells]``. Needs a container engine and the
Sage image. One container with checkpoints and one without take turns with the same cells, so that the
machine's other load hits both. The next cell is sent the moment the last one has been answered,
which is the worst case. Prints medians in milliseconds, and the ratio.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from tests.docker.keeper_harness import MIB, SAGE, Kept, kept
from tests.sage.namespace import EIGHTEEN

IMAGE = os.environ.get("SAGEBROKER_TEST_IMAGE", "sagebroker/sagemath:10.8.13")
ARRAYS = "import numpy as np; arrays = [np.full(2**20, float(i)) for i in range(37)]"
"""37 arrays of 8 MiB: 310 MB, all of it touched."""
SETTLE_S = 60.0
TIME_LIMIT_S = 120.0


def _delay(session: Kept, number: int) -> float:
    """Seconds of a trivial cell that follows at once on one that changes the namespace."""
    session.run(f"changed = {number}")
    start = time.perf_counter()
    assert session.run("changed").text == str(number)
    return time.perf_counter() - start


def _next_cell(cells: int, prepare: str, label: str) -> None:
    limits = {"limit_bytes": 10**9, "time_limit_s": TIME_LIMIT_S}
    with (
        kept(IMAGE, memory=3072 * MIB, checkpoint=limits, **SAGE) as saving,
        kept(IMAGE, memory=3072 * MIB, **SAGE) as plain,
    ):
        for session in (saving, plain):
            session.await_status(state="running")
            session.run(prepare, limit_s=SETTLE_S)
        delays: dict[Kept, list[float]] = {saving: [], plain: []}
        written = []
        for number in range(cells):
            for session in (saving, plain):
                delays[session].append(_delay(session, number))
            # Each time from rest: with a writer at work no further one would be forked.
            written.append(_settled(saving))
    ours, theirs = (statistics.median(delays[each]) * 1000 for each in (saving, plain))
    print(
        f"{label}: next cell {ours:.1f} ms with checkpoints, {theirs:.1f} ms without:"
        f" {ours - theirs:+.1f} ms, ratio {ours / theirs:.2f};"
        f" worst {max(delays[saving]) * 1000:.1f} ms;"
        f" {written[-1]['bytes'] / 1e6:.0f} MB written in"
        f" {statistics.median(m['seconds'] for m in written) * 1000:.0f} ms beside it"
    )


def _settled(session: Kept) -> dict[str, float]:
    """The newest checkpoint once nothing is being written any more."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        state = session.state()
        if state["settled"]:
            return session.manifests()[-1]
        time.sleep(0.02)
    raise TimeoutError(f"not written: {session.state()}")


def main() -> None:
    """Print the figures."""
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    _next_cell(cells, "1", "empty namespace")
    _next_cell(cells, EIGHTEEN, "18 Sage objects")
    _next_cell(cells, ARRAYS, "300 MB")


if __name__ == "__main__":
    main()
