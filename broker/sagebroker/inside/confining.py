"""What keeps a process that was forked off the kernel from touching what is the kernel's."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

MEMORY_PAGE = resource.getpagesize()


def silence_descriptors(*, keep: int) -> None:
    """Point all descriptors but one to nowhere, so that no object can use them.

    They are not closed: a number that is free would be given to the checkpoint's own files, into
    which a library that thinks it talks to its process would then write.
    """
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for entry in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(entry.name)
        if descriptor not in (keep, nowhere):
            with contextlib.suppress(OSError):  # that of the listing itself
                os.fstat(descriptor)
                os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


def limit_memory(more: int) -> None:
    """Allow so many bytes more than there are."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * MEMORY_PAGE
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = now + more if hard == resource.RLIM_INFINITY else min(hard, now + more)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
