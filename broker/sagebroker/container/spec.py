"""`ContainerSpec`: a session's container, from validated fields only.

No string of a client reaches image, mounts, environment or command. The hardening itself is not
configurable: `hardening.create_config` has no switches for it.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path

from sagebroker.errors import ConfigError

LABEL_PREFIX = "org.sagebroker."
LABEL_INSTANCE = LABEL_PREFIX + "instance"
LABEL_ROLE = LABEL_PREFIX + "role"
LABEL_SESSION = LABEL_PREFIX + "session"
LABEL_GENERATION = LABEL_PREFIX + "generation"
LABEL_IMAGE_DIGEST = LABEL_PREFIX + "image-digest"
LABEL_CONFIG_HASH = LABEL_PREFIX + "config-hash"
LABEL_CREATED = LABEL_PREFIX + "created"
LABEL_RUNTIME = LABEL_PREFIX + "runtime-folder"
"""Where its sockets are; a process with another configuration cannot reach its kernel."""

MOUNT_TARGETS = frozenset(
    {"/run/kernel", "/run/kernel/s", "/files", "/opt/sagebroker", "/checkpoint"}
)
"""The only places where a folder of the host may appear."""

TMPFS_TARGETS = frozenset({"/tmp", "/home/sage"})
"""The only places where a folder in memory may appear."""

MAX_TEXT_CHARS = 4096
"""Longest argument or value of a variable; far above what a kernel needs."""

_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._/:@-]{0,254}\Z")
_CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}\Z")
_LABEL = re.compile(re.escape(LABEL_PREFIX) + r"[a-z0-9][a-z0-9.-]{0,62}\Z")
_VARIABLE = re.compile(
    # What Sage, Python and the programs Sage drives read; not LD_PRELOAD, *_PROXY or a host's secrets.
    r"(HOME|PATH|LANG|LANGUAGE|TZ|TERM|USER|LOGNAME|SHELL|COLUMNS|LINES|TMPDIR|MPLBACKEND|MPLCONFIGDIR"
    r"|(LC|SAGE|SAGEBROKER|OMP|OPENBLAS|MKL|NUMEXPR|XDG|MAXIMA|GAP|SINGULAR|PARI|GP|DOT|ECL|R)_[A-Z0-9_]{1,60}"
    r"|(PYTHON|IPYTHON|JUPYTER)[A-Z0-9_]{1,60})\Z"
)

# Folders of the machine itself: nothing below them may be shown to a container.
_SYSTEM_TREES = tuple(
    Path(p)
    for p in (
        "/boot", "/dev", "/etc", "/proc", "/sys", "/run/containerd", "/run/docker", "/run/podman",
        "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker",
    )
)  # fmt: skip
_MIN_SOURCE_DEPTH = 2
"""Folders at least this far below ``/``: never ``/`` itself, ``/run`` or ``/home``."""
_ENGINE_SOCKETS = ("docker.sock", "podman.sock", "containerd.sock")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A host folder at a place in the container."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, kw_only=True)
class Tmpfs:
    """A folder in memory, counted against the container's memory."""

    target: str
    size_bytes: int
    mode: int = 0o1777


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a container may use."""

    memory_bytes: int
    cpus: float
    pids: int
    open_files: int
    file_bytes: int
    shm_bytes: int = 64 * 2**20
    """/dev/shm; the engine's own default, named so that it is asserted."""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """Everything a container is made from.

    Checking the fields reads nothing from disk; `check_sources` looks at the folders.

    Raises:
        ConfigError: A field holds something a container must not be made from.
    """

    name: str
    image: str
    command: tuple[str, ...]
    uid: int
    gid: int
    limits: Limits
    mounts: tuple[Mount, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    working_dir: str = "/files"
    userns_mode: str = ""
    """``keep-id`` on rootless Podman; empty elsewhere."""
    rootless: bool = False
    """The engine is a rootless Docker: uid 0 of the container is the engine's own user outside, and
    the only uid that can write to that user's folders. Nowhere else is uid 0 allowed."""

    def __post_init__(self) -> None:
        _require(_CONTAINER_NAME.match(self.name), "container name", self.name)
        _require(_IMAGE.match(self.image), "image", self.image)
        _require(self.userns_mode in ("", "keep-id"), "user namespace mode", self.userns_mode)
        _require(_is_place(self.working_dir), "working folder", self.working_dir)
        self._check_user()
        self._check_command()
        self._check_variables()
        _check_limits(self.limits)
        _check_mounts(self.mounts)
        _check_tmpfs(self.tmpfs)

    def _check_user(self) -> None:
        for what, number in (("uid", self.uid), ("gid", self.gid)):
            _require(0 <= number < 2**31, what, str(number))
            _require(number != 0 or self.rootless, f"{what} (root) of a container", str(number))

    def _check_command(self) -> None:
        _require(self.command and self.command[0], "command", "(empty)")
        for word in self.command:
            _require("\0" not in word and len(word) <= MAX_TEXT_CHARS, "word of a command", word)

    def _check_variables(self) -> None:
        for name, value in self.environment.items():
            _require(_VARIABLE.match(name), "environment variable", name)
            _require(
                value.isprintable() and len(value) <= MAX_TEXT_CHARS, f"value of {name}", value
            )
        for name, value in self.labels.items():
            _require(_LABEL.match(name), "label", name)
            _require(
                value.isprintable() and len(value) <= MAX_TEXT_CHARS, f"value of {name}", value
            )


