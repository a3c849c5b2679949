"""Podman's seccomp profile, made as narrow as Docker's.

Podman's own lets every container make user namespaces, mount in them and use the kernel's key rings,
because people build containers in its containers. For a session that is nothing but more of the host's
kernel to attack. The profile is the format both engines read; all of it that is not named here stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Json: TypeAlias = Mapping[str, Any]

DENIED = frozenset(
    {
        # namespaces
        "clone", "clone3", "setns", "unshare",
        # mounts
        "fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree",
        "pivot_root", "umount", "umount2",
        # key rings, which no namespace separates
        "add_key", "keyctl", "request_key",
        # others of which Docker lets a container without capabilities use none
        "io_uring_enter", "io_uring_register", "io_uring_setup", "name_to_handle_at", "pidfd_getfd",
        "syslog",
    }
)  # fmt: skip
"""System calls that are taken out; `clone` comes back for threads and processes. The C library goes
over to it when ``clone3`` does not exist, whose flags a filter cannot see."""

NAMESPACE_FLAGS = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET, of <linux/sched.h>."""

_REFUSING = ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL")


def narrowed(profile: Json) -> dict[str, Any]:
    """``profile`` without `DENIED`. Pure.

    Raises:
        ValueError: It is no profile, or one that allows what it does not name.
    """
    rules = profile.get("syscalls")
    if not isinstance(rules, list) or not _refuses(profile.get("defaultAction")):
        raise ValueError("it does not refuse by default")
    return {
        **profile,
        "syscalls": [*(_without(rule) for rule in rules), _clone_without_namespaces()],
    }


def _refuses(action: object) -> bool:
    return str(action).startswith(_REFUSING)


def _without(rule: Json) -> Json:
    if _refuses(rule.get("action")):
        return rule
    return {**rule, "names": [name for name in rule.get("names") or [] if name not in DENIED]}


def _clone_without_namespaces() -> dict[str, Any]:
    flags = {"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return {
        "names": ["clone"],
        "action": "SCMP_ACT_ALLOW",
        "args": [flags],
        # Its flags are the second argument there: no session rather than an open one.
        "excludes": {"arches": ["s390", "s390x"]},
    }
