"""Make an installed Sage tree smaller without taking anything from the people who compute with it.

Runs in the builder stage: ``python3 shrink.py /opt/sage``. Three steps, each tells what it saved:

* *prune*: files that only building and testing need;
* *strip*: debug information and local symbols of ELF files. Every result is compared with what it was (load segments
  still aligned, same needed libraries and search paths, same number of dynamic symbols) and given up where it
  differs: ``strip`` damages some libraries that ``patchelf`` has rewritten, as wheels' libraries are;
* *link*: wheels bring equal copies of the same libraries (OpenBLAS eight times); equal files become hard links.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

MIB = 1 << 20
LINK_FROM_BYTES = 16 * 1024
"""Smaller equal files save too little to be looked for."""
BUILD_SUFFIXES = frozenset({".a", ".la", ".o", ".map"})
"""Static libraries, and source maps of JavaScript: only compilers and debuggers read them."""
TESTED_PACKAGES = (
    "ipykernel", "jedi", "matplotlib", "mpl_toolkits", "mpmath", "networkx", "numpy", "pandas", "psutil", "scipy",
    "sympy", "tornado", "traitlets", "zmq",
)  # fmt: skip
"""Packages whose folders named ``test`` or ``tests`` hold their own test suites and nothing else."""
REPORT_EVERY = 200
"""Files between two lines of progress."""


class ElfFacts(NamedTuple):
    """What must be the same after stripping."""

    aligned: bool
    dynamic: tuple[str, ...]
    symbols: int


def plain_files(root: Path) -> Iterator[Path]:
    """Regular files below ``root``, links left out."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def prune(root: Path) -> int:
    """Remove what only building and testing need; return the bytes saved."""
    saved = 0
    for packages in root.glob("lib/python3*/site-packages"):
        for package in TESTED_PACKAGES:
            for folder in sorted((packages / package).rglob("test*")):
                if folder.name in ("test", "tests") and folder.is_dir():
                    saved += sum(path.stat().st_size for path in plain_files(folder))
                    shutil.rmtree(folder)
    for path in list(plain_files(root)):
        if path.suffix in BUILD_SUFFIXES:
            saved += path.stat().st_size
            path.unlink()
    return saved


def read_elf(path: Path, *arguments: str) -> str:
    """What ``readelf`` says."""
    return subprocess.run(
        ["readelf", "-W", *arguments, str(path)], capture_output=True, text=True, check=False
    ).stdout


def facts(path: Path) -> ElfFacts:
    """Look at a file as the dynamic loader would."""
    aligned = True
    for line in read_elf(path, "-l").splitlines():
        words = line.split()
        if words[:1] == ["LOAD"]:
            offset, address, alignment = (int(words[i], 16) for i in (1, 2, -1))
            aligned = aligned and (alignment < 2 or offset % alignment == address % alignment)
    kept = ("(NEEDED)", "(SONAME)", "(RPATH)", "(RUNPATH)")
    dynamic = (
        line.split("0x", 1)[-1].split(" ", 1)[-1].strip()
        for line in read_elf(path, "-d").splitlines()
    )
    return ElfFacts(
        aligned,
        tuple(sorted(line for line in dynamic if line.startswith(kept))),
        read_elf(path, "--dyn-syms").count("\n"),
    )


def is_elf(path: Path) -> bool:
    """Whether the file is a program or a shared library."""
    with path.open("rb") as file:
        head = file.read(18)
    return head[:4] == b"\x7fELF" and head[16:17] in (b"\x02", b"\x03")


def strip_one(path: Path) -> tuple[str, int]:
    """Strip one file; return what became of it and the bytes saved."""
    sections = read_elf(path, "-S")
    if ".symtab" not in sections and ".debug_" not in sections:
        return "already", 0
    before, size = facts(path), path.stat().st_size
    result = path.with_name(path.name + ".stripped")
    done = subprocess.run(
        ["strip", "--strip-unneeded", "-o", str(result), str(path)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0 or facts(result) != before:
        result.unlink(missing_ok=True)
        return "kept", 0
    shutil.copystat(path, result)
    saved = size - result.stat().st_size
    result.replace(path)
    return "stripped", saved


def strip(root: Path) -> int:
    """Strip every program and library; return the bytes saved."""
    paths = [path for path in plain_files(root) if is_elf(path)]
    counts: dict[str, int] = defaultdict(int)
    total = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (path, (outcome, saved)) in enumerate(
            zip(paths, pool.map(strip_one, paths), strict=True), 1
        ):
            counts[outcome] += 1
            total += saved
            if outcome == "kept":
                print(f"left as it is, strip would damage it: {path.name}", flush=True)
            if number % REPORT_EVERY == 0:
                print(f"## Stripping {100 * number // len(paths)} %", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())), flush=True)
    return total


def link(root: Path) -> int:
    """Make equal files one; return the bytes saved."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in plain_files(root):
        by_size[path.stat().st_size].append(path)
    saved = 0
    for size, paths in by_size.items():
        if size < LINK_FROM_BYTES or len(paths) < 2:
            continue
        first: dict[tuple[bytes, int], Path] = {}
        for path in paths:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
            same = first.setdefault((digest, path.stat().st_mode), path)
            if not same.samefile(path):
                path.unlink()
                path.hardlink_to(same)
                saved += size
    return saved


def main() -> None:
    """Do the three steps in the folder named by the first argument."""
    root = Path(sys.argv[1])
    for step in (prune, strip, link):
        print(f"## {step.__name__}: {step(root) // MIB} MiB saved", flush=True)


if __name__ == "__main__":
    main()
