"""The Debian base an image is built on: the local one, a registry's, or one made by debootstrap.

Everything blocks; call it in a worker thread. What the machine has is looked at first
(`BaseFacts`), what to do follows from that alone (`base_plan`), and `provide_base` does it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException
from docker.utils.json_stream import json_stream

from sagebroker.errors import ImageError

Progress = Callable[[str], None]
"""Takes one line for a person to read."""

LOCAL_BASE = "sagebroker/base:bookworm"
"""The tag of a base made here; it is used when it exists."""
PUBLIC_BASE = "debian:bookworm-slim"
"""The base where a registry answers."""
SUITE = "bookworm"

FIRST_ANSWER_S = 10.0
"""A reachable registry answers in 1-2 s; a blocked one often never does."""
PULL_LIMIT_S = 600.0
"""The image has 30 MB: enough at 50 kB/s."""
DEBOOTSTRAP_LIMIT_S = 900.0
"""It takes 30-60 s here; a slow mirror may take ten times that."""
IMPORT_LIMIT_S = 300
"""Sending 200 MB to the engine takes 2 s here."""
REPORT_INTERVAL_S = 2.0
"""Time between two lines of progress within one step."""

_SOURCES = f"""\
deb http://deb.debian.org/debian {SUITE} main
deb http://deb.debian.org/debian {SUITE}-updates main
deb http://deb.debian.org/debian-security {SUITE}-security main
"""
_LEFT_OUT = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/log",
)
"""Emptied before the import: what `debian:bookworm-slim` leaves out, too."""


class BaseStep(StrEnum):
    """One way to a base."""

    USE_LOCAL = "use_local"
    USE_PUBLIC = "use_public"
    PULL = "pull"
    DEBOOTSTRAP = "debootstrap"


@dataclass(frozen=True, kw_only=True)
class BaseFacts:
    """What decides where the base comes from."""

    has_local: bool
    """The engine has `LOCAL_BASE`."""
    has_public: bool
    """The engine has `PUBLIC_BASE`."""
    is_root: bool
    has_debootstrap: bool


def base_plan(facts: BaseFacts) -> tuple[BaseStep, ...]:
    """The ways to try, in order; the first that succeeds is taken."""
    if facts.has_local:
        return (BaseStep.USE_LOCAL,)
    if facts.has_public:
        return (BaseStep.USE_PUBLIC,)
    if facts.is_root and facts.has_debootstrap:
        return (BaseStep.PULL, BaseStep.DEBOOTSTRAP)
    return (BaseStep.PULL,)


def no_base_error(facts: BaseFacts, reason: str) -> ImageError:
    """What to tell when no way led to a base."""
    if not facts.has_debootstrap:
        hint = (
            "As root on Debian or Ubuntu run 'apt-get install debootstrap debian-archive-keyring' and try "
            f"again; or give the engine a Debian {SUITE} image under the tag {LOCAL_BASE}."
        )
    elif not facts.is_root:
        hint = (
            "Run 'sagebroker image build' as root once, so that debootstrap can make the base; or give "
            f"the engine a Debian {SUITE} image under the tag {LOCAL_BASE}."
        )
    else:
        hint = f"Give the engine a Debian {SUITE} image under the tag {LOCAL_BASE}."
    return ImageError(f"There is no base image to build on: {reason}.", hint=hint)


def provide_base(client: docker.DockerClient, progress: Progress) -> str:
    """Return the tag of a base image that the engine has, getting or making it if needed.

    Raises:
        ImageError: No way led to one; the text says what to do.
    """
    facts = BaseFacts(
        has_local=_has_image(client, LOCAL_BASE),
        has_public=_has_image(client, PUBLIC_BASE),
        is_root=os.geteuid() == 0,
        has_debootstrap=shutil.which("debootstrap") is not None,
    )
    reasons = []
    for step in base_plan(facts):
        try:
            return _carry_out(step, client, progress)
        except ImageError as error:
            progress(f"base image: {error.message}")
            reasons.append(error.message.rstrip("."))
    raise no_base_error(facts, "; ".join(reasons))


def _carry_out(step: BaseStep, client: docker.DockerClient, progress: Progress) -> str:
    if step is BaseStep.PULL:
        pull_public_base(client, progress)
    elif step is BaseStep.DEBOOTSTRAP:
        make_local_base(client, progress)
    tag = LOCAL_BASE if step in (BaseStep.USE_LOCAL, BaseStep.DEBOOTSTRAP) else PUBLIC_BASE
    progress(f"base image: {tag}")
    return tag


def _has_image(client: docker.DockerClient, tag: str) -> bool:
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        return False
    except (DockerException, requests.RequestException) as error:
        raise ImageError(
            f"The container engine did not say whether it has the image {tag}: {error}.",
            hint="Check the engine with 'sagebroker doctor'.",
        ) from error
    return True


def pull_public_base(client: docker.DockerClient, progress: Progress) -> None:
    """Pull `PUBLIC_BASE`; give up when no answer comes for `FIRST_ANSWER_S`.

    Raises:
        ImageError: The registry did not answer, or refused.
    """
    progress(f"base image: asking the registry for {PUBLIC_BASE} (at most {FIRST_ANSWER_S:.0f} s)")
    repository, _, tag = PUBLIC_BASE.partition(":")
    # docker-py's own pull waits for ever. The session below it takes a deadline on every read.
    url = f"{client.api.base_url}/v{client.api.api_version}/images/create"
    deadline = time.monotonic() + PULL_LIMIT_S
    said = Paced(progress, REPORT_INTERVAL_S)
    try:
        with client.api.post(
            url,
            params={"fromImage": f"docker.io/library/{repository}", "tag": tag},
            stream=True,
            timeout=FIRST_ANSWER_S,
        ) as response:
            if not response.ok:
                raise ImageError(f"the registry cannot be used: {_engine_message(response)}")
            for message in _messages(response):
                if "error" in message:
                    raise ImageError(f"the registry cannot be used: {message['error']}")
                said(
                    f"base image: {message.get('status', '')} {message.get('progress', '')}".strip()
                )
                if time.monotonic() > deadline:
                    raise ImageError(f"pulling {PUBLIC_BASE} took longer than {PULL_LIMIT_S:.0f} s")
    except requests.RequestException as error:
        raise ImageError(f"no registry answered within {FIRST_ANSWER_S:.0f} s") from error


def _messages(response: requests.Response) -> Iterator[dict[str, Any]]:
    for message in json_stream(part.decode() for part in response.iter_content(None)):
        if isinstance(message, dict):
            yield message


def _engine_message(response: requests.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"


def make_local_base(client: docker.DockerClient, progress: Progress) -> None:
    """Make a minimal Debian with debootstrap (root only) and import it as `LOCAL_BASE`.

    Raises:
        ImageError: debootstrap or the import failed.
    """
    # Not /tmp: it is often mounted nodev, where debootstrap refuses to work.
    with tempfile.TemporaryDirectory(prefix="sagebroker-base-", dir="/var/tmp") as folder:
        root, archive = Path(folder, "root"), Path(folder, "base.tar")
        try:
            _debootstrap(root, progress)
            _slim(root)
            (root / "etc/apt/sources.list").write_text(_SOURCES, encoding="utf-8")
            subprocess.run(
                ["tar", "--numeric-owner", "--one-file-system", "-C", str(root), "-cf", str(archive), "."],
                check=True, capture_output=True, timeout=IMPORT_LIMIT_S,
            )  # fmt: skip
            progress(f"base image: importing {archive.stat().st_size / 1e6:.0f} MB as {LOCAL_BASE}")
            _import(client, archive)
        except (OSError, subprocess.SubprocessError) as error:
            raise ImageError(f"the base image could not be made: {error}") from error
        finally:
            _unmount_below(root)


def _debootstrap(root: Path, progress: Progress) -> None:
    progress(f"base image: making Debian {SUITE} with debootstrap (about a minute)")
    command = ["debootstrap", "--variant=minbase", SUITE, str(root)]
    said = Paced(progress, REPORT_INTERVAL_S)
    tail: list[str] = []
    for line in lines_of(command, DEBOOTSTRAP_LIMIT_S):
        tail = [*tail[-4:], line]
        said(f"base image: {line.removeprefix('I: ')}")
    if not (root / "etc/debian_version").is_file() or (root / "debootstrap").exists():
        raise ImageError(f"debootstrap failed: {' / '.join(tail)}")


def lines_of(command: list[str], limit_s: float) -> Iterator[str]:
    """Run a program; yield the lines it prints. It is ended with its children after ``limit_s`` seconds.

    Raises:
        ImageError: It was not done in time or ended with another code than 0.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    # Reading blocks for as long as the program is silent, so the clock runs elsewhere.
    clock = threading.Timer(limit_s, end)
    clock.start()
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip() or last
            yield line.strip()
        code = process.wait()
    finally:
        clock.cancel()
        if process.poll() is None:
            end()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if late.is_set():
        raise ImageError(f"{command[0]} took longer than {limit_s:.0f} s; its last words: {last}")
    if code != 0:
        raise ImageError(f"{command[0]} ended with code {code}; its last words: {last}")


