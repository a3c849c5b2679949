"""Installs, starts and stops a dockerd of our own: what `engine.py` does where no engine answers.

The dockerd that was started is remembered in a record by process id and start time, so that it can be stopped
later without ever hitting another process, whatever became of the process id since.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

PROBE_LIMIT_S = 5
"""An engine on this machine answers in milliseconds; a stalled one never does."""
START_LIMIT_S = 90.0
"""dockerd is up in 2-5 s; the first start on a slow disk, with many containers, takes longer."""
STOP_LIMIT_S = 30.0
"""dockerd gives its containers 15 s before it kills them."""
POLL_S = 0.2
TOLD_EVERY_S = 5.0
NEEDED_CONTROLLERS = frozenset({"memory", "pids", "cpu"})
"""Without them a session's limits could not be enforced."""
LOG_LINES_SHOWN = 25
NETWORK_TROUBLE = ("iptables", "network controller", "bridge", "nat table")
DEFAULT_SOCKET = "unix:///var/run/docker.sock"


class EngineError(Exception):
    """There is no engine and none can be had; the text says what to do."""


@dataclass(frozen=True)
class Places:
    """Where the engine that we start keeps things."""

    host: str
    state: Path
    data_root: str
    exec_root: str
    bridge_none: bool

    @property
    def record(self) -> Path:
        return self.state / "engine.json"

    @property
    def log(self) -> Path:
        return self.state / "dockerd.log"


@dataclass(frozen=True)
class Record:
    """The dockerd that we started."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat: together with the pid it names one process for ever."""
    host: str
    log: str


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def probe(url: str) -> tuple[str, str]:
    """Ask the engine at ``url`` who it is: its name and version, or nothing and the reason."""
    path = Path(url.removeprefix("unix://"))
    if url.startswith("unix://"):
        if not path.exists():
            return "", "there is no such socket"
        if not os.access(path, os.R_OK | os.W_OK):
            return (
                "",
                "permission denied: add yourself to its group (sudo usermod -aG docker $USER; then log in again)",
            )
    try:
        with contextlib.closing(
            docker.DockerClient(base_url=url, version="auto", timeout=PROBE_LIMIT_S)
        ) as client:
            version = client.version()
    except (DockerException, RequestException, OSError) as error:
        return "", str(error).splitlines()[0][:200]
    names = " ".join(part.get("Name", "") for part in version.get("Components") or [])
    kind = "Podman" if "podman" in names.lower() else "Docker"
    return f"{kind} {version.get('Version', '?')}", ""


