"""Runs the core tests as an ordinary user who may use the engine but is not root.

    python scripts/test_as_user.py [PYTEST_ARGUMENT...]

Run by root. It makes a throwaway user, a copy of the tree and an environment for it, gives the user the group of the
engine's socket and nothing else, runs ``pytest -m core`` there, and removes all of it again.

The socket of an engine that `engine.py` did not start is never changed: when an ordinary user cannot be let in by its
group, the script says why and ends well.
"""

import contextlib
import fcntl
import grp
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dockerd
import engine

ROOT = Path(__file__).resolve().parent.parent
USER = "sagebroker-test"
LOCK = Path("/run/sagebroker-test-user.lock")
SKIPPED = 0
FAILED = 1
KILL_LIMIT_S = 10.0
EXPRESSION = "core and not root"
LEFT_OUT = shutil.ignore_patterns(
    ".venv", ".git", "__pycache__", "*_cache", ".*_cache", ".hypothesis", "demo-output"
)


class CannotRunError(Exception):
    """The tests cannot be run as an ordinary user on this machine; the text says why."""


@dataclass(frozen=True)
class Account:
    """The throwaway user and what it may use."""

    uid: int
    gid: int
    engine_gid: int
    home: Path

    def run(self, command: list[str], *, quiet: bool = False) -> int:
        """Run a command as the user, with its groups and an environment of its own; the exit code."""
        done = subprocess.run(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=[self.engine_gid],
            env=self.environment(),
            cwd=self.home / "tree",
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if quiet else None,
            check=False,
        )
        return done.returncode

    def environment(self) -> dict[str, str]:
        passed = ("LANG", "CI", "DOCKER_HOST", "PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE")
        return {
            **{name: os.environ[name] for name in passed if name in os.environ},
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "USER": USER,
            "LOGNAME": USER,
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


def socket_group() -> int:
    """The group that may use the engine's socket.

    Raises:
        CannotRunError: There is no such socket, or no group of ordinary users may use it.
    """
    places = engine.default_places()
    url, _, _ = engine.find(places)
    if not url.startswith("unix://"):
        raise CannotRunError(
            f"the engine is not reached by a local socket ({url or 'none answers'})"
        )
    path = Path(url.removeprefix("unix://"))
    info = path.stat()
    if info.st_gid != 0 and info.st_mode & stat.S_IRGRP and info.st_mode & stat.S_IWGRP:
        return info.st_gid
    record = dockerd.read_record(places)
    if record is None or record.host != url or not dockerd.is_running(record):
        raise CannotRunError(
            f"no group of ordinary users may use {path}, and it is not ours to change"
        )
    subprocess.run(["groupadd", "--force", "--system", "docker"], check=True)
    gid = grp.getgrnam("docker").gr_gid
    os.chown(path, 0, gid)
    path.chmod(0o660)
    return gid


@contextlib.contextmanager
def account() -> Iterator[Account]:
    """A user of its own with a home of its own; both are gone afterwards, with all its processes."""
    engine_gid = socket_group()
    if shutil.which("useradd") is None:
        raise CannotRunError("the command useradd is missing")
    # A short path: the sockets below it may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="sbu-", dir="/tmp"))
    try:
        # Left by a run that was killed; the lock in `main` says that no other run uses it.
        subprocess.run(["userdel", USER], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(
            [
                "useradd",
                "--system",
                "--user-group",
                "--no-create-home",
                *("--home-dir", str(home), "--shell", "/usr/sbin/nologin", USER),
            ],
            check=True,
        )
        entry = next(
            line
            for line in Path("/etc/passwd").read_text().splitlines()
            if line.startswith(USER + ":")
        )
        uid, gid = (int(part) for part in entry.split(":")[2:4])
        try:
            yield Account(uid, gid, engine_gid, home)
        finally:
            end_processes(uid)
            subprocess.run(["userdel", USER], check=False)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def processes_of(uid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == uid:
                found.append(int(folder.name))
    return found


def end_processes(uid: int) -> None:
    """The user was made here, so every process of its is ours."""
    deadline = time.monotonic() + KILL_LIMIT_S
    while (left := processes_of(uid)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def copy_tree(who: Account) -> None:
    """A copy of what git knows (and of what is new but not ignored), owned by the user."""
    target = who.home / "tree"
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    else:
        shutil.copytree(ROOT, target, ignore=LEFT_OUT)
    (who.home / "run").mkdir(mode=0o700)
    for path in [who.home, *who.home.rglob("*")]:
        os.chown(path, who.uid, who.gid, follow_symlinks=False)


def interpreter(who: Account) -> Path:
    """A Python of this one's minor version that the user can run, so that installed packages can be shared.

    Raises:
        CannotRunError: This interpreter lies where only root can read, and the system has no other.
    """
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    candidates = [own, *(Path(folder) / name for folder in ("/usr/bin", "/usr/local/bin"))]
    for path in candidates:
        try:
            code = who.run([str(path), "-c", "import ssl, venv"], quiet=True)
        except OSError:
            continue
        if code == 0:
            return path
    raise CannotRunError(
        f"no {name} that an ordinary user can run (tried {', '.join(map(str, candidates))})"
    )


def make_environment(who: Account) -> Path:
    """An environment for the user from the packages that are installed here; its python."""
    folder = who.home / "tree" / ".venv"
    if who.run([str(interpreter(who)), "-m", "venv", "--without-pip", str(folder)]):
        raise CannotRunError("no virtual environment could be made for the user")
    packages = next(folder.glob("lib/python3*/site-packages"))
    shutil.copytree(
        sysconfig.get_path("purelib"),
        packages,
        symlinks=True,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("_sagebroker.pth", "_editable_impl_sagebroker*"),
    )
    (packages / "sagebroker-tree.pth").write_text(f"{who.home}/tree/broker\n")
    python = folder / "bin" / "python"
    command = folder / "bin" / "sagebroker"
    command.write_text(f"#!{python}\nfrom sagebroker.cli import main\n\nraise SystemExit(main())\n")
    command.chmod(0o755)
    return python


def main() -> int:
    if os.geteuid() != 0:
        print("Skipped: this is no root, so all tests run as an ordinary user anyway.")
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with LOCK.open("w") as lock, contextlib.ExitStack() as stack:
            fcntl.flock(lock, fcntl.LOCK_EX)
            who = stack.enter_context(account())
            print(
                f"Making a copy of the tree and its environment for user {USER} (uid {who.uid}) in {who.home}"
            )
            copy_tree(who)
            python = make_environment(who)
            return who.run([str(python), "-m", "pytest", "-m", EXPRESSION, *sys.argv[1:]])
    except CannotRunError as reason:
        print(f"Skipped: {reason}.")
        return SKIPPED
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: the user's place could not be made: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