def check_sources(spec: ContainerSpec) -> None:
    """Look at the folders a container is to see; called by every runtime before it creates one.

    Reads the file system, so call it in a worker thread.

    Raises:
        ConfigError: A folder is missing, is no folder, or a link in its path leads to a folder of
            the machine itself or to an engine's socket.
    """
    for mount in spec.mounts:
        if not mount.source.is_dir():
            raise ConfigError(
                f"The folder {str(mount.source)!r} to be shown at {mount.target} does not exist.",
                hint="Folders of a session are made before its container.",
            )
        _check_source(mount.source.resolve())
        for name in _ENGINE_SOCKETS:
            _require(
                not (mount.source / name).exists(),
                "folder with an engine's socket",
                str(mount.source),
            )


def _require(holds: object, what: str, value: str) -> None:
    if not holds:
        shown = value if len(value) <= 80 else value[:80] + "…"
        raise ConfigError(f"A container cannot be made with this {what}: {shown!r}.")


def _is_place(path: str) -> bool:
    """Whether ``path`` is absolute, has no ``.``, ``..`` or doubled slashes, and is not ``/``."""
    plain = path.isprintable() and ":" not in path and "," not in path
    return plain and path.startswith("/") and path != "/" and posixpath.normpath(path) == path


def _check_source(source: Path) -> None:
    what = "mounted folder"
    _require(_is_place(str(source)), what, str(source))
    _require(len(source.parts) > _MIN_SOURCE_DEPTH, what, str(source))
    _require(not any(source.is_relative_to(tree) for tree in _SYSTEM_TREES), what, str(source))
    _require(not source.name.endswith(".sock"), what, str(source))


def _check_mounts(mounts: tuple[Mount, ...]) -> None:
    for mount in mounts:
        _require(mount.target in MOUNT_TARGETS, "mount target", mount.target)
        _check_source(mount.source)
    _require(len({m.target for m in mounts}) == len(mounts), "repeated mount target", "")


def _check_tmpfs(places: tuple[Tmpfs, ...]) -> None:
    for place in places:
        _require(place.target in TMPFS_TARGETS, "tmpfs target", place.target)
        _require(place.size_bytes > 0, "tmpfs size", str(place.size_bytes))
        _require(0 <= place.mode <= 0o1777, "tmpfs mode", oct(place.mode))
    _require(len({p.target for p in places}) == len(places), "repeated tmpfs target", "")


def _check_limits(limits: Limits) -> None:
    for name in ("memory_bytes", "cpus", "pids", "open_files", "file_bytes", "shm_bytes"):
        value = getattr(limits, name)
        # Zero and below mean "no limit" to the engine.
        _require(value > 0, f"limit {name}", str(value))