def read_record(places: Places) -> Record | None:
    try:
        return Record(**json.loads(places.record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, so [0] is the state and [19] the start time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def is_running(record: Record) -> bool:
    fields = stat_fields(record.pid)
    return len(fields) > 19 and fields[0] not in "ZX" and int(fields[19]) == record.start_ticks


def is_debian() -> bool:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8").lower()
    except OSError:
        return False
    names = [
        line.partition("=")[2] for line in text.splitlines() if line.startswith(("id=", "id_like="))
    ]
    return shutil.which("apt-get") is not None and any(
        "debian" in n or "ubuntu" in n for n in names
    )


def apt_install(packages: tuple[str, ...]) -> None:
    """Install Debian packages.

    Raises:
        EngineError: apt-get failed.
    """
    say(f"Installing with apt-get: {' '.join(packages)}")
    # RUNLEVEL=1 keeps a package from starting its service where no systemd runs: what is started here, is recorded.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for arguments in (
        ["update", "-q"],
        ["install", "-y", "-q", "--no-install-recommends", *packages],
    ):
        code, output = follow(["apt-get", *arguments], quiet)
        if code:
            print(output[-4000:], file=sys.stderr)
            raise EngineError(f"'apt-get {' '.join(arguments)}' failed; its output is above.")


def follow(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run apt-get, naming each package as it is set up; the exit code and the whole output."""
    lines = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Setting up "):
                print(f"    {line.split()[2]}", flush=True)
    return process.returncode, "".join(lines)


def mounted_controllers() -> set[str]:
    """Names of the cgroup controllers that are mounted, v1 and v2 together."""
    names: set[str] = set()
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup":
            names.update(options.split(","))
        elif kind == "cgroup2":
            with contextlib.suppress(OSError):
                names.update(
                    (Path(left.split()[4]) / "cgroup.controllers")
                    .read_text(encoding="utf-8")
                    .split()
                )
    return names


def have_cgroups() -> None:
    """Have the control groups mounted, also where no init system does it (bare containers, small machines).

    Raises:
        EngineError: A controller that the limits need cannot be had.
    """
    if mounted_controllers() >= NEEDED_CONTROLLERS:
        return
    apt_install(("cgroupfs-mount",))
    subprocess.run(["cgroupfs-mount"], check=False, stdin=subprocess.DEVNULL)
    if missing := NEEDED_CONTROLLERS - mounted_controllers():
        raise EngineError(
            f"The control groups {sorted(missing)} cannot be had here, so no limit of a session could be enforced. If this "
            "is a container, run the engine outside it and pass its socket in (export DOCKER_HOST=unix:///path/to/socket)."
        )


def dockerd_command(places: Places, *, network: bool) -> list[str]:
    command = ["dockerd", "--host", places.host, "--pidfile", str(places.state / "dockerd.pid")]
    if places.data_root:
        command += ["--data-root", places.data_root]
    if places.exec_root:
        command += ["--exec-root", places.exec_root]
    if not network or places.bridge_none:
        # Nothing here needs it: sessions have no network, and images are built with the host's.
        command += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    return command


def log_end(places: Places) -> str:
    try:
        lines = places.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-LOG_LINES_SHOWN:])


def poll(answer: Callable[[], bool], limit_s: float, waiting_for: str) -> bool:
    """Ask until ``answer`` is true or the time is over; says every 5 s that it still waits."""
    start = told = time.monotonic()
    while not answer():
        now = time.monotonic()
        if now - start > limit_s:
            return False
        if now - told > TOLD_EVERY_S:
            told = now
            print(
                f"    still waiting for {waiting_for} ({now - start:.0f} of at most {limit_s:.0f} s)",
                flush=True,
            )
        time.sleep(POLL_S)
    return True


def launch(places: Places, *, network: bool) -> bool:
    """Start dockerd in the background; whether it answers. The record is written before it is waited for."""
    places.state.mkdir(parents=True, exist_ok=True, mode=0o755)
    with places.log.open("wb") as log:
        process = subprocess.Popen(
            dockerd_command(places, network=network),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    record = Record(process.pid, int(stat_fields(process.pid)[19]), places.host, str(places.log))
    places.record.write_text(json.dumps(asdict(record)), encoding="utf-8")

    def settled() -> bool:
        return process.poll() is not None or bool(probe(places.host)[0])

    poll(settled, START_LIMIT_S, "dockerd")
    if process.poll() is None and probe(places.host)[0]:
        return True
    if process.poll() is None:
        end(record)
        process.wait()
    places.record.unlink(missing_ok=True)
    return False


def start(places: Places) -> None:
    """Start the machine's Docker: by its init system where there is one, else by ourselves.

    Raises:
        EngineError: It does not come up; the text has the end of its log.
    """
    if Path("/run/systemd/system").is_dir() and places.host == DEFAULT_SOCKET:
        say("Starting Docker (systemctl start docker)")
        subprocess.run(["systemctl", "start", "docker"], check=False, stdin=subprocess.DEVNULL)
        if poll(lambda: bool(probe(places.host)[0]), START_LIMIT_S, "Docker"):
            return
        raise EngineError("Docker does not start. Its log: journalctl -u docker -n 50")
    have_cgroups()
    say(f"Starting dockerd in the background (log: {places.log})")
    if launch(places, network=True):
        return
    if any(word in log_end(places).lower() for word in NETWORK_TROUBLE):
        say("dockerd could not set up its network; sagebroker needs none: starting it without")
        if launch(places, network=False):
            return
    raise EngineError(f"dockerd does not start. The end of {places.log}:\n{log_end(places)}")


def end(record: Record) -> None:
    """Stop the dockerd of ``record``: politely, then, after its own limit, not."""
    for name, limit_s in ((signal.SIGTERM, STOP_LIMIT_S), (signal.SIGKILL, PROBE_LIMIT_S)):
        if not is_running(record):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, name)
        poll(lambda: not is_running(record), limit_s, "dockerd to end")
