"""Finds a container engine, or installs and starts one (root on Debian and Ubuntu).

    python scripts/engine.py ensure    find a working engine; install and start Docker where there is none
    python scripts/engine.py stop      stop the engine that `ensure` started, and nothing else
    python scripts/engine.py status    tell which engine answers

An engine that `ensure` started is remembered (see `dockerd.py`), and left running for the next command.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import dockerd
from dockerd import EngineError, Places, say

STATE_FOLDER = Path("/run/sagebroker-engine")
PACKAGES = ("docker.io", "iptables", "ca-certificates", "debootstrap")


def default_places() -> Places:
    return Places(dockerd.DEFAULT_SOCKET, STATE_FOLDER, "", "", bridge_none=False)


def environment_urls() -> list[str]:
    return [
        url
        for name in ("SAGEBROKER_ENGINE_URL", "DOCKER_HOST")
        if (url := os.environ.get(name, ""))
    ]


def candidates(places: Places) -> list[str]:
    """Addresses to try, best first. An address that was named is the only one."""
    if named := environment_urls():
        return named[:1]
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    return [
        places.host,
        *([f"unix://{own}/docker.sock"] if own else []),
        "unix:///run/podman/podman.sock",
        *([f"unix://{own}/podman/podman.sock"] if own else []),
    ]


def find(places: Places) -> tuple[str, str, list[str]]:
    """The first engine that answers: its address, its name, and why the ones before it did not."""
    reasons: list[str] = []
    for url in candidates(places):
        name, reason = dockerd.probe(url)
        if name:
            return url, name, reasons
        reasons.append(f"{url}: {reason}")
    return "", "", reasons


def have_base_maker() -> None:
    """Have debootstrap where the base image may have to be made from Debian's packages."""
    if os.geteuid() == 0 and dockerd.is_debian() and shutil.which("debootstrap") is None:
        try:
            dockerd.apt_install(("debootstrap",))
        except EngineError as error:
            say(f"No debootstrap ({error}); it is needed only where no registry answers.")


def instructions(reasons: list[str]) -> str:
    tried = "\n".join(f"  - {reason}" for reason in reasons)
    return (
        f"No container engine answers. Tried:\n{tried}\n"
        "What to do, one of:\n"
        "  - start Docker:                 sudo systemctl start docker\n"
        "  - install it (Debian, Ubuntu):  sudo apt-get install docker.io && sudo usermod -aG docker $USER\n"
        "                                  then log in again; or run this command as root, which does all that\n"
        "  - Fedora, openSUSE, Arch, ...:  install 'docker' or 'podman' with the system's package tool\n"
        "  - use Podman:                   sudo systemctl start podman.socket\n"
        "  - use an engine elsewhere on this machine:  export DOCKER_HOST=unix:///path/to/docker.sock"
    )


@contextlib.contextmanager
def alone(places: Places) -> Iterator[None]:
    """One caller at a time: two would install and start the same engine."""
    places.state.mkdir(parents=True, exist_ok=True, mode=0o755)
    with (places.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ensure(places: Places) -> None:
    url, name, reasons = find(places)
    if not url:
        if os.geteuid() != 0 or not dockerd.is_debian() or environment_urls():
            raise EngineError(instructions(reasons))
        with alone(places):
            url, name, reasons = find(places)
            if not url:
                if shutil.which("dockerd") is None:
                    dockerd.apt_install(PACKAGES)
                dockerd.start(places)
                url, name, _ = find(places)
    say(f"Engine: {name} at {url}")
    have_base_maker()


def stop(places: Places) -> None:
    with alone(places) if places.state.is_dir() else contextlib.nullcontext():
        record = dockerd.read_record(places)
        if record is None or not dockerd.is_running(record):
            print("There is no engine that this script started.")
        else:
            say(f"Stopping the dockerd that was started here (process {record.pid})")
            dockerd.end(record)
            if dockerd.is_running(record):
                raise EngineError(
                    f"dockerd (process {record.pid}) does not end; its log is {places.log}."
                )
        if record is not None:
            places.record.unlink(missing_ok=True)


def status(places: Places) -> None:
    url, name, reasons = find(places)
    if not url:
        raise EngineError(instructions(reasons))
    record = dockerd.read_record(places)
    mine = record is not None and record.host == url and dockerd.is_running(record)
    print(f"{name} at {url}" + (" (started by scripts/engine.py)" if mine else ""))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("ensure", "stop", "status"))
    parser.add_argument(
        "--host",
        default=dockerd.DEFAULT_SOCKET,
        help="where an engine that is started here listens",
    )
    parser.add_argument("--state", type=Path, default=STATE_FOLDER, help="its record and log")
    parser.add_argument(
        "--data-root", default="", help="its images and containers, in place of its own default"
    )
    parser.add_argument("--exec-root", default="", help="its sockets, in place of its own default")
    parser.add_argument(
        "--no-network", action="store_true", help="start it without bridge and firewall rules"
    )
    given = parser.parse_args()
    places = Places(given.host, given.state, given.data_root, given.exec_root, given.no_network)
    try:
        {"ensure": ensure, "stop": stop, "status": status}[given.action](places)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