def _slim(root: Path) -> None:
    for place in _LEFT_OUT:
        for path in (root / place).glob("*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in (root / "usr/share/doc").rglob("*"):
        if path.is_file() and path.name != "copyright":
            path.unlink()


def _import(client: docker.DockerClient, archive: Path) -> None:
    url = f"{client.api.base_url}/v{client.api.api_version}/images/create"
    # The tag within the name: Podman does not look at one beside it.
    parameters = {"fromSrc": "-", "repo": LOCAL_BASE, "changes": 'CMD ["bash"]'}
    headers = {"Content-Type": "application/tar"}
    try:
        with (
            archive.open("rb") as content,
            client.api.post(
                url, params=parameters, headers=headers, data=content, timeout=IMPORT_LIMIT_S
            ) as answer,
        ):
            failed = not answer.ok or '"error"' in answer.text
            said = answer.text.strip()[-200:]
    except requests.RequestException as error:
        raise ImageError(f"the engine did not take the base image: {error}") from error
    if failed:
        raise ImageError(f"the engine did not take the base image: {said}")


def _unmount_below(root: Path) -> None:
    """Debootstrap mounts /proc and /sys inside; where it was ended, they are still there."""
    for name in ("proc", "sys"):
        if (root / name).is_mount():
            subprocess.run(["umount", "--lazy", str(root / name)], check=False, capture_output=True)


class Paced:
    """Passes lines on, at most one in each ``interval_s`` seconds."""

    def __init__(self, progress: Progress, interval_s: float) -> None:
        self._progress = progress
        self._interval_s = interval_s
        self._next = 0.0

    def __call__(self, line: str) -> None:
        """Pass the line on, if it is time."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval_s
            self._progress(line)
