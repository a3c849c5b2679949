"""Runs every tier of the tests and tells, at the end, how each did and how long it took.

    python scripts/run_tests.py [TIER...] [-- PYTEST_ARGUMENT...]

Tiers: check, then those of `tests/`, then `user`: the core tests once more as an ordinary user, where this is run by
root. Tiers that need containers come after the engine was found and the image built. Nothing is skipped after a
failure, so that one run tells everything; the exit code is 1 when anything failed.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import docker
import dockerd
import engine

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
FOLDERS = (
    "unit",
    "kernels",
    "integration",
    "contract",
    "interaction",
    "jupyter",
    "conformance",
    "docker",
    "sage",
    "browser",
    "chaos",
)
"""Cheap ones first; folders that are not named here come after them."""
WITHOUT_CONTAINERS = frozenset(
    {"check", "structure", "unit", "kernels", "integration", "conformance"}
)
NO_TESTS_COLLECTED = 5
SUMMARY = re.compile(r"^=+ .*\bin [\d.]+s.* =+$")
COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LABEL = "org.sagebroker.instance"
FOLDERS_OF_TESTS = ("run/sagebroker/*", "tmp/sb-*", "tmp/sbu-*", "tmp/kp-*", "tmp/sagebroker-*/*")
LEFTOVER_LIMIT_S = 20.0
"""The engine removes a container within seconds of being asked to."""


@dataclass
class Outcome:
    """How one step went."""

    name: str
    failed: bool
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    remark: str = ""


def tiers() -> dict[str, list[str]]:
    """Tier to what pytest is given; found by looking, so that no test file can be left out."""
    single = sorted(p for p in TESTS.glob("test_*.py") if p.name != "test_examples.py")
    found = {"structure": [str(p.relative_to(ROOT)) for p in single]}
    holding = {p.relative_to(TESTS).parts[0] for p in TESTS.glob("*/**/test_*.py")}
    for name in [f for f in FOLDERS if f in holding] + sorted(holding - set(FOLDERS)):
        found[name] = [f"tests/{name}"]
    if (TESTS / "test_examples.py").exists():
        found["examples"] = ["tests/test_examples.py"]
    return {name: paths for name, paths in found.items() if paths}


def heading(text: str) -> None:
    print(f"\n==> {text}", flush=True)


def counts_in(line: str) -> Counter[str]:
    """What pytest's closing line counts; an error of a fixture counts as a failure."""
    counts: Counter[str] = Counter()
    for number, word in COUNT.findall(line):
        counts["failed" if word.startswith("error") else word] += int(number)
    return counts


def run(name: str, command: list[str]) -> Outcome:
    """Run a command, pass its output on as it comes, and read pytest's closing line from it."""
    heading(f"{name}: {' '.join(command[1:] if command[0] == sys.executable else command)}")
    began = time.monotonic()
    counts: Counter[str] = Counter()
    remark = ""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            plain = ANSI.sub("", line.rstrip())
            if SUMMARY.match(plain):
                counts += counts_in(plain)
            elif plain.startswith("Skipped: "):
                remark = plain
    if process.returncode == NO_TESTS_COLLECTED:
        remark = "no test was collected"
    if process.returncode and not remark and not counts["failed"]:
        remark = f"exit code {process.returncode}"
    return Outcome(name, process.returncode != 0, time.monotonic() - began, counts, remark)


def pytest_command(paths: list[str], more: list[str]) -> list[str]:
    color = ["--color=yes"] if sys.stdout.isatty() else []
    return [sys.executable, "-m", "pytest", *color, *more, *paths]


def traces() -> set[str]:
    """What a broker leaves while it works: containers, folders of sockets, mounts."""
    found = {
        f"mount {m.split()[1]}"
        for m in Path("/proc/mounts").read_text().splitlines()
        if m.startswith("sagebroker ")
    }
    found |= {f"folder {p}" for pattern in FOLDERS_OF_TESTS for p in Path("/").glob(pattern)}
    url, _, _ = engine.find(engine.default_places())
    if url:
        client = docker.DockerClient(base_url=url, version="auto", timeout=dockerd.PROBE_LIMIT_S)
        with contextlib.closing(client):
            listed = client.api.containers(all=True, filters={"label": LABEL})
        found |= {f"container {c['Id'][:12]}" for c in listed}
    return found


def leftovers(before: set[str]) -> Outcome:
    """After all tests nothing of ours may be left; what others make meanwhile is told apart by waiting a little."""
    began = time.monotonic()
    while (left := traces() - before) and time.monotonic() - began < LEFTOVER_LIMIT_S:
        time.sleep(1)
    remark = f"left behind: {', '.join(sorted(left)[:10])}" if left else ""
    return Outcome("leftovers", bool(left), time.monotonic() - began, remark=remark)


def report(outcomes: list[Outcome]) -> int:
    """Print the table and the closing line; the exit code."""
    heading("Summary")
    total: Counter[str] = Counter()
    for o in outcomes:
        total += o.counts
        counts = ", ".join(f"{number} {word}" for word, number in sorted(o.counts.items()))
        told = "; ".join(text for text in (counts, o.remark) if text)
        print(f"{'FAILED' if o.failed else 'ok':6s}  {o.name:12s} {o.seconds:7.1f} s  {told}")
    seconds = sum(o.seconds for o in outcomes)
    print(f"        {'all':12s} {seconds:7.1f} s")
    failed = total["failed"] + sum(o.failed and not o.counts["failed"] for o in outcomes)
    print(f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed else 0


def steps(chosen: list[str], more: list[str]) -> list[tuple[str, list[str]]]:
    """Every step with its command, in order."""
    python = sys.executable
    known: dict[str, list[str]] = {"check": ["scripts/check"]}
    known |= {name: pytest_command(paths, more) for name, paths in tiers().items()}
    if os.geteuid() == 0:
        known["user"] = [python, "scripts/test_as_user.py", *more]
    if unknown := [name for name in chosen if name not in known]:
        sys.exit(f"unknown tier {unknown[0]!r}; there are: {' '.join(known)}")
    wanted = {name: known[name] for name in known if not chosen or name in chosen}
    planned = [(name, c) for name, c in wanted.items() if name in WITHOUT_CONTAINERS]
    if len(planned) < len(wanted):
        planned.append(("engine", [python, "scripts/engine.py", "ensure"]))
        planned.append(("image", [str(Path(python).with_name("sagebroker")), "image", "build"]))
    return planned + [(name, c) for name, c in wanted.items() if name not in WITHOUT_CONTAINERS]


def main() -> int:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    before: set[str] = set()
    outcomes: list[Outcome] = []
    for name, command in steps(arguments[:cut], arguments[cut + 1 :]):
        outcomes.append(run(name, command))
        if name == "engine":
            before = traces()
        if outcomes[-1].failed and name in ("engine", "image"):
            outcomes[-1].remark += "; the tiers that need it were not run"
            return report(outcomes)
    if any(o.name == "engine" for o in outcomes):
        outcomes.append(leftovers(before))
    return report(outcomes)


if __name__ == "__main__":
    sys.exit(main())
